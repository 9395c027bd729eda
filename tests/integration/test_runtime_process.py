"""The process runtime with real children."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from pytest_twisted import blockon
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes import process_logs
from llmproxy.runtimes.interface import Exit, StartRefused
from llmproxy.runtimes.process import ProcessRuntime
from llmproxy.runtimes.process_child import Child
from llmproxy.runtimes.process_group import POLL_EVERY, read_process
from llmproxy.runtimes.process_records import Records
from tests.contract_runtimes import Reactor, Rig, RuntimeContract, eventually, gone, on_reactor, pause, runs
from tests.descriptors import none_left
from tests.fakes import RecordingWatcher

ROOT = str(Path(__file__).resolve().parent.parent.parent)
REACTOR: Reactor = global_reactor
WELL_BEHAVED = "trap 'exit 143' TERM; echo hello; while :; do sleep 60 & wait $!; done"
STUBBORN = "trap '' TERM; echo hello; while :; do sleep 60; done"
# A leader that ends at TERM, and a grandchild in a group of its own that does not, as vLLM's engine may.
WITH_GRANDCHILD = """
import os, signal, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(600)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(600)
"""


def shell(route: str, script: str) -> BackendSpec:
    """A backend that is a shell script."""
    return BackendSpec(route, runtime="process", engine="generic", command=("sh", "-c", script))


def python(route: str, script: str) -> BackendSpec:
    """A backend that is a Python script."""
    return BackendSpec(route, runtime="process", engine="generic", command=(sys.executable, "-c", script))


@define
class ProcessRig:
    """A runtime with a state directory of its own."""

    reactor: Reactor
    state: Path
    can_stop: bool = True
    runtime: ProcessRuntime = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runtime = self.make_runtime()
        self.runtime.start()

    def make_runtime(self) -> ProcessRuntime:
        return ProcessRuntime(self.reactor, str(self.state), backend_key="k")

    def spec(self, route: str) -> BackendSpec:
        return shell(route, WELL_BEHAVED)

    def stubborn(self, route: str) -> BackendSpec:
        return shell(route, STUBBORN)

    def brief(self, route: str) -> BackendSpec:
        return shell(route, "exit 3")

    def broken(self, route: str) -> BackendSpec:
        return BackendSpec(route, runtime="process", command=("llmproxy-no-such-command",))

    def record(self, route: str) -> dict[str, int] | None:
        path = self.state / "processes" / f"{route}.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    async def pid(self, route: str) -> int:
        """Its process, once it has written its record."""
        await eventually(self.reactor, lambda: self.record(route))
        record = self.record(route)
        assert record is not None
        return record["pid"]

    async def kill(self, spec: BackendSpec) -> None:
        os.kill(await self.pid(spec.route), signal.SIGKILL)

    async def close(self) -> None:
        # One that has just begun has no record yet, and may not lead a group of its own.
        begun = [run.group.pid for run in self.runtime._runs.values()]
        recorded = [json.loads(path.read_text())["pid"] for path in (self.state / "processes").glob("*.json")]
        for pid in {*begun, *recorded}:
            for kill in (os.kill, os.killpg):
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
        await pause(self.reactor, 0.1)
        await self.runtime.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A runtime for one test; its children are killed afterwards."""
    made = ProcessRig(REACTOR, tmp_path)
    yield made
    blockon(Deferred.fromCoroutine(made.close()))


class TestProcessRuntime(RuntimeContract):
    """The contract."""


@on_reactor
async def test_port(rig: ProcessRig) -> None:
    """The free port stands in the command and the environment, and in the address."""
    spec = evolve(
        shell("a", "echo port=${port} PORT=$PORT X=$X; sleep 60"), environment={"X": "http://x:${port}"}
    )
    instance = await rig.runtime.ensure_started(spec)
    port = instance.addresses[0].port
    await eventually(rig.reactor, lambda: result(rig.runtime.logs(spec, 1)))
    assert await rig.runtime.logs(spec, 1) == f"port={port} PORT={port} X=http://x:{port}"
    assert (instance.addresses[0].host, instance.addresses[0].via) == ("127.0.0.1", "process")
    assert str(port) in (await rig.runtime.facts(spec)).args[2]
    await rig.runtime.stop(spec, 0)


