"""The one door between the fleet and whatever runs the backends: Docker, child processes, or elsewhere.

A runtime is level-triggered: it tells a watcher how its backend *is*, at first, after every change that
it hears of, and again after a lost connection.  The same contract tests
(``tests/contract_runtimes.py``) hold every implementation to what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from attrs import Factory, field, frozen
from twisted.internet.defer import Deferred

from llmproxy.config.model import BackendSpec
from llmproxy.engines.gpus import DeviceRequest
from llmproxy.engines.phases import Phase

__all__ = [
    "Address",
    "Exit",
    "Facts",
    "HostState",
    "ICluster",
    "IHosts",
    "IReplicator",
    "IRuntime",
    "Instance",
    "Reservations",
    "RuntimeFaulty",
    "RuntimeUnavailable",
    "StartRefused",
    "Step",
    "Task",
    "Watcher",
    "unheard",
]


Step = Callable[[Phase], None]
"""Told how far a start is before it runs: ``pulling``, with the part that is done where that is known."""


def unheard(phase: Phase) -> None:
    """Nobody wants to know."""


class RuntimeUnavailable(Exception):
    """The runtime itself (the Docker engine) does not answer.  ``str()`` says what was tried."""


class RuntimeFaulty(RuntimeUnavailable):
    """It answers, and says that something is wrong with it."""


class StartRefused(Exception):
    """The backend cannot be started as configured: no such container or image, create refused, no such
    command.  ``str()`` is the cause in one line, ``hint`` the fix."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@frozen
class Address:
    """Where a backend may answer.

    :ivar via: how it is reached: ``network`` (a Docker network that the proxy shares), ``published`` (a
        port on the Docker host), ``bridge`` (the container's own address), ``process`` or ``url``.
    :ivar prefix: path in front of every request path, without a trailing slash (``url`` runtime only).
    """

    host: str
    port: int
    via: str
    tls: bool = False
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


@frozen
class Facts:
    """What can be read from the backend itself.

    :ivar args: the server's whole command line, entrypoint included.
    :ivar environment: its environment variables; holds secrets, never printed.
    :ivar devices: the GPUs that its container asks for; ``None`` when that is not known.
    :ivar fingerprint: tells one configuration from another, so that what was learned of one is not believed
        of the other; the same after a restart of the proxy.  Empty when nothing is known.
    """

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=Factory(dict), repr=False)
    devices: DeviceRequest | None = None
    fingerprint: str = ""


@frozen
class Task:
    """One of several that a backend runs as: what a Swarm calls a task.

    :ivar id: names it; what is started in its place has another one.
    :ivar addresses: where to try it, most wanted first; never empty.
    :ivar leaving: it is being ended by whoever runs it: nothing new for it, what is in flight may finish.
    :ivar node: the machine that it is on, for people.
    """

    id: str
    addresses: tuple[Address, ...]
    leaving: bool = False
    node: str = ""


@frozen
class Instance:
    """One run of a backend.

    :ivar run: identifies this very run: another start of the same container has another one.  Of several
        tasks it is one run from the first that was started to the end of the last.
    :ivar addresses: where to try it, most wanted first; never empty.
    :ivar started_at: POSIX time of its start, if known.
    :ivar tasks: those that run, where there may be several; empty: it is one by itself.
    :ivar replicas: how many tasks are wanted.
    :ivar pending: why not all of them run (``no suitable node``); empty: all do, or nobody says.
    :ivar used_at: POSIX time at which another proxy last said that it is used (:meth:`IReplicator.note_use`).
    :ivar needed_at: POSIX time at which another proxy last said that so many ``replicas`` are needed.
    """

    run: str
    addresses: tuple[Address, ...]
    started_at: float | None = None
    tasks: tuple[Task, ...] = ()
    replicas: int = 1
    pending: str = ""
    used_at: float | None = None
    needed_at: float | None = None


@frozen
class Exit:
    """How a run ended.

    :ivar code: exit status; ``None`` when unknown (an adopted process, a removed container).  A process
        that a signal ended has 128 + signal, as Docker tells it.
    :ivar oom: the kernel killed it for memory.
    """

    code: int | None = None
    oom: bool = False


class Watcher(Protocol):
    """What a runtime tells of one backend.  All calls come in the reactor's thread."""

    def running(self, instance: Instance) -> None:
        """This run is alive.  May be said again of the same run (after a resync); addresses may differ."""

    def gone(self, run: str | None, exit: Exit) -> None:
        """That run has ended; ``None`` when no run of it was ever seen (there is nothing to adopt).
        Said at most once for a run, and never before ``running`` or the end of ``ensure_started``."""

    def changed(self) -> None:
        """The thing behind the backend is a different one now (created, removed, renamed), so that an
        earlier failed start says nothing any more, and ``facts`` may differ."""


