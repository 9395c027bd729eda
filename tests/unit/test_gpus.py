"""What NVML tells, with a library that does as the test wants, and with the real one and no driver."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.runtimes.docker_threads import Lane
from llmproxy.runtimes.gpus import (
    EVERY,
    PATIENCE,
    AbsentMeter,
    IGpuMeter,
    NvmlMeter,
    find_meter,
    is_absent,
    open_nvml,
    settle,
)

GIB = 1024**3


class NVMLError(Exception):
    """As pynvml's."""


@define
class Memory:
    """As ``nvmlMemory_t``."""

    total: int
    free: int


@define
class FakeNvml:
    """Stands where the module ``pynvml`` would."""

    gpus: dict[str, Memory] = field(factory=dict)
    uuids: dict[str, str] = field(factory=dict)
    failure: Exception | None = None
    initialised: bool = False
    handles: int = 0

    def nvmlInit(self) -> None:
        self._fail()
        self.initialised = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self._handle(str(index))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return self._handle(self.uuids.get(uuid, uuid))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Memory:
        self._fail()
        return self.gpus[handle]

    def _handle(self, gpu: str) -> str:
        assert self.initialised
        self._fail()
        if gpu not in self.gpus:
            raise NVMLError("Not Found")
        self.handles += 1
        return gpu

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class MeterTests(SynchronousTestCase):
    """Two GPUs, one of which is named by its UUID as well."""

    def setUp(self) -> None:
        self.nvml = FakeNvml({"0": Memory(24 * GIB, 23 * GIB), "1": Memory(8 * GIB, 0)}, {"GPU-1234": "1"})
        self.meter = open_nvml(lambda: self.nvml)
        self.events: list[dict[str, Any]] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def told(self) -> list[str]:
        """What was told of GPUs since the last time."""
        told = [event["gpu"] for event in self.events if event["log_level"] == LogLevel.warn]
        self.events.clear()
        return told

    def test_memory(self) -> None:
        """By index and by UUID; a handle is looked up once."""
        for _ in range(3):
            self.assertEqual((self.meter.total("0"), self.meter.free("0")), (24 * GIB, 23 * GIB))
            self.assertEqual((self.meter.total("GPU-1234"), self.meter.free("1")), (8 * GIB, 0))
        self.assertEqual(self.nvml.handles, 3)
        self.assertFalse(is_absent(self.meter))

    def test_a_gpu_that_is_not_there(self) -> None:
        """Nothing is known of it, which is told once."""
        for _ in range(3):
            self.assertIsNone(self.meter.free("7"))
            self.assertIsNone(self.meter.total("MIG-1"))
        self.assertEqual(self.told(), ["7", "MIG-1"])

    def test_a_driver_that_goes_and_comes(self) -> None:
        """Whatever it raises; each time that it goes is told once, and handles are looked up anew."""
        self.meter.free("0")
        for failure in (NVMLError("GPU is lost"), OSError("libnvidia-ml.so.1"), AttributeError("x")):
            self.nvml.failure = failure
            self.assertEqual([self.meter.free("0") for _ in range(3)], [None] * 3)
            self.nvml.failure = None
            self.assertEqual(self.meter.free("0"), 23 * GIB)
            self.assertEqual(self.told(), ["0"])
        self.assertEqual(self.nvml.handles, 4)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ImportError("No module named 'pynvml'"), "nvidia-ml-py is not installed"),
        (OSError("no such file"), "nvidia-ml-py does not load: no such file"),
    ],
)
def test_no_library(failure: Exception, reason: str) -> None:
    """A meter that says why it knows nothing."""

    def load() -> Any:
        raise failure

    meter = open_nvml(load)
    assert isinstance(meter, AbsentMeter)
    assert meter.reason.startswith(reason)


def test_no_driver_and_no_gpu() -> None:
    """NVML is there, and there is nothing to measure."""
    absent = open_nvml(lambda: FakeNvml(failure=NVMLError("Driver Not Loaded")))
    assert absent == AbsentMeter("NVML does not answer: Driver Not Loaded")
    assert absent.total("0") is absent.free("0") is None
    assert open_nvml(lambda: FakeNvml()) == AbsentMeter("NVML finds no GPU")


def test_the_real_library() -> None:
    """Where there is no driver the meter is absent; where there is a GPU it is read."""
    pytest.importorskip("pynvml")
    meter = open_nvml()
    if isinstance(meter, AbsentMeter):
        assert "NVML " in meter.reason or "driver" in meter.reason
        assert meter.free("0") is None
    else:
        assert isinstance(meter, NvmlMeter)


