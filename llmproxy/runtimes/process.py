"""Backends as child processes, which outlive the proxy and are found again by the next one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, execute, fail, gatherResults, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.fingerprint import fingerprint
from llmproxy.runtimes.interface import Address, Exit, Facts, Instance, StartRefused, Step, Watcher, unheard
from llmproxy.runtimes.process_child import (
    Child,
    child_environment,
    find_command,
    free_port,
    is_listened_on,
    is_taken,
    refused_for,
    with_port,
)
from llmproxy.runtimes.process_group import Group, GroupReactor, read_process
from llmproxy.runtimes.process_logs import LogFile
from llmproxy.runtimes.process_records import SHIM, Record, Records, boot_id, command_hash
from llmproxy.runtimes.shared import Shared, shielded
from llmproxy.runtimes.spare import SPARE
from llmproxy.runtimes.telling import Teller

__all__ = ["ProcessReactor", "ProcessRuntime"]

LOOK_AGAIN = 1.0
"""Seconds until it is looked again at what could not be read."""
STRAY_GRACE = 10.0
"""Seconds that a child which nobody wants any more has to end."""
_TELLING = ("CUDA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "VLLM_TARGET_DEVICE")
"""What a child inherits of the proxy's environment and says what it needs of the machine."""


class ProcessReactor(GroupReactor, IReactorProcess):
    """What is needed of the reactor."""


@define(eq=False)
class _Run:
    """A run that is not over.

    :ivar give_back: gives its port back.
    """

    group: Group
    instance: Instance
    port: int
    give_back: Callable[[], None] = lambda: None


