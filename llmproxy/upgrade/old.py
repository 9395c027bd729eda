"""In the old process: has another one take its place, and ends when nothing is left to do.

It starts the new process with the sockets that it listens on.  Until that one says that it is prepared, all
goes on as if nothing happened, and goes on so if it never does.  Then this one decides nothing more about
backends, hands over what waits, carries what is in flight to its end, and ends itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy import __version__
from llmproxy.errors import UpgradeFailed
from llmproxy.reactors.writing import unsent
from llmproxy.upgrade.heir import HeirResource, Passages, connect_by, heirs
from llmproxy.upgrade.line import Line, pair
from llmproxy.upgrade.spawn import Child, start
from llmproxy.web.channel import ProxyChannel

if TYPE_CHECKING:
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.fleet.state_file import StateFile
    from llmproxy.service import ProxyService
    from llmproxy.systemd import Supervised
    from llmproxy.usage.book import Book
    from llmproxy.web.site import ProxySite

__all__ = ["Bow", "Parts", "Upgrader"]

PREPARE = 90.0
"""Seconds that the new process has until it is prepared: Python starts, and the labels of containers and what
runs may take five each."""

QUIET = 120.0
"""Seconds to wait for what only this process can end: creating a container, which may include a pull, and
stopping one."""

TAKE_OVER = 20.0
"""Seconds that the new process has from the word until it serves.  It takes milliseconds."""

LOOK = 0.02
"""Seconds between looks at what is left to do."""


@define(eq=False)
class Parts:
    """The proxy, as far as this is about it.

    :ivar former: whether the process before this one has something left to do.
    :ivar decides_again: called when this process does after an upgrade that has failed.
    """

    reactor: Any
    fleet: Fleet
    site: ProxySite
    service: ProxyService
    state: StateFile
    book: Book
    supervised: Supervised | None
    stop: Callable[[], None]
    former: Callable[[], bool] = lambda: False
    decides_again: Callable[[], None] = lambda: None


@define(eq=False)
class Upgrader:
    """Does it.

    :ivar parts: the proxy.
    :ivar words: the command line of this process, the interpreter's own included; ``folder``: where it began.
    :ivar begin: starts the new process; for tests.
    """

    parts: Parts
    words: Sequence[str] = field(factory=lambda: tuple(sys.orig_argv))
    folder: str = field(factory=os.getcwd)
    begin: Callable[..., Child] = start
    _done: Deferred[dict[str, Any]] | None = field(default=None, init=False)
    _line: Line | None = field(default=None, init=False)
    _child: Child | None = field(default=None, init=False)
    _news: dict[str, Any] = field(factory=dict, init=False)
    _limit: IDelayedCall | None = field(default=None, init=False)
    _quiet: LoopingCall | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _paused: float = field(default=0.0, init=False)
    _committed: bool = field(default=False, init=False)
    _serves: bool = field(default=False, init=False)
    _bow: Bow | None = field(default=None, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        # Before the service manager is told of the end.
        self.parts.service.ending.insert(0, self._ends)

    def upgrade(self) -> Deferred[dict[str, Any]]:
        """Begin; fires with what serves now, in words and numbers.

        Fails with :exc:`UpgradeFailed`.
        """
        parts = self.parts
        if self._done is not None or self._bow is not None:
            return fail(UpgradeFailed("an upgrade is under way already"))
        if parts.site.ready is not None or not parts.service.running:
            return fail(UpgradeFailed("this process has not started yet, or ends"))
        self._began = parts.reactor.seconds()
        self._committed = False
        self._log.info("upgrade: starting another process of {words}", words=" ".join(self.words))
        ours, theirs = pair()
        with theirs:
            self._line = Line(parts.reactor, ours, self._heard, self._lost)
            try:
                self._child = self.begin(
                    parts.reactor,
                    self.words,
                    self.folder,
                    theirs.fileno(),
                    parts.service.sockets,
                    partial(self._ended, self._line),
                )
            except (OSError, ValueError) as cause:
                self._line.close()
                return fail(UpgradeFailed(f"it cannot be started: {cause}"))
            self._line.say("hello", states=self._states())
        self._tell("upgrading")
        done = self._done = Deferred()
        self._within(PREPARE, f"it was not prepared within {PREPARE:g} s")
        return done

    def _states(self) -> dict[str, str]:
        return {one.name: one.state for one in self.parts.fleet.backends.values()}

    def _within(self, seconds: float, why: str) -> None:
        self._no_limit()
        self._limit = self.parts.reactor.callLater(seconds, self._failed, why)

    def _no_limit(self) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._limit = None

    def _tell(self, status: str) -> None:
        if self.parts.supervised is not None:
            self.parts.supervised.status(status)

    # -- what the new process says ------------------------------------------------------------------

    def _heard(self, message: dict[str, Any], fd: int | None) -> None:
        what = message["say"]
        if self._bow is not None:
            if what == "end":
                self._bow.hurry()
        elif what == "failed":
            self._failed(str(message["why"]))
        elif what == "prepared":
            self._news = message
            self._wait_for_quiet()
        elif what == "serving" and self._committed and self._child is not None:
            self._give_away(self._child)

    def _lost(self) -> None:
        if self._bow is not None:
            self._bow.alone()
        elif self._child is not None:
            # How it ended is heard in a moment, if it has.
            self._child.kill()

    def _ended(self, line: Line, how: str) -> None:
        # One that has been given up may end later.
        if line is not self._line:
            return
        if self._serves:
            self._take_a_bow()
        else:
            self._failed(f"it ended with {how}; its log says why")

    # -- giving the place away ----------------------------------------------------------------------

    def _wait_for_quiet(self) -> None:
        changing: list[str] = []
        self._no_limit()
        until = self.parts.reactor.seconds() + QUIET

        def look() -> None:
            changing[:] = self.parts.fleet.changing
            if not changing:
                quiet.stop()
                self._commit()
            elif self.parts.reactor.seconds() >= until:
                quiet.stop()
                self._failed(f"{', '.join(changing)} is being created or stopped; try again later")

        quiet = self._quiet = LoopingCall(look)
        quiet.clock = self.parts.reactor
        quiet.start(LOOK)

    def _commit(self) -> None:
        """From here on this process decides nothing, and the new one when it has asked for that."""
        parts = self.parts
        self._committed, self._paused = True, parts.reactor.seconds()
        parts.fleet.scheduler.frozen = True
        parts.service.pause()
        parts.state.flush()
        self._within(TAKE_OVER, f"it did not serve within {TAKE_OVER:g} s")
        assert self._line is not None
        try:
            self._line.say("go", occupied=parts.fleet.occupied(), states=self._states())
        except OSError:
            # Its end is about to be heard of.
            self._log.info("upgrade: the new process is gone")

    def _give_away(self, child: Child) -> None:
        """It is the new one's, which has waited for that; there is no way back."""
        assert self._line is not None
        try:
            self._line.say("yours")
        except OSError:
            # Its end is about to be heard of.
            self._log.info("upgrade: the new process is gone")
            return
        self._no_limit()
        self._serves = True
        self._paused = self.parts.reactor.seconds() - self._paused
        # From here on the end of this process must not be that of the sockets.
        self.parts.service.hand_over()
        child.let_go()

    def _ends(self) -> None:
        """This process does: what has not been given away ends with it, and backends do where they shall."""
        if not self._serves:
            self._failed("this process ends")

    def _failed(self, why: str) -> None:
        if self._done is None:
            return
        done, self._done = self._done, None
        self._no_limit()
        if self._quiet is not None and self._quiet.running:
            self._quiet.stop()
        if self._line is not None:
            self._line.close()
        if self._child is not None and self._child.alive:
            self._child.kill()
        if self._committed:
            self.parts.fleet.scheduler.thaw()
            self.parts.service.resume()
            self.parts.decides_again()
        self._log.error("not upgraded: {why}", why=why)
        self._tell(f"not upgraded: {why}")
        done.errback(UpgradeFailed(why))

    def _take_a_bow(self) -> None:
        done, self._done = self._done, None
        assert done is not None
        assert self._line is not None
        took = self.parts.reactor.seconds() - self._began
        pid, version = int(self._news["pid"]), str(self._news["version"])
        if self.parts.supervised is not None:
            self.parts.supervised.handed_to(pid)
        self._log.info(
            "upgraded: llmproxy {version}, process {pid}, serves after {took:.2f} s, in which new connections"
            " waited for {paused:.3f} s; {count} requests in flight are finished here",
            version=version,
            pid=pid,
            took=took,
            paused=self._paused,
            count=self.parts.fleet.in_flight(),
        )
        left = self.parts.fleet.in_flight()
        self._bow = Bow(self.parts, self._line)
        self._bow.begin()
        done.callback(
            {
                "pid": pid,
                "version": version,
                "seconds": round(took, 3),
                "paused": round(self._paused, 4),
                "former": {"pid": os.getpid(), "version": __version__, "in_flight": left},
            }
        )


