"""NVML before a real GPU: its memory, and how soon it is free again after a process was killed.

It needs no more than pytest, Twisted, attrs and nvidia-ml-py, so that it runs on a machine that has a GPU and
little else; the settings and fixtures of the other tests are left out there::

    python3 -m pytest -c /dev/null --rootdir=. --noconftest -p no:cacheprovider -rs -s \\
        tests/integration/test_gpu.py

What was measured is printed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from twisted.internet.task import Clock

from llmproxy.runtimes.gpus import EVERY, AbsentMeter, IGpuMeter, open_nvml, settle

GIB = 1024**3
GPU = "0"
PATIENCE = 60.0
"""Seconds that a child may take to load CUDA."""

SLACK = GIB // 4
"""Bytes that may come and go beside what a test takes."""

TAKE = """\
import ctypes, sys
amount = int(sys.argv[1])
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    sys.exit(f"no CUDA driver library: {error}")

def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status:
        sys.exit(f"{name} gave {status}")

device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(amount))
call("cuMemsetD8_v2", memory, ctypes.c_ubyte(1), ctypes.c_size_t(amount))
call("cuCtxSynchronize")
print("taken", flush=True)
sys.stdin.read()
"""
"""Takes memory of the GPU until its standard input ends.  The driver's own library does it in a second, where
to import torch takes many, and it is wherever a GPU is."""


@pytest.fixture(scope="module")
def meter() -> IGpuMeter:
    """This machine's."""
    begun = time.monotonic()
    meter = open_nvml()
    if isinstance(meter, AbsentMeter):
        pytest.skip(meter.reason)
    print(f"\nNVML was initialised in {(time.monotonic() - begun) * 1000:.1f} ms")
    if meter.free(GPU) is None:
        pytest.skip(f"NVML does not tell the memory of GPU {GPU}")
    return meter


def known(value: int | None) -> int:
    """What has to be known here."""
    assert value is not None
    return value


@contextmanager
def taking(amount: int) -> Iterator[subprocess.Popen[str]]:
    """A child process that has taken so much memory."""
    child = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(amount)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # What hangs in a driver would hang the tests.
    overdue = threading.Timer(PATIENCE, child.kill)
    overdue.start()
    try:
        assert child.stdout is not None
        assert child.stderr is not None
        if child.stdout.readline() != "taken\n":
            reason = child.stderr.read().strip()
            if "no CUDA driver library" in reason:
                pytest.skip(reason)
            pytest.fail(f"cannot take {amount} bytes: {reason}")
        overdue.cancel()
        yield child
    finally:
        overdue.cancel()
        child.kill()
        child.communicate()


def wait_for(meter: IGpuMeter, enough: int, bound: float) -> bool:
    """:func:`settle` in real time."""
    clock = Clock()
    begun = time.monotonic()
    fired: list[bool] = []
    settle(clock, meter, {GPU: enough}, bound).addCallback(fired.append)
    while not fired:
        time.sleep(0.005)
        clock.advance(time.monotonic() - begun - clock.seconds())
    assert clock.getDelayedCalls() == []
    return fired[0]


def test_memory_is_plausible(meter: IGpuMeter) -> None:
    """No GPU has less than 1 GiB or more than 1 TiB, and no more is free than there is."""
    total, free = known(meter.total(GPU)), known(meter.free(GPU))
    print(f"\nGPU {GPU}: {free / GIB:.2f} of {total / GIB:.2f} GiB are free")
    assert GIB < total < 1024 * GIB
    assert 0 < free <= total


def test_a_reading_is_short(meter: IGpuMeter) -> None:
    """At rest, it could be done between two events of a reactor."""
    durations = [duration(lambda: meter.free(GPU)) for _ in range(200)]
    print(f"\na reading took {summary(durations)}")
    assert sorted(durations)[100] < 0.01


def test_a_gpu_that_is_not_there(meter: IGpuMeter) -> None:
    """The real library's errors are no answer."""
    assert meter.free("99") is None
    assert meter.total("GPU-00000000-0000-0000-0000-000000000000") is None
    assert meter.free("") is None


def test_the_bound_holds(meter: IGpuMeter) -> None:
    """More than there is will never be free."""
    begun = time.monotonic()
    assert not wait_for(meter, known(meter.total(GPU)) + 1, 0.5)
    assert 0.5 <= time.monotonic() - begun < 1.5


def test_memory_that_a_killed_process_had(meter: IGpuMeter) -> None:
    """It is missed while the process lives, and waited for when it was killed."""
    before = known(meter.free(GPU))
    amount = max(GIB, before // 2)
    if before < amount + SLACK:
        pytest.skip(f"only {before / GIB:.2f} GiB are free")
    with taking(amount) as child:
        taken = before - known(meter.free(GPU))
        assert taken >= amount
        assert not wait_for(meter, before - SLACK, 3 * EVERY)
        killed = time.monotonic()
        child.kill()
        assert wait_for(meter, before - SLACK, 30.0)
        settled = time.monotonic() - killed
        child.wait(PATIENCE)
        ended = time.monotonic() - killed
    print(
        f"\na killed process had {taken / GIB:.2f} GiB ({(taken - amount) / GIB:.2f} GiB beside what it asked"
        f" for): settled after {settled:.3f} s, and its end was seen by then or after {ended:.3f} s"
    )


def test_how_long_after_its_end(meter: IGpuMeter) -> None:
    """Whether memory is free when a process has ended, and how long a reading takes meanwhile."""
    before = known(meter.free(GPU))
    amount = max(GIB, before // 2)
    if before < amount + SLACK:
        pytest.skip(f"only {before / GIB:.2f} GiB are free")
    durations: list[float] = []
    with taking(amount) as child:
        killed = time.monotonic()
        child.kill()
        ended = freed = 0.0
        while not (ended and freed):
            assert time.monotonic() < killed + 30
            begun = time.monotonic()
            free = known(meter.free(GPU))
            now = time.monotonic()
            durations.append(now - begun)
            if not freed and free >= before - SLACK:
                freed = now - killed
            if not ended and child.poll() is not None:
                ended = now - killed
            time.sleep(0.001)
    print(
        f"\n{amount / GIB:.2f} GiB: the process ended {ended:.3f} s after the kill, its memory was free"
        f" after {freed:.3f} s; a reading meanwhile took {summary(durations)}"
    )


def duration(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def summary(durations: list[float]) -> str:
    """For a person."""
    ordered = sorted(durations)
    return (
        f"{ordered[len(ordered) // 2] * 1000:.3f} ms (median), {ordered[-1] * 1000:.3f} ms (longest of"
        f" {len(ordered)})"
    )