@define(eq=False)
class ProcessRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime`.

    Each child is in a session of its own, writes to ``<state_dir>/logs/<route>.log`` and is recorded in
    ``<state_dir>/processes/<route>.json``.

    :ivar secret_names: environment variables that hold keys of clients, and are not passed on.
    :ivar spared: fires when a child of that route which is not wanted any more may be ended: another proxy
        may still have requests there.
    """

    _reactor: ProcessReactor
    state_dir: str
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _secret_names: frozenset[str] = field(default=frozenset(), kw_only=True)
    spared: Callable[[str], Deferred[None]] = field(default=lambda route: succeed(None), kw_only=True)
    _records: Records = field(init=False)
    _runs: dict[str, _Run] = field(factory=dict, init=False)
    _tellers: dict[str, Teller] = field(factory=dict, init=False)
    _starts: dict[str, Shared[Instance]] = field(factory=dict, init=False)
    _logs: dict[str, LogFile] = field(factory=dict, init=False)
    _ending: list[Group] = field(factory=list, init=False)
    # Until it is looked again.
    _pauses: set[Deferred[None]] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)
    # Why nothing can be kept in the state folder.
    _unkept: str = field(default="", init=False)
    _said = Logger()

    def __attrs_post_init__(self) -> None:
        self._records = Records(os.path.abspath(os.path.join(self.state_dir, "processes")))

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        SPARE.keep()
        with suppress(OSError):  # looked at again where it is needed
            boot_id()  # known from now on
        for name in ("processes", "logs"):
            # One after the other: the mode is that of the last one only.
            for folder in (self.state_dir, os.path.join(self.state_dir, name)):
                try:
                    os.makedirs(folder, mode=0o700, exist_ok=True)
                except OSError as error:
                    # Others need none of it.
                    self._unkept = f"{folder} cannot be made: {error.strerror}"
                    return

    def close(self) -> Deferred[None]:
        self._closed = True
        self._tellers.clear()
        self._look_now()
        for started in list(self._starts.values()):
            started.cancel()
        for group in [*self._ending, *(run.group for run in self._runs.values())]:
            group.close()
        for run in self._runs.values():
            run.give_back()
        for log in self._logs.values():
            log.close()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return succeed(None)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.unwatch(spec.route)
        teller = Teller(watcher)
        self._tellers[spec.route] = teller
        # Who waits no more for that is still told.
        return shielded(Deferred.fromCoroutine(self._look(spec, teller)))

    async def _look(self, spec: BackendSpec, teller: Teller) -> None:
        """Tell whether it runs, as soon as that can be seen."""

        def wanted() -> bool:
            return self._is_open() and self._tellers.get(spec.route) is teller

        await self._insist(lambda: self._adopt(spec), f"whether {spec.route} runs", wanted)
        if wanted():
            run = self._runs.get(spec.route)
            if run is None:
                teller.absent()
            else:
                teller.running(run.instance)

    async def _insist(self, job: Callable[[], Deferred[None]], what: str, wanted: Callable[[], bool]) -> None:
        """Do what needs a look at the machine, again after a while where that look fails.

        :param job: may be begun several times.
        :param what: what it looks at, for the log.
        """
        told = False
        while wanted():
            try:
                await job()
                return
            except OSError as cause:
                if not told:
                    told = True
                    self._said.error(
                        "cannot see {what}, and looks again: {cause}", what=what, cause=str(cause)
                    )
            pause: Deferred[None] = deferLater(self._reactor, LOOK_AGAIN)
            self._pauses.add(pause)
            with suppress(CancelledError):
                await pause
            self._pauses.discard(pause)

    def _look_now(self) -> None:
        """Somebody may not want to know any more."""
        for pause in list(self._pauses):
            pause.cancel()

    def unwatch(self, route: str) -> None:
        if self._tellers.pop(route, None) is not None:
            self._look_now()

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        started = self._starts.get(spec.route)
        if started is None:
            begun = Deferred.fromCoroutine(self._start(spec))
            started = Shared(begun.addBoth(self._start_over, spec.route))
            if not started.over:
                self._starts[spec.route] = started
        return started.wait()

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        return shielded(Deferred.fromCoroutine(self._adopt_and_stop(spec, grace)))

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        words = spec.command + spec.args
        # Before its port is known, which is another one at each start.
        name = fingerprint(spec.cwd or "", words, spec.environment)
        run = self._runs.get(spec.route)
        if run is not None:
            words = tuple(with_port(word, run.port) for word in words)
        inherited = {each: os.environ[each] for each in _TELLING if each in os.environ}
        return succeed(Facts(words, {**inherited, **spec.environment}, None, name))

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        return execute(self._log(spec.route).tail, tail)

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        log = self._log(spec.route)
        try:
            following = log.follow(tail, line)
        except OSError:
            return fail()
        if spec.route not in self._runs:
            log.end()
        return following

    # -- Finding what an earlier proxy left ----------------------------------------------------------------

    def end_strays(self, known: Iterable[BackendSpec]) -> Deferred[None]:
        """End the children of an earlier proxy that the configuration does not ask for any more: their route
        is gone, or they were started from another command.  Fires when they have ended; what cannot be seen
        is looked at again.

        :param known: the process backends of the present configuration.
        """
        return Deferred.fromCoroutine(self._end_strays({spec.route: command_hash(spec) for spec in known}))

    async def _end_strays(self, wanted: Mapping[str, str]) -> None:
        left: list[str] = []

        def look() -> Deferred[None]:
            left[:] = [route for route, _ in self._records.all()]
            return succeed(None)

        await self._insist(look, "what an earlier proxy left", self._is_open)
        ends = [Deferred.fromCoroutine(self._end_stray(route, wanted.get(route))) for route in left]
        await gatherResults(ends, consumeErrors=True)

    async def _end_stray(self, route: str, command: str | None) -> None:
        def end() -> Deferred[None]:
            # It may have been adopted while nobody could look at it.
            record = None if route in self._runs else self._records.read(route)
            if record is None or (record.command == command and record.is_alive()):
                return succeed(None)
            return self._end(route, record)

        with suppress(CancelledError):  # this proxy ends before it does
            await self._insist(end, f"what an earlier proxy left of {route}", self._is_open)

    def _is_open(self) -> bool:
        return not self._closed

    def _end(self, route: str, record: Record) -> Deferred[None]:
        return self.spared(route).addCallback(lambda _: self._end_now(route, record))

    def _end_now(self, route: str, record: Record) -> Deferred[None]:
        if record.boot != boot_id():
            self._records.forget(route, record.run)
            return succeed(None)

        def over(group: Group) -> None:
            self._ending.remove(group)
            self._records.forget(route, record.run)

        # A dead leader may have left others of its session behind.
        grace = STRAY_GRACE if record.is_alive() else 0
        group = Group(self._reactor, record.pid, record.start_time, over)
        self._ending.append(group)
        ended = group.stop(grace)
        group.observe()
        return ended

    def _adopt(self, spec: BackendSpec) -> Deferred[None]:
        """Take over a child of an earlier proxy, or end it if its command is another one now.

        :raises OSError: it cannot be told whether there is one.
        """
        record = None if spec.route in self._runs else self._records.read(spec.route)
        if record is None:
            return succeed(None)
        if not record.is_alive() or record.command != command_hash(spec):
            return self._end(spec.route, record)
        self._take_over(spec, record)
        return succeed(None)

    def _take_over(self, spec: BackendSpec, record: Record) -> None:
        run = self._add(spec, record)
        # It may have ended since it was looked at.
        run.group.observe()
        if not run.group.is_over:
            self._log(spec.route).begin()

    def _add(self, spec: BackendSpec, record: Record) -> _Run:
        route = spec.route
        address = Address("127.0.0.1", record.port, "process")
        group = Group(self._reactor, record.pid, record.start_time, lambda _: self._over(spec, run))
        instance = Instance(record.run, (address,), record.started_at or None)
        run: _Run = _Run(group, instance, record.port)
        self._runs[route] = run
        return run

    # -- Starting and ending -------------------------------------------------------------------------------

    def _start_over(self, result: Instance, route: str) -> Instance:
        self._starts.pop(route, None)
        return result

    async def _start(self, spec: BackendSpec) -> Instance:
        route = spec.route
        try:
            await self._adopt(spec)
            run = self._runs.get(route)
            if run is not None and run.group.has_ended:
                # Its leader is dead, and the rest of it must not hold the memory that the next one needs.
                await run.group.over()
                run = self._runs.get(route)
            if run is None:
                run = self._spawn(spec)
                self._reactor.callLater(0, self._tell_running, route, run)
        except OSError as error:
            raise refused_for(spec, error) from error
        teller = self._tellers.get(route)
        if teller is not None:
            teller.answered(run.instance)
        return run.instance

    def _tell_running(self, route: str, run: _Run) -> None:
        teller = self._tellers.get(route)
        if teller is not None and self._runs.get(route) is run:
            teller.running(run.instance)

    def _spawn(self, spec: BackendSpec) -> _Run:
        if self._unkept:
            raise StartRefused(
                f"backend {spec.route!r} cannot be started: {self._unkept}",
                "Have state_dir (LLMPROXY_STATE_DIR) name a folder that llmproxy's user may write to.",
            )
        port, give_back = self._port_for(spec)
        try:
            child, record = self._begin(spec, port)
        except BaseException:
            give_back()
            raise
        run = self._add(spec, record)
        run.give_back = give_back
        self._log(spec.route).begin()
        # Not at once: that it runs is told before that it has ended.
        self._reactor.callLater(0, child.tell_end, run.group.leader_ended)
        return run

    def _port_for(self, spec: BackendSpec) -> tuple[int, Callable[[], None]]:
        """Its port, and what gives that back."""
        if not spec.port:
            return free_port({run.port for run in self._runs.values()})
        if is_taken(spec.port):
            refused = f"backend {spec.route!r} cannot be started:"
            if is_listened_on(spec.port):
                raise StartRefused(
                    f"{refused} something else listens on its port {spec.port}",
                    "End that program, or give the backend another `port`.",
                )
            raise StartRefused(
                f"{refused} a connection of another program has its port {spec.port}",
                "Try again, or give the backend a `port` that no connection is given"
                " (net.ipv4.ip_local_port_range): mostly one below 32768.",
            )
        return spec.port, lambda: None

    def _begin(self, spec: BackendSpec, port: int) -> tuple[Child, Record]:
        environment = child_environment(os.environ, spec, port, self._backend_key, self._secret_names)
        executable = find_command(spec, environment)
        words = [with_port(word, port) for word in (*spec.command, *spec.args)]
        started_at = time.time()
        draft = self._records.draft(spec, port, started_at)
        shim = [sys.executable, "-I", "-S", "-c", SHIM, self._records.path(spec.route), draft, executable]
        child = Child()
        try:
            self._spawn_child(child, spec, [*shim, *words], environment)
            return child, self._recorded(spec, child.pid, port, started_at)
        except OSError:
            if child.pid:
                # Nobody would know of it.  If it has ended its number may be another's.
                with suppress(ProcessExitedAlready):
                    child.kill()
            raise

    def _spawn_child(
        self, child: Child, spec: BackendSpec, words: list[str], environment: Mapping[str, str]
    ) -> None:
        with ExitStack() as files:
            log = self._log(spec.route).open_new()
            files.callback(os.close, log)
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            files.callback(os.close, nothing)
            self._reactor.spawnProcess(
                child, words[0], words, environment, spec.cwd, childFDs={0: nothing, 1: log, 2: log}
            )

    def _recorded(self, spec: BackendSpec, pid: int, port: int, started_at: float) -> Record:
        info = read_process(pid)
        if info is not None:
            record = Record(pid, info.start_time, boot_id(), port, command_hash(spec), started_at)
            # The child writes the same; now nobody has to wait for it.
            self._records.write(spec.route, record)
            return record
        # It has ended and is gone.
        written = self._records.read(spec.route)
        if written is not None and written.pid == pid:
            return written
        # It did not get as far as to write; what is no start time of any process still names this run.
        return Record(pid, -int(started_at * 1000), boot_id(), port, command_hash(spec), started_at)

    async def _adopt_and_stop(self, spec: BackendSpec, grace: float) -> None:
        await self._adopt(spec)
        run = self._runs.get(spec.route)
        if run is not None:
            await run.group.stop(grace)

    def _over(self, spec: BackendSpec, run: _Run) -> None:
        run.give_back()
        if self._closed:
            return
        route = spec.route
        if self._runs.get(route) is run:
            del self._runs[route]
        self._records.forget(route, run.instance.run)
        self._log(route).end()
        next_one = self._next_run(spec)
        teller = self._tellers.get(route)
        if teller is not None and next_one is not None:
            teller.replaced(next_one.instance)
        elif teller is not None:
            teller.ended(run.instance.run, Exit(run.group.code))

    def _next_run(self, spec: BackendSpec) -> _Run | None:
        """What the proxy that gives its place to this one has started since, of which nothing else tells."""
        if spec.route in self._runs:
            return None
        try:
            record = self._records.read(spec.route)
            if record is None or record.command != command_hash(spec) or not record.is_alive():
                return None
        except OSError:
            return None
        self._take_over(spec, record)
        return self._runs.get(spec.route)

    def _log(self, route: str) -> LogFile:
        log = self._logs.get(route)
        if log is None:
            log = LogFile(self._reactor, os.path.join(self.state_dir, "logs", f"{route}.log"))
            self._logs[route] = log
        return log
