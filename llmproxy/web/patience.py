"""How long clients are waited for: one look at all connections every few seconds, and no timer for each.

Whoever sends a request slowly (a head of a byte a minute) or takes nothing of an answer holds a connection,
and with a body or an answer also memory, a backend's slot, a GPU.  A connection is looked at as what it is
doing at that moment.  The times in it are those of the look before what happened, so that each limit is
kept to within two looks, and never cuts short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmproxy.config.model import Limits
from llmproxy.reactors.writing import left
from llmproxy.web.unread import too_slow

if TYPE_CHECKING:
    from llmproxy.web.channel import ProxyChannel

__all__ = ["LAST", "LOOK", "TURNED_AWAY", "look_at", "look_at_unsent", "seconds_between_looks"]

LOOK = 5.0
"""Seconds between two looks at most."""

LAST = 60.0
"""Seconds for what was written to be taken from a connection that is being ended, where no limit says."""

TURNED_AWAY = 5.0
"""Seconds for which a connection beyond the limits may stay without asking for anything."""


def seconds_between_looks(limits: Limits) -> float:
    """Often enough for the shortest of the limits."""
    times = (
        limits.head_timeout,
        limits.body_timeout,
        limits.idle_timeout,
        limits.write_timeout,
        limits.tunnel_idle,
    )
    shortest = min((time for time in times if time > 0), default=4 * LOOK)
    return min(LOOK, max(shortest / 4, 0.05))


def look_at(channel: ProxyChannel, now: float, limits: Limits) -> None:
    """End a connection that has had its time, with an answer where a request was coming.

    :param now: the time, less what it is uncertain by.
    """
    transport = channel.transport
    if look_at_unsent(channel, now, limits):
        return
    if transport.disconnecting:
        if now - channel.turn > (limits.idle_timeout or LAST):
            transport.abortConnection()
    elif channel.turned_away is not None:
        if now - channel.turn > TURNED_AWAY:
            transport.abortConnection()
    elif channel.carried is not None:
        _look_at_tunnel(channel, channel.carried(), now, limits)
    elif channel.speaks:
        _look_at_request(channel, now, limits)


def look_at_unsent(channel: ProxyChannel, now: float, limits: Limits) -> bool:
    """End a connection whose client takes nothing of what waits for it.

    :return: whether anything waits.
    """
    waits = left(channel.transport)
    if waits is None:
        channel.stuck = None
        return False
    stuck = channel.stuck
    if stuck is None or stuck[0].taken_since(waits):
        channel.stuck = (waits, now)
        return True
    limit = limits.write_timeout
    if channel.transport.disconnecting:
        limit = limit or limits.idle_timeout or LAST
    if limit and now - stuck[1] > limit:
        channel.give_up("write_timeout")
    return True


def _look_at_tunnel(channel: ProxyChannel, carried: int, now: float, limits: Limits) -> None:
    if carried != channel.carried_before:
        channel.carried_before = carried
        channel.heard = max(channel.heard, now)
    if limits.tunnel_idle and now - channel.heard > limits.tunnel_idle:
        channel.give_up("tunnel_idle")


def _look_at_request(channel: ProxyChannel, now: float, limits: Limits) -> None:
    reader = channel.reader
    # What came while the request before was being answered was not read then.
    took = now - max(channel.turn, reader.began)
    if reader.coming is not None:
        allowed = limits.body_timeout
        if allowed and limits.min_body_rate:
            allowed += reader.coming.body.size / limits.min_body_rate
        if allowed and took > allowed:
            channel.refuse(too_slow("body", "limits.body_timeout"))
    elif reader.reading:
        if limits.head_timeout and took > limits.head_timeout:
            channel.refuse(too_slow("head", "limits.head_timeout"))
    elif limits.idle_timeout and now - channel.turn > limits.idle_timeout:
        channel.loseConnection()
