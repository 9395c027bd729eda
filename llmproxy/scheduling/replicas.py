"""How many tasks of one backend there shall be.  Pure."""

from __future__ import annotations

from math import ceil

from attrs import define

from llmproxy.config.model import Replicas

__all__ = ["OTHERS_SEEN", "Load", "ReplicaPolicy", "needed"]

OTHERS_SEEN = 45.0
"""Seconds for which another proxy that has said so may be taken to use a backend: it says so every half
minute while something is in flight (:meth:`llmproxy.runtimes.interface.IReplicator.note_use`)."""

SLACK = 0.75
"""Part of what one task fewer could carry below which there is one fewer: between this and the whole nothing
changes, so that a load at the border makes no task come and go."""


def needed(load: int, settings: Replicas) -> int:
    """How many tasks a load needs, at least one."""
    return max(1, ceil(load / settings.target_in_flight))


@define
class Load:
    """What there is at one moment.

    :ivar requests: in flight and waiting.
    :ivar wanted: tasks that are wanted at present.
    :ivar healthy: tasks that requests go to.
    :ivar needed_at: when another proxy last said that so many are needed (the clock of ``now``); None: never.
    """

    requests: int
    wanted: int
    healthy: int
    needed_at: float | None = None


@define
class ReplicaPolicy:
    """Says when there shall be one task more, or one fewer: one at a time, and each only after the load has
    asked for it without a break."""

    _over_since: float | None = None
    _under_since: float | None = None

    def step(self, now: float, settings: Replicas, load: Load) -> int:
        """What to do now: 1, -1 or 0.

        :param now: seconds, of any clock.
        """
        if load.wanted > settings.max:
            return -1
        if load.wanted < settings.min:
            return 1
        over = load.requests > settings.target_in_flight * load.wanted and load.wanted < settings.max
        self._over_since = _since(self._over_since, now) if over else None
        fewer = load.wanted - 1
        room = SLACK * settings.target_in_flight * fewer
        needed_elsewhere = load.needed_at is not None and now - load.needed_at < settings.in_after
        under = fewer >= max(1, settings.min) and load.requests <= room and not needed_elsewhere
        self._under_since = _since(self._under_since, now) if under else None
        # One that is on its way has not shown yet what it takes off the others.
        if over and load.healthy >= load.wanted and _lasts(self._over_since, now, settings.out_after):
            self._over_since = None
            return 1
        if under and _lasts(self._under_since, now, settings.in_after):
            # It goes on being asked for until it is done: what leaves has to be idle.
            return -1
        return 0

    def done(self) -> None:
        """There is one fewer: the next one has to be asked for anew."""
        self._under_since = None


def _since(since: float | None, now: float) -> float:
    return now if since is None else since


def _lasts(since: float | None, now: float, seconds: float) -> bool:
    return since is not None and now - since >= seconds
