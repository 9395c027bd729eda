"""What NVML tells of the GPUs' memory, and waiting until memory that was given up is free.

NVML is optional (``pip install 'llmproxy[nvml]'``).  Without the library, a driver or a GPU there is a meter
that knows nothing, and nobody waits for it.  Only a device's memory is asked: that of single processes is
not known in WSL2.

NVML blocks.  To initialise it takes seconds where the driver has to wake the GPU, so that :func:`find_meter`
does it in a thread.  A reading takes well under a millisecond at rest, but it waits for the driver's locks,
and those are held longest while a process that had much memory is torn down, which is when :func:`settle`
asks: with other streams flowing, give it a thread to read in (``run``).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, TimeoutError, execute, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = [
    "EVERY",
    "PATIENCE",
    "AbsentMeter",
    "IGpuMeter",
    "NvmlMeter",
    "find_meter",
    "is_absent",
    "open_nvml",
    "settle",
]

EVERY = 0.08
"""Seconds between two readings: what is noticed later than it could be is lost in a start of many seconds."""

_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""What a driver's library talks to: on Linux, and in WSL2."""

PATIENCE = 20.0
"""Seconds that NVML may take to initialise; a GPU that sleeps takes some of them to wake."""


class IGpuMeter(Protocol):
    """Reads the memory of GPUs.  Never raises; may block for a moment; may be used in any one thread.

    A GPU is named by its index (``"0"``, in the order of the PCI bus, as ``nvidia-smi`` and the container
    toolkit count) or its UUID (``"GPU-..."``, ``"MIG-..."``).
    """

    def total(self, gpu: str) -> int | None:
        """Bytes that it has; None when that is not known."""

    def free(self, gpu: str) -> int | None:
        """Bytes of it that nobody has taken; None when that is not known."""


@frozen
class AbsentMeter:
    """Knows nothing.

    :ivar reason: why, for a person.
    """

    reason: str

    def total(self, gpu: str) -> int | None:
        """See :class:`IGpuMeter`."""
        return None

    def free(self, gpu: str) -> int | None:
        """See :class:`IGpuMeter`."""
        return None


@define(eq=False)
class NvmlMeter:
    """Reads by NVML.

    :param nvml: the module ``pynvml``, initialised.
    """

    _nvml: Any
    _handles: dict[str, Any] = field(factory=dict, init=False)
    # GPUs that cannot be read, so that it is told once.
    _unread: set[str] = field(factory=set, init=False)
    _log = Logger()

    def total(self, gpu: str) -> int | None:
        """See :class:`IGpuMeter`."""
        return self._read(gpu, "total")

    def free(self, gpu: str) -> int | None:
        """See :class:`IGpuMeter`."""
        return self._read(gpu, "free")

    def _read(self, gpu: str, figure: str) -> int | None:
        if "/" in gpu:
            # Another host's.
            return None
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle(gpu))
            amount = int(getattr(memory, figure))
        except Exception as error:  # whatever a driver does, backends start without it
            self._handles.pop(gpu, None)
            if gpu not in self._unread:
                self._log.warn(
                    "NVML does not tell the memory of GPU {gpu}: {error}", gpu=gpu, error=_words(error)
                )
            self._unread.add(gpu)
            return None
        self._unread.discard(gpu)
        return amount

    def _handle(self, gpu: str) -> Any:
        handle = self._handles.get(gpu)
        if handle is None:
            if gpu.isdecimal():
                handle = self._nvml.nvmlDeviceGetHandleByIndex(int(gpu))
            else:
                handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu)
            self._handles[gpu] = handle
        return handle


def _load() -> Any:
    """The module, which is large, where there is a driver that it could ask.

    :raises LookupError: there is none.
    """
    if not driver_is_here():
        raise LookupError("there is no NVIDIA driver here (" + " or ".join(_DEVICES) + ")")
    return importlib.import_module("pynvml")


def driver_is_here() -> bool:
    """Whether there is what NVML's library talks to."""
    return any(os.path.exists(device) for device in _DEVICES)


