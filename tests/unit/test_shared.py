"""One thing that is under way, and several who wait for it."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Address, Instance, StartRefused
from llmproxy.runtimes.process import ProcessRuntime
from llmproxy.runtimes.shared import Shared, shielded

SPEC = BackendSpec("a", runtime="process", engine="generic", command=("true",))


class TestShared(SynchronousTestCase):
    """What each of those who wait is told; an error that nobody has heard of would fail the test."""

    def tearDown(self) -> None:
        gc.collect()

    def test_all_are_told(self) -> None:
        """The result, also those who ask when it is there."""
        inner: Deferred[str] = Deferred()
        shared = Shared(inner)
        waiting = [shared.wait(), shared.wait()]
        self.assertFalse(shared.over)
        inner.callback("done")
        self.assertTrue(shared.over)
        waiting.append(shared.wait())
        self.assertEqual([self.successResultOf(each) for each in waiting], ["done"] * 3)

    def test_all_are_told_of_a_failure(self) -> None:
        """Also those who ask when it is over."""
        inner: Deferred[str] = Deferred()
        shared = Shared(inner)
        waiting = [shared.wait(), shared.wait()]
        inner.errback(StartRefused("no"))
        waiting.append(shared.wait())
        for each in waiting:
            self.failureResultOf(each, StartRefused)

    def test_who_gives_up_leaves_the_others_alone(self) -> None:
        """And what they wait for, too."""
        inner: Deferred[str] = Deferred()
        shared = Shared(inner)
        patient, hasty, other = (shared.wait() for _ in range(3))
        hasty.cancel()
        self.failureResultOf(hasty, CancelledError)
        self.assertNoResult(patient)
        inner.callback("done")
        self.assertEqual([self.successResultOf(each) for each in (patient, other)], ["done"] * 2)

    def test_one_who_asks_when_another_is_told(self) -> None:
        """Is told as well."""
        inner: Deferred[str] = Deferred()
        shared = Shared(inner)
        late: list[Deferred[str]] = []
        shared.wait().addCallback(lambda _: late.append(shared.wait()))
        inner.callback("done")
        self.assertEqual(self.successResultOf(late[0]), "done")

    def test_nobody_waits_any_more_when_it_fails(self) -> None:
        """Then nobody needs to hear of that."""
        inner: Deferred[str] = Deferred()
        hasty = Shared(inner).wait()
        hasty.cancel()
        self.failureResultOf(hasty, CancelledError)
        inner.errback(StartRefused("no"))

    def test_it_is_given_up(self) -> None:
        """All who wait hear of it."""
        shared: Shared[str] = Shared(Deferred())
        waiting = [shared.wait(), shared.wait()]
        shared.cancel()
        for each in waiting:
            self.failureResultOf(each, CancelledError)

    def test_a_shield(self) -> None:
        """The result passes it, also one that is there already."""
        self.assertEqual(self.successResultOf(shielded(succeed("done"))), "done")
        self.failureResultOf(shielded(fail(StartRefused("no"))), StartRefused)


class TestOneStartForSeveral(SynchronousTestCase):
    """A start that is asked for while it is under way."""

    def setUp(self) -> None:
        self.runtime = ProcessRuntime(Clock(), "/nowhere")  # type: ignore[arg-type]
        self.begun: list[Deferred[Instance]] = []

        async def start(spec: BackendSpec) -> Instance:
            self.begun.append(Deferred())
            return await self.begun[-1]

        self.patch(ProcessRuntime, "_start", lambda _, spec: start(spec))

    def tearDown(self) -> None:
        gc.collect()

    def asked(self) -> list[Deferred[Instance]]:
        return [self.runtime.ensure_started(SPEC) for _ in range(3)]

    def test_all_get_the_instance(self) -> None:
        """Of the one start."""
        instance = Instance("run", (Address("127.0.0.1", 1, "process"),))
        waiting: list[Any] = self.asked()
        waiting.pop(1).addErrback(lambda _: None).cancel()
        self.begun[0].callback(instance)
        self.assertEqual([self.successResultOf(each) for each in waiting], [instance] * 2)
        self.assertEqual(len(self.begun), 1)
        self.runtime.ensure_started(SPEC)
        self.assertEqual(len(self.begun), 2)

    def test_all_hear_that_it_failed(self) -> None:
        """And the next one is another start."""
        waiting = self.asked()
        self.begun[0].errback(StartRefused("no"))
        for each in waiting:
            self.failureResultOf(each, StartRefused)
        self.runtime.ensure_started(SPEC)
        self.assertEqual(len(self.begun), 2)

    def test_all_are_given_up_at_the_end(self) -> None:
        """When the runtime closes."""
        waiting = self.asked()
        self.runtime.close()
        for each in waiting:
            self.failureResultOf(each, CancelledError)