def result(deferred: Deferred[str]) -> str:
    """The result of one that has fired."""
    found: list[str] = []
    deferred.addCallback(found.append)
    return found[0]


@on_reactor
async def test_environment(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child sees the backends' key, and none of the proxy's own settings and keys."""
    for name in ("LLMPROXY_ADMIN_KEY", "MAP__A__PORT", "VLLM_API_KEY", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "secret")
    spec = shell("a", "env | sort; exit 0")
    watcher = RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    assert dict(gone(watcher))[instance.run] == Exit(0)
    seen = (await rig.runtime.logs(spec, 500)).splitlines()
    assert "VLLM_API_KEY=k" in seen
    assert not [line for line in seen if "secret" in line]


@pytest.mark.parametrize("writes_record", [True, False])
@on_reactor
async def test_dead_before_it_is_known(
    rig: ProcessRig, writes_record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child whose end is seen while it is still being spawned is told of as ended, leaves no record, and
    can be started again."""
    known = Child.connectionMade

    def known_when_dead(child: Any) -> None:
        known(child)
        pid = child.transport.pid
        if not writes_record:
            os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    watcher, spec = RecordingWatcher(), shell("a", "exit 3")
    await rig.runtime.watch(spec, watcher)
    with monkeypatch.context() as patch:
        patch.setattr(Child, "connectionMade", known_when_dead)
        instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    assert dict(gone(watcher))[instance.run] == Exit(3 if writes_record else 137)
    await eventually(rig.reactor, lambda: rig.record("a") is None)
    again = await rig.runtime.ensure_started(spec)
    assert again.run != instance.run
    await eventually(rig.reactor, lambda: again.run in dict(gone(watcher)))


@pytest.mark.parametrize("lacks", ["descriptors", "room for its record"])
@on_reactor
async def test_what_it_needs_is_missing(rig: ProcessRig, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is refused with what to do, nothing runs of it, and the next one succeeds."""
    spec = rig.spec("a")
    begun: list[int] = []
    known = Child.connectionMade

    def made(child: Any) -> None:
        known(child)
        begun.append(child.pid)

    monkeypatch.setattr(Child, "connectionMade", made)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, ExitStack() as lacking:
        if lacks == "descriptors":
            lacking.enter_context(none_left())
        else:
            patch.setattr(Records, "write", full)
        with pytest.raises(StartRefused) as refused:
            await rig.runtime.ensure_started(spec)
    assert ("descriptor" if lacks == "descriptors" else "state_dir") in str(refused.value.hint)
    assert len(begun) == (lacks != "descriptors")
    for pid in begun:
        await eventually(rig.reactor, lambda pid=pid: read_process(pid) is None)  # type: ignore[misc]
    instance = await rig.runtime.ensure_started(spec)
    assert instance.run.startswith("process:")
    await rig.runtime.stop(spec, 5)


@on_reactor
async def test_a_port_of_its_own_that_is_taken(rig: ProcessRig) -> None:
    """What listens there is not taken for it: the start is refused and says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        spec = evolve(rig.spec("a"), port=port)
        with pytest.raises(StartRefused, match=f"something else listens on its port {port}"):
            await rig.runtime.ensure_started(spec)
    instance = await rig.runtime.ensure_started(spec)
    assert instance.addresses[0].port == port
    await rig.runtime.stop(spec, 5)


@on_reactor
async def test_no_place_for_its_state(tmp_path: Path) -> None:
    """Where the state folder cannot be made, only what needs it is refused, with what is to be done."""
    (tmp_path / "file").touch()
    runtime = ProcessRuntime(REACTOR, str(tmp_path / "file" / "state"))
    runtime.start()
    with pytest.raises(StartRefused, match="Not a directory") as refused:
        await runtime.ensure_started(shell("a", "exit 3"))
    assert "state_dir" in str(refused.value.hint)
    await runtime.close()


@on_reactor
async def test_grandchild_at_stop(rig: ProcessRig) -> None:
    """A stop is done when the grandchildren have ended, too, and they have until the end of the grace."""
    spec = python("a", WITH_GRANDCHILD)
    await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: result(rig.runtime.logs(spec, 1)))
    grandchild = int(await rig.runtime.logs(spec, 1))
    begun = rig.reactor.seconds()
    await rig.runtime.stop(spec, 1.0)
    assert rig.reactor.seconds() - begun >= 0.9
    info = read_process(grandchild)
    assert info is None or not info.alive
    assert rig.record("a") is None


@on_reactor
async def test_grandchild_of_a_dead_leader(rig: ProcessRig) -> None:
    """When the leader dies by itself its grandchildren are killed before the end is told."""
    spec, watcher = python("a", WITH_GRANDCHILD), RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: result(rig.runtime.logs(spec, 1)))
    grandchild = int(await rig.runtime.logs(spec, 1))
    await rig.kill(spec)
    await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
    info = read_process(grandchild)
    assert info is None or not info.alive