class Bow:
    """The rest of the old process: it starts and stops nothing, and ends."""

    _log = Logger()

    def __init__(self, parts: Parts, line: Line) -> None:
        self._parts = parts
        self._line = line
        self._told: dict[str, int] | None = None
        self._alone = False
        self._cut = False
        self._passages = Passages(connect_by(parts.reactor, line))
        self._deadline = parts.reactor.seconds() + parts.fleet.config.drain
        self._looking = LoopingCall(self._look)
        self._looking.clock = parts.reactor

    def begin(self) -> None:
        """Hand over what can be."""
        parts, site = self._parts, self._parts.site
        self._tell_occupied()
        self._tell_wishes()
        # Heads of answers say from now on that the connection ends; whoever asks again goes to the new one.
        site.closing = True
        for request in list(site.streams):
            request.end_stream()
        site.resource = HeirResource(parts.fleet, self._passages)
        parts.fleet.hand_over(heirs(parts.fleet, self._passages))
        parts.state.close()
        parts.book.leave_off()
        channels: list[Any] = list(site.channels)
        for channel in channels:
            if not isinstance(channel, ProxyChannel):
                # HTTP/2 has a word for it.
                channel.close_if_idle()
        self._looking.start(LOOK).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        # Of no more use; what the new process counts for it must not count for ever.
        self._log.failure("finishing after an upgrade", failure)
        self._parts.stop()

    def hurry(self) -> None:
        """The new process ends, and waits for this one."""
        self._deadline = min(self._deadline, self._parts.reactor.seconds() + self._parts.fleet.config.drain)

    def alone(self) -> None:
        """The new process is gone."""
        self._alone = True

    def _tell_occupied(self) -> None:
        occupied = self._parts.fleet.occupied()
        if occupied != self._told and not self._alone:
            self._told = occupied
            try:
                self._line.say("occupied", occupied=occupied)
            except OSError:
                self._alone = True

    def _tell_wishes(self) -> None:
        """What the operator has asked for, also since this process has left off deciding."""
        backends = self._parts.fleet.backends.values()
        with suppress(OSError):
            self._line.say(
                "wishes",
                wanted=[one.name for one in backends if one.wishes.run_since is not None],
                stops={one.name: one.wishes.stop for one in backends if one.wishes.stop is not None},
            )

    def _look(self) -> None:
        self._tell_occupied()
        channels = self._parts.site.channels
        for channel in list(channels):
            if not self._alone and _can_be_given(channel):
                self._give(channel)
        if self._parts.reactor.seconds() >= self._deadline and not self._cut:
            self._cut = True
            self._parts.fleet.cut("llmproxy was upgraded, and its drain limit is reached")
            for channel in list(channels):
                channel.close_if_idle()
        # What the process before this one hands over comes through here.
        waits = self._parts.former() and self._parts.reactor.seconds() < self._deadline
        if not channels and not waits:
            self._looking.stop()
            self._log.info("nothing is left to do after the upgrade")
            self._parts.stop()

    def _give(self, channel: ProxyChannel) -> None:
        """Let the new process go on with a connection on which nothing happens."""
        transport = channel.transport
        try:
            self._line.say("client", transport.fileno(), family=int(transport.socket.family))
        except ConnectionError:
            self._alone = True
            return
        except OSError:
            # No descriptor is left for a copy of it: at another look.
            return
        # Only this copy of the socket is closed.
        transport._shouldShutdown = False
        transport.connectionLost(Failure(ConnectionDone()))


def _can_be_given(channel: Any) -> bool:
    transport: Any = channel.transport
    # Neither TLS, of which this process has the keys, nor what has told by the PROXY protocol who it is.
    plain = (
        type(channel) is ProxyChannel and isinstance(transport, Server) and not getattr(transport, "TLS", 0)
    )
    if not plain or channel.transport.protocol is not channel or channel.transport.disconnecting:
        return False
    reader = channel.reader
    return bool(
        channel.speaks
        and channel.persistent
        and channel.turned_away is None
        and not channel.requests
        and reader.coming is None
        and not reader.reading
        and reader.refusal is None
        and not unsent(channel.transport)
    )