class FindTests(SynchronousTestCase):
    """NVML is opened in a thread."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        reactor: Any = self
        self.lane = Lane(reactor, "nvml", 1)
        self.addCleanup(self.lane.close)

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        """As the reactor's."""
        self.calls.put(lambda: call(*arguments))

    def test_found(self) -> None:
        """As soon as it has been opened."""
        meter = NvmlMeter(FakeNvml())
        found = find_meter(self.clock, self.lane.run, opened=lambda: meter)
        self.assertNoResult(found)
        self.calls.get(timeout=10)()
        self.assertIs(self.successResultOf(found), meter)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_hangs(self) -> None:
        """Is not waited for longer than is patient."""
        hanging: Deferred[IGpuMeter] = Deferred()
        found = find_meter(self.clock, lambda job: hanging)
        self.clock.advance(PATIENCE)
        self.assertEqual(
            self.successResultOf(found), AbsentMeter(f"NVML does not answer: not within {PATIENCE:g} s")
        )

    def test_threads_that_have_ended(self) -> None:
        """The proxy ends: nothing is known, and nothing fails."""
        self.lane.close()
        meter = self.successResultOf(find_meter(self.clock, self.lane.run))
        self.assertTrue(is_absent(meter))
        self.assertEqual(self.clock.getDelayedCalls(), [])


@define
class Meter:
    """Says what the test wants, and counts how often it was asked."""

    memory: dict[str, int | None]
    asked: int = 0

    def total(self, gpu: str) -> int | None:
        """Not asked for here."""
        raise NotImplementedError

    def free(self, gpu: str) -> int | None:
        """See :class:`IGpuMeter`."""
        self.asked += 1
        return self.memory.get(gpu)


class SettleTests(SynchronousTestCase):
    """Memory that comes back when the test gives it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.meter = Meter({"0": 5, "1": 20, "2": None})

    def test_nobody_waits_where_nothing_is_known(self) -> None:
        """No meter, a GPU that cannot be read, nothing wanted."""
        for meter, enough in (
            (AbsentMeter("no driver"), {"0": 10}),
            (self.meter, {"2": 10, "unheard of": 10}),
            (self.meter, {}),
        ):
            self.assertIs(self.successResultOf(settle(self.clock, meter, enough, 5.0)), True)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_free_already(self) -> None:
        """At once, even where there is no time to wait."""
        self.assertIs(self.successResultOf(settle(self.clock, self.meter, {"0": 5, "1": 10}, 0.0)), True)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_as_soon_as_all_are_free(self) -> None:
        """Each GPU has to have its own amount."""
        done = settle(self.clock, self.meter, {"0": 10, "1": 30}, 5.0)
        self.clock.pump([EVERY] * 3)
        self.meter.memory["0"] = 10
        self.clock.advance(EVERY)
        self.assertNoResult(done)
        self.meter.memory["1"] = 31
        self.clock.advance(EVERY)
        self.assertIs(self.successResultOf(done), True)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_bound(self) -> None:
        """It is not free when the time is over."""
        done = settle(self.clock, self.meter, {"0": 10}, 1.0)
        self.clock.pump([EVERY] * int(0.99 / EVERY))
        self.assertNoResult(done)
        self.clock.advance(EVERY)
        self.assertIs(self.successResultOf(done), False)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn(self.meter.asked, range(int(1 / EVERY), int(1 / EVERY) + 3))

    def test_a_reading_that_hangs(self) -> None:
        """The bound holds all the same, and the reading is given up."""
        gone: list[object] = []
        reading: Deferred[bool] = Deferred(gone.append)
        done = settle(self.clock, self.meter, {"0": 10}, 1.0, run=lambda job: reading)
        self.clock.advance(1.0)
        self.assertIs(self.successResultOf(done), False)
        self.assertEqual(gone, [reading])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_threads_that_have_ended(self) -> None:
        """Nobody can tell any more, so nobody waits."""
        reading: Deferred[bool] = Deferred()
        done = settle(self.clock, self.meter, {"0": 10}, 1.0, run=lambda job: reading)
        reading.cancel()
        self.assertIs(self.successResultOf(done), True)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Nothing goes on, whether it was reading or waiting."""
        done = settle(self.clock, self.meter, {"0": 10}, 1.0)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        reading: Deferred[bool] = Deferred()
        done = settle(self.clock, self.meter, {"0": 10}, 1.0, run=lambda job: reading)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(reading.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])