class IRuntime(Protocol):
    """Runs backends.  Every verb is idempotent.  Deferreds fail with the errors named, or are cancelled;
    cancelling gives up waiting and undoes nothing."""

    def start(self) -> None:
        """Begin to work (threads, event streams).  Called once, before anything else."""

    def close(self) -> Deferred[None]:
        """Let go of threads and connections.  Backends go on running."""

    def ping(self) -> Deferred[None]:
        """Fire when the runtime answers.

        :raises RuntimeUnavailable: it does not.
        """

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        """Report on this backend from now on; replaces an earlier watch of the same route.  Fires when the
        present state has been told (``running`` or ``gone(None, ...)``).  When the runtime is away it fires
        with None at once, and the state is told as soon as the runtime is back."""

    def unwatch(self, route: str) -> None:
        """Report no more."""

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        """Make it run (create, pull and start as needed); fires as soon as it has been started, which is
        long before it is healthy.  One that runs already is left as it is.

        :param step: may be told, in the reactor's thread, what takes its time; of several who ask at once,
            the first one's.
        :raises StartRefused: it cannot be started as configured.
        :raises RuntimeUnavailable: the runtime does not answer.
        """

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        """End it: TERM, a second TERM after half of ``grace`` seconds (vLLM swallows one while it starts),
        KILL of all of it after ``grace``; 0 kills at once.  Fires when its end has been seen; at once when
        it does not run or does not exist.

        :raises RuntimeUnavailable: the runtime does not answer.
        """

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        """What can be read from it, also when it does not run (from the compose file or the spec when there
        is no container yet)."""

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        """The last ``tail`` lines of its output, newest last; empty when there is none."""

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        """Call ``line`` for each of the last ``tail`` lines and for each one that comes; fires when the run
        ends; cancel it to stop following."""


@runtime_checkable
class IReplicator(Protocol):
    """What a runtime has besides that may run several tasks of one backend. Its watchers hear ``running`` of
    the same run again whenever its tasks are others, and ``gone`` when the last one has ended. Its ``stop``
    also ends a start that waits, which then fails with :class:`StartRefused`."""

    def scale(self, spec: BackendSpec, replicas: int) -> Deferred[None]:
        """Have at least so many tasks of what runs; never fewer than there are, and none of what is ended.
        Fires when that is written down, which is long before they run.

        :raises RuntimeUnavailable: the runtime does not answer.
        """

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        """Whether :meth:`retire` ends this very task.  Otherwise whoever runs it chooses one, so that nothing
        may be in flight at any of them."""

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        """Have one task fewer: this one, if it can be chosen.  Fires when it is known which one leaves.

        :param replicas: how many there are now; if that is not so any more, nothing is done.
        :raises RuntimeUnavailable: the runtime does not answer.
        """

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        """It is used at this moment, and so many tasks are needed: said as often as one likes, and written
        down for other proxies at most each half minute."""


@frozen
class Reservations:
    """What a cluster's nodes have, and what services reserve of it: by resource, in the units of that.

    :ivar rooms: by node, of those that take tasks.
    :ivar needs: by service, what each task of it reserves.
    :ivar taken: by service and node, how many tasks it has there.
    :ivar allowed: by service, the nodes that its tasks may be placed on; None: all.
    """

    rooms: Mapping[str, Mapping[str, int]]
    needs: Mapping[str, Mapping[str, int]]
    taken: Mapping[str, Mapping[str, int]]
    allowed: Mapping[str, frozenset[str] | None]


@runtime_checkable
class ICluster(Protocol):
    """What a runtime has besides that places backends on nodes by what they reserve."""

    def reservations(self) -> Deferred[Reservations]:
        """How full it is, with what is nobody's backend.

        :raises RuntimeUnavailable: the runtime does not answer.
        """

    def service_of(self, spec: BackendSpec) -> str:
        """What the backend is called there."""


@frozen
class HostState:
    """One of several machines that backends run on.

    :ivar name: as settings call it.
    :ivar engine: where what runs them there is reached.
    :ivar away: why it is not there at present; empty: it answers.
    :ivar expected: it is missed while it is away; the local engine is not where nobody has asked for it.
    """

    name: str
    engine: str
    away: str = ""
    expected: bool = True


@runtime_checkable
class IHosts(Protocol):
    """What a runtime has besides that runs backends on several machines, each backend on one of them."""

    def hosts(self) -> Sequence[HostState]:
        """All of them, in the order in which they are tried."""

    def on_hosts_change(self, callback: Callable[[], None]) -> None:
        """Call back when one is away or there again, and when a backend is found on a second one, or has
        ended there."""

    def is_away(self, host: str) -> bool:
        """It is known that this one is not there at present."""

    def host_of(self, spec: BackendSpec) -> str:
        """Where it runs, is being started or is to be started; empty: nowhere."""

    def places(self, spec: BackendSpec) -> Mapping[str, bool]:
        """The hosts that it may be started on now, in their order: none that is away.  Each with whether its
        container is there already."""

    def place(self, spec: BackendSpec, host: str) -> None:
        """Its next start is to be there."""

    def doubles(self) -> Sequence[tuple[str, str]]:
        """Backends that run on a host although they are on another one, by route and host."""

    def end_doubles(self) -> None:
        """Have them end, as far as nobody has yet."""

    def lose(self, spec: BackendSpec) -> None:
        """Its host is away, and it answers nobody: take it for ended.  Should it turn up again it is adopted
        if it is the only one, and ended if it has been started elsewhere by then."""