@on_reactor
async def test_second_term(rig: ProcessRig) -> None:
    """A TERM that is swallowed is followed by another one after half of the grace."""
    script = (
        "import signal, sys, time\n"
        "def again(*_):\n  signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "signal.signal(signal.SIGTERM, again)\nprint('hello', flush=True)\nwhile True: time.sleep(60)\n"
    )
    spec, watcher = python("a", script), RecordingWatcher()
    await rig.runtime.watch(spec, watcher)
    instance = await rig.runtime.ensure_started(spec)
    await eventually(rig.reactor, lambda: result(rig.runtime.logs(spec, 1)) == "hello")
    begun = rig.reactor.seconds()
    await rig.runtime.stop(spec, 3.0)
    assert 1.4 <= rig.reactor.seconds() - begun < 2.9
    assert dict(gone(watcher))[instance.run] == Exit(7)


@on_reactor
async def test_log_is_bounded(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that has grown too large keeps its newer half, and its process writes on into the same file."""
    monkeypatch.setattr(process_logs, "LARGEST", 20_000)
    monkeypatch.setattr(process_logs, "TRIM_EVERY", 0.1)
    spec = shell("a", "seq 10000; sleep 1; echo last; sleep 60")
    await rig.runtime.ensure_started(spec)
    lines: list[str] = []
    following = rig.runtime.follow_logs(spec, 0, lines.append)
    await eventually(rig.reactor, lambda: "last" in lines)
    assert lines.count("last") == 1
    assert len((await rig.runtime.logs(spec, 100_000)).encode()) < 20_000
    tail = (await rig.runtime.logs(spec, 3)).splitlines()
    assert tail == ["9999", "10000", "last"]
    await rig.runtime.stop(spec, 0)
    await following


@define(eq=False)
class _Proxy(ProcessProtocol):
    ended: Deferred[None] = field(factory=Deferred)
    said: bytes = b""

    def outReceived(self, data: bytes) -> None:
        self.said += data

    def errReceived(self, data: bytes) -> None:
        self.said += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


PROXY = """
import sys
from twisted.internet import reactor
from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.process import ProcessRuntime
runtime = ProcessRuntime(reactor, sys.argv[1], backend_key="k")
runtime.start()
spec = BackendSpec("a", runtime="process", engine="generic", command=("sh", "-c", sys.argv[2]))
reactor.callWhenRunning(lambda: runtime.ensure_started(spec).addCallback(lambda i: print(i.run, flush=True)))
reactor.run()
"""


async def orphan(rig: ProcessRig, script: str) -> str:
    """Have another proxy start a child, kill that proxy, and return the child's run."""
    protocol = _Proxy()
    proxy = rig.reactor.spawnProcess(
        protocol,
        sys.executable,
        [sys.executable, "-c", PROXY, str(rig.state), script],
        {**os.environ, "PYTHONPATH": ROOT},
    )
    await eventually(rig.reactor, lambda: protocol.said.endswith(b"\n"))
    proxy.signalProcess("KILL")
    await protocol.ended
    assert protocol.said.startswith(b"process:"), protocol.said.decode()
    return protocol.said.decode().strip()


@on_reactor
@pytest.mark.parametrize("pidfd", [True, False])
async def test_adopt_orphan(rig: ProcessRig, pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill -9 of the proxy its child goes on, is found again as the same run, and its end is seen."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    run = await orphan(rig, WELL_BEHAVED)
    await rig.pid("a")
    watcher, spec = RecordingWatcher(), shell("a", WELL_BEHAVED)
    await rig.runtime.watch(spec, watcher)
    assert runs(watcher) == [run]
    assert (await rig.runtime.ensure_started(spec)).run == run
    await eventually(rig.reactor, lambda: result(rig.runtime.logs(spec, 1)) == "hello")
    await rig.kill(spec)
    await eventually(rig.reactor, lambda: run in dict(gone(watcher)))
    assert rig.record("a") is None


@on_reactor
async def test_another_proxy_has_started_it_again(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees the end of a run late is told of the one after it, and never that there is none."""
    spec, watcher, clock = rig.spec("a"), RecordingWatcher(), Clock()
    first = await rig.runtime.ensure_started(spec)
    other = ProcessRuntime(clock, str(rig.state), backend_key="k")  # type: ignore[arg-type]
    other.start()
    monkeypatch.delattr(os, "pidfd_open")
    await other.watch(spec, watcher)
    await rig.runtime.stop(spec, 5)
    second = await rig.runtime.ensure_started(spec)
    clock.advance(POLL_EVERY)
    assert [event[1].run for event in watcher.events] == [first.run, second.run]
    await rig.runtime.stop(spec, 5)
    clock.advance(POLL_EVERY)
    assert gone(watcher) == [(second.run, Exit())]
    assert rig.record("a") is None
    await other.close()


@on_reactor
async def test_orphan_of_another_command(rig: ProcessRig) -> None:
    """A child that was started from another command is ended, and is not adopted."""
    await orphan(rig, WELL_BEHAVED)
    pid = await rig.pid("a")
    watcher = RecordingWatcher()
    await rig.runtime.watch(shell("a", "sleep 61"), watcher)
    info = read_process(pid)
    assert info is None or not info.alive
    assert watcher.events == [("gone", None, Exit())]


@on_reactor
async def test_a_child_that_another_proxy_still_uses_is_spared(rig: ProcessRig) -> None:
    """What is not wanted any more ends when that one has let go of it."""
    await orphan(rig, WELL_BEHAVED)
    pid = await rig.pid("a")
    free: Deferred[None] = Deferred()
    rig.runtime.spared = lambda route: free
    watcher = RecordingWatcher()
    watched = rig.runtime.watch(shell("a", "sleep 61"), watcher)
    info = read_process(pid)
    assert info is not None
    assert info.alive
    free.callback(None)
    await watched
    info = read_process(pid)
    assert info is None or not info.alive


@on_reactor
async def test_stray(rig: ProcessRig) -> None:
    """A child whose route is gone from the configuration is ended; one that is wanted stays."""
    await orphan(rig, WELL_BEHAVED)
    pid = await rig.pid("a")
    await rig.runtime.end_strays([shell("a", WELL_BEHAVED)])
    info = read_process(pid)
    assert info is not None
    assert info.alive
    await rig.runtime.end_strays([])
    info = read_process(pid)
    assert info is None or not info.alive
    assert rig.record("a") is None


@on_reactor
async def test_reused_number(rig: ProcessRig) -> None:
    """A record whose number belongs to another process is forgotten, and that process is left alone."""
    path = rig.state / "processes" / "a.json"
    await rig.runtime.ensure_started(rig.spec("b"))
    await rig.pid("b")
    record = rig.record("b")
    assert record is not None
    path.write_text(json.dumps({**record, "start_time": 17}))
    watcher = RecordingWatcher()
    await rig.runtime.watch(rig.spec("a"), watcher)
    assert watcher.events == [("gone", None, Exit())]
    assert not path.exists()
    info = read_process(record["pid"])
    assert info is not None
    assert info.alive
    await rig.runtime.stop(rig.spec("b"), 0)
