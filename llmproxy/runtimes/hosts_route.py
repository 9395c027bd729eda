"""One backend that may be on one of several hosts: where it is, and what its watcher is told.  No I/O."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, evolve, field

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Exit, Instance, Watcher
from llmproxy.runtimes.telling import Teller

__all__ = ["Route"]

MOST_LOSSES = 16
"""Runs that are remembered to have been taken for ended: one may turn up for as long as its host is away."""


@define(eq=False)
class Route:
    """Puts together what the runtimes of all hosts tell of one backend.

    It is on one host at a time (``at``).  Of any other run the watcher hears nothing: such a double is left
    from before the host was lost that it is on, and is to be ended as soon as the one that counts runs.

    :ivar hosts: those that it may be on, in their order.
    :ivar at: where it runs or is being started; empty: nowhere.
    :ivar placed: where its next start is to be; empty: nobody has said.
    :ivar read: the host that its facts were last read of.
    :ivar starting: it has been asked for at ``at``, and nobody has answered.
    :ivar runs: what runs, by host.
    """

    spec: BackendSpec
    hosts: tuple[str, ...]
    _watcher: Watcher
    # Whether nothing is known of that host at present, nor will be soon.
    _away: Callable[[str], bool]
    # Told that it runs on a second host.
    _doubled: Callable[[], None]
    at: str = ""
    placed: str = ""
    read: str = ""
    starting: bool = False
    runs: dict[str, Instance] = field(factory=dict)
    _told: set[str] = field(factory=set)
    # How often a run was taken for ended and turned up again: it has another name each time.
    _losses: dict[str, int] = field(factory=dict)
    # What has ended of that which is being started, before the answer to that came.
    _early: dict[str, Exit] = field(factory=dict)
    _teller: Teller = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._teller = Teller(self._watcher)

    # -- what the hosts tell ------------------------------------------------------------------------

    def running(self, host: str, instance: Instance) -> None:
        """It runs there."""
        self._told.add(host)
        self.runs[host] = instance
        if host == self.at and not self.starting:
            self._teller.running(self.named(instance), again=True)
        self.settle()

    def gone(self, host: str, run: str | None, exit: Exit) -> None:
        """That run has ended there; None: none was ever seen."""
        self._told.add(host)
        known = self.runs.get(host)
        if known is not None and run in (None, known.run):
            del self.runs[host]
        if host == self.at and not self.starting:
            self.at = ""
        elif host == self.at and run is not None:
            self._early[run] = exit
        if run is not None:
            # Of a double it says nothing.
            self._teller.ended(self._name(run), exit)
        self.settle()

    def changed(self, host: str) -> None:
        """Its container there is another one, or has gone."""
        if self.at in ("", host):
            self._watcher.changed()

    def known(self) -> bool:
        """How it is has been told."""
        return self._teller.told

    # -- what becomes of it -------------------------------------------------------------------------

    def begin(self, host: str) -> None:
        """It is being started there."""
        self.at, self.starting = host, True
        self._early.clear()

    def started(self, host: str, instance: Instance) -> Instance:
        """It has been; by the name that the watcher is to know it by."""
        self.at, self.placed, self.starting = host, "", False
        self._told.add(host)
        early = self._early.get(instance.run)
        if early is None:
            self.runs[host] = instance
        named = self.named(instance)
        self._teller.answered(named)
        if early is not None:
            self._teller.ended(named.run, early)
        if self.read != host:
            # What was read of another host's container may not be so here.
            self.read = host
            self._watcher.changed()
        self.settle()
        return named

    def not_started(self) -> None:
        """It has not been, so that what else there is counts."""
        self.at, self.placed, self.starting = "", "", False
        self.settle()

    def stopped(self, host: str) -> None:
        """It has been ended there.  The news of that comes next; where it is to be is open from now on."""
        if host == self.at and not self.starting:
            self.at = ""
            self.runs.pop(host, None)

    def lose(self, host: str) -> None:
        """It is taken for ended there, whether it is or not: nobody can see."""
        instance = self.runs.pop(host, None)
        if host != self.at or self.starting:
            return
        self.at = ""
        if instance is not None:
            self._teller.ended(self.named(instance).run, Exit())
            self._losses[instance.run] = self._losses.pop(instance.run, 0) + 1
            while len(self._losses) > MOST_LOSSES:
                del self._losses[next(iter(self._losses))]
        self.settle()

    def settle(self) -> None:
        """See what counts of all that is known, and tell it."""
        if self.starting:
            return
        if self.at not in self.runs:
            self.at = next((host for host in self.hosts if host in self.runs), "")
            if self.at:
                self._teller.running(self.named(self.runs[self.at]), again=True)
        if self.doubles():
            self._doubled()
        elif not self.at and self._told and all(one in self._told or self._away(one) for one in self.hosts):
            self._teller.absent()

    def doubles(self) -> list[str]:
        """Hosts on which it runs beside the one that counts.  While that one's host is away nobody knows
        whether it still runs, so that another one may be wanted."""
        mine = self.runs.get(self.at)
        if mine is None or self.starting or self._away(self.at):
            return []
        # The same run is the same engine under two names.
        return [host for host, other in self.runs.items() if host != self.at and other.run != mine.run]

    # -- names of runs ------------------------------------------------------------------------------

    def named(self, instance: Instance) -> Instance:
        """It, by the name that the watcher knows it by."""
        return evolve(instance, run=self._name(instance.run)) if instance.run in self._losses else instance

    def _name(self, run: str) -> str:
        losses = self._losses.get(run, 0)
        return f"{run}+{losses}" if losses else run
