"""The end of one run of a container: signals, looks and news in whatever order they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.runtimes.docker_state import Snapshot, read_snapshot
from llmproxy.runtimes.docker_stop import KILL_AGAIN, LOOK_EVERY, Stopping
from llmproxy.runtimes.interface import RuntimeUnavailable
from tests.engine_words import said

NOT_RUNNING = said(409, "is not running")
NOT_THERE = said(404, "no such container")

ID = "1" * 64
STARTED = "2026-01-01T00:00:00.000000001Z"
AGAIN = "2026-01-01T00:01:00.000000001Z"


def inspected(status: str = "running", started: str = STARTED) -> dict[str, Any]:
    alive = status in ("running", "paused", "restarting")
    state = {"Status": status, "Running": alive, "Paused": status == "paused", "StartedAt": started}
    state |= {"Restarting": status == "restarting", "Pid": 7 if alive else 0}
    return {"Id": ID, "Name": "/c", "State": state, "Config": {"StopSignal": "SIGINT"}}


class Engine:
    """Carries out what it is asked for a moment later, unless it is held; remembers it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.info = self.after_stop = inspected()
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.held: list[Deferred[None]] | None = None

    def call(self, what: Callable[[Any], Any]) -> Deferred[Any]:
        begun: Deferred[None] = Deferred()
        begun.addCallback(lambda _: what(self))
        if self.held is None:
            self.clock.callLater(0, begun.callback, None)
        else:
            self.held.append(begun)
        return begun

    def _do(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def kill(self, container: str, signal: str) -> None:
        self._do(signal)

    def unpause(self, container: str) -> None:
        self._do("unpause")

    def stop(self, container: str, timeout: int) -> None:
        self._do("stop", timeout)
        self.info = self.after_stop

    def inspect_container(self, container: str) -> dict[str, Any]:
        self._do("look")
        return self.info


class StopTests(SynchronousTestCase):
    """One stop."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.engine = Engine(self.clock)
        self.over: list[Stopping] = []

    def begin(self, grace: float = 10, status: str = "running") -> Deferred[None]:
        self.engine.info = inspected(status)
        snapshot: Snapshot = read_snapshot(self.engine.info)
        self.stopping = Stopping(self.clock, cast(Any, self.engine), snapshot, self.over.append)
        ending = self.stopping.start(grace)
        self.clock.advance(0)
        return ending

    def signals(self) -> list[Any]:
        return [each[0] for each in self.engine.asked if each[0] != "look"]

    def finished(self) -> None:
        """Nothing of it is left."""
        self.assertEqual((self.over, self.clock.getDelayedCalls()), ([self.stopping], []))

    def test_it_is_asked_twice_and_then_killed(self) -> None:
        """By its own signal, again after half of its time, and by KILL until it has ended."""
        ending = self.begin()
        self.clock.pump([1] * 31)
        self.assertEqual(self.signals(), ["SIGINT", "SIGINT", "SIGKILL", "SIGKILL", "SIGKILL"])
        self.assertNoResult(ending)
        self.engine.info = inspected("exited")
        self.clock.advance(LOOK_EVERY)
        self.successResultOf(ending)
        self.finished()

    def test_no_grace(self) -> None:
        """It is killed at once."""
        self.begin(0)
        self.assertEqual(self.signals(), ["SIGKILL"])

    def test_a_paused_one_goes_on_to_end(self) -> None:
        """It gets its signal before it goes on, so that it cannot serve in between."""
        self.begin(status="paused")
        self.assertEqual(self.signals(), ["SIGINT", "unpause"])

    def test_one_that_waits_for_its_restart_policy(self) -> None:
        """Only the engine's own stop ends that."""
        self.engine.after_stop = inspected("restarting")
        self.begin(status="restarting")
        self.clock.advance(KILL_AGAIN)
        self.assertEqual(self.signals(), ["stop", "stop"])

    def test_news_of_its_end(self) -> None:
        """That of an earlier run is none of it; a second one changes nothing."""
        ending = self.begin()
        self.stopping.died(0)
        self.assertNoResult(ending)
        self.stopping.died(read_snapshot(inspected()).started_ns)
        self.successResultOf(ending)
        self.stopping.died(read_snapshot(inspected()).started_ns)
        self.stopping.fail(Failure(CancelledError()))
        self.finished()

    def test_an_engine_that_starts_it_again(self) -> None:
        """It is told to stop in its own way."""
        self.begin()
        self.engine.info, self.engine.after_stop = inspected(started=AGAIN), inspected("exited", AGAIN)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(self.signals(), ["SIGINT", "stop"])
        self.finished()

    def test_one_that_does_not_run_any_more(self) -> None:
        """What the engine says to the signal is no matter: a look tells."""
        self.engine.error = NOT_RUNNING
        ending = self.begin()
        self.assertNoResult(ending)
        self.engine.error = None
        self.engine.info = inspected("exited")
        self.clock.advance(LOOK_EVERY)
        self.successResultOf(ending)
        self.finished()

    def ended(self, error: Exception) -> Iterator[Deferred[None]]:
        """A stop whose signal, and then one whose look, the engine answers with an error."""
        self.engine.error = error
        yield self.begin()
        self.finished()
        self.engine.error, self.over = None, []
        ending = self.begin()
        self.engine.error = error
        self.clock.advance(LOOK_EVERY)
        yield ending
        self.finished()

    def test_one_that_is_removed(self) -> None:
        """It has ended, whoever finds that out."""
        for ending in self.ended(NOT_THERE):
            self.successResultOf(ending)

    def test_an_engine_that_is_away(self) -> None:
        """It is told, by the signal or by a look."""
        for ending in self.ended(RuntimeUnavailable("away")):
            self.failureResultOf(ending, RuntimeUnavailable)

    def test_a_fault_of_ours(self) -> None:
        """A signal that cannot be sent ends it; a look that fails is tried again."""
        self.engine.error = RuntimeError("a fault")
        self.failureResultOf(self.begin(), RuntimeError)
        self.finished()
        self.engine.error, self.over = None, []
        ending = self.begin()
        self.engine.error = RuntimeError("a fault")
        with capturedLogs() as logs:
            self.clock.advance(LOOK_EVERY)
        self.assertNoResult(ending)
        self.assertEqual([each["log_level"] for each in logs], [LogLevel.debug])
        self.engine.error, self.engine.info = None, inspected("exited")
        self.clock.advance(LOOK_EVERY)
        self.successResultOf(ending)

    def test_answers_that_come_when_it_is_over(self) -> None:
        """They change nothing, whatever they say."""
        self.engine.held = []
        ending = self.begin()
        self.clock.advance(LOOK_EVERY)
        self.clock.advance(LOOK_EVERY)
        self.stopping.done()
        self.successResultOf(ending)
        signal, look, last = self.engine.held
        self.engine.error = NOT_RUNNING
        signal.callback(None)
        look.callback(None)
        self.engine.error = None
        last.callback(None)
        self.finished()

    def test_it_is_given_up(self) -> None:
        """Nobody waits for it any more, and nothing of it goes on."""
        ending = self.begin()
        ending.cancel()
        self.failureResultOf(ending, CancelledError)
        self.clock.advance(100)
        self.assertEqual(self.signals(), ["SIGINT"])
        self.finished()