def open_nvml(load: Callable[[], Any] = _load) -> IGpuMeter:
    """A meter that reads by NVML, or one that knows nothing.  Blocks, possibly for seconds; never raises.

    :param load: gives the module ``pynvml``.
    """
    try:
        nvml = load()
    except LookupError as error:
        return AbsentMeter(str(error.args[0]))
    except ImportError:
        return AbsentMeter("nvidia-ml-py is not installed (pip install 'llmproxy[nvml]')")
    except Exception as error:  # a broken installation may raise anything
        return AbsentMeter(f"nvidia-ml-py does not load: {_words(error)}")
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception as error:  # a missing driver is NVMLError, a broken library may be anything
        return AbsentMeter(f"NVML does not answer: {_words(error)}")
    return NvmlMeter(nvml) if count else AbsentMeter("NVML finds no GPU")


def find_meter(
    clock: IReactorTime,
    run: Callable[[Callable[[], IGpuMeter]], Deferred[IGpuMeter]],
    *,
    opened: Callable[[], IGpuMeter] = open_nvml,
) -> Deferred[IGpuMeter]:
    """The meter of this machine; never fails, and fires after :data:`PATIENCE` at the latest.

    :param run: carries out a blocking call in a thread (:meth:`llmproxy.runtimes.docker_threads.Lane.run`).
    """

    def absent(failure: Failure) -> IGpuMeter:
        late = failure.check(TimeoutError) is not None
        return AbsentMeter(
            "NVML does not answer: " + (f"not within {PATIENCE:g} s" if late else _words(failure.value))
        )

    return run(opened).addTimeout(PATIENCE, clock).addErrback(absent)


def is_absent(meter: IGpuMeter) -> bool:
    """Whether it knows nothing of any GPU."""
    return isinstance(meter, AbsentMeter)


def settle(
    clock: IReactorTime,
    meter: IGpuMeter,
    enough: Mapping[str, int],
    bound: float,
    *,
    run: Callable[[Callable[[], bool]], Deferred[bool]] = execute,
) -> Deferred[bool]:
    """Wait until each GPU has so much memory free; a GPU of which nothing is known counts as settled.

    Fires with True as soon as that is so (at once where there is no meter), with False when ``bound`` seconds
    are over.  Cancelling it ends the waiting.

    :param enough: bytes that are wanted free, by GPU.
    :param run: carries out a reading; a thread's :meth:`~llmproxy.runtimes.docker_threads.Lane.run`.
    """
    if not enough or is_absent(meter):
        return succeed(True)
    return _Settling(clock, meter, dict(enough), run).begin(bound)


@define(eq=False)
class _Settling:
    _clock: IReactorTime
    _meter: IGpuMeter
    _enough: dict[str, int]
    _run: Callable[[Callable[[], bool]], Deferred[bool]]
    _done: Deferred[bool] = field(init=False)
    _calls: dict[str, IDelayedCall] = field(factory=dict, init=False)
    _reading: Deferred[bool] | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    def begin(self, bound: float) -> Deferred[bool]:
        self._done = Deferred(lambda _: self._end())
        done = self._done
        self._calls["bound"] = self._clock.callLater(bound, self._over)
        self._look()
        return done

    def _look(self) -> None:
        self._calls.pop("look", None)
        self._reading = self._run(self._is_enough)
        self._reading.addCallbacks(self._read, self._unread)

    def _is_enough(self) -> bool:
        for gpu, wanted in self._enough.items():
            free = self._meter.free(gpu)
            if free is not None and free < wanted:
                return False
        return True

    def _read(self, enough: bool) -> None:
        if self._ended:
            return
        if enough:
            self._end()
            self._done.callback(True)
        else:
            self._calls["look"] = self._clock.callLater(EVERY, self._look)

    def _unread(self, failure: Failure) -> None:
        # The thread has been closed: nobody can tell any more.
        self._read(True)

    def _over(self) -> None:
        self._calls.pop("bound", None)
        self._end()
        self._done.callback(False)

    def _end(self) -> None:
        self._ended = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.cancel()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()


def _words(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
