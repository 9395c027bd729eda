"""Who has how much of a pretended GPU's memory, and the errors that vLLM meets on a full one.  Pure.

:mod:`llmproxy.demo.gpus` keeps the ledger in a folder that several demo servers share, and
:mod:`llmproxy.demo.memory` is one server's way through it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from attrs import evolve, field, frozen

__all__ = [
    "GIB",
    "GpuError",
    "Ledger",
    "NeighbourChanged",
    "NoGpu",
    "NoRoom",
    "OutOfMemory",
    "Part",
    "choose",
    "gib",
    "size",
]

GIB = 1024**3
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1024, "mi": 1024**2, "gi": GIB, "ti": 1024**4}


def size(text: str) -> int:
    """Bytes of ``24GiB``, ``512 MiB``, ``24GB`` or ``1000``.

    :raises ValueError: it is no size.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no size, such as 24GiB")
    number, unit = found[1], found[2] or ""
    return int(float(number) * {**_UNITS, **_BINARY}[unit])


def gib(count: int) -> float:
    """Bytes in GiB, with the two decimals that vLLM's messages have."""
    return round(count / GIB, 2)


@frozen
class Part:
    """So many bytes, or a fraction of something."""

    fraction: float = 0.0
    bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``1GiB``, ``0.05`` or ``5%``.

        :raises ValueError: it is none of these.
        """
        text = text.strip()
        try:
            number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return cls(bytes=size(text))
        if not 0 <= number <= 1:
            raise ValueError(f"{text!r} is neither a part of one nor a size with its unit")
        return cls(fraction=number)

    def of(self, whole: int) -> int:
        """It in bytes, at most the whole."""
        return min(whole, math.ceil(self.fraction * whole) if self.bytes is None else self.bytes)


class GpuError(Exception):
    """vLLM would fail here; the text is the line that it would log.

    :cvar kind: one word for those who count.
    """

    kind = "gpu"


class NoGpu(GpuError):
    """There are not as many GPUs as are asked for."""

    kind = "no-gpu"


class NoRoom(GpuError):
    """Less is free at the start than the server is to have."""

    kind = "no-room"


class NeighbourChanged(GpuError):
    """What others use has changed while this server measured what it uses itself."""

    kind = "profiling"


class OutOfMemory(GpuError):
    """More was asked for than is free."""

    kind = "out-of-memory"


def choose(visible: str | None, count: int) -> tuple[str, ...]:
    """The GPUs that a server takes: the first ``count`` of those in ``CUDA_VISIBLE_DEVICES``.

    :param visible: that variable's value; ``None``: it is not set, and there are as many as are asked for.
    :raises NoGpu: there are fewer.
    """
    if visible is None:
        return tuple(str(number) for number in range(count))
    names = tuple(dict.fromkeys(name.strip() for name in visible.split(",") if name.strip()))
    if not names:
        raise NoGpu("RuntimeError: No CUDA GPUs are available")
    if len(names) < count:
        raise NoGpu(
            f"ValueError: World size ({count}) is larger than the number of available GPUs ({len(names)})"
        )
    return names[:count]


@frozen
class Ledger:
    """What each living server has of each GPU.

    :ivar total: bytes of every GPU.
    :ivar claims: bytes by server and by GPU.
    """

    total: int
    claims: Mapping[str, Mapping[str, int]] = field(factory=dict)

    def used(self, gpu: str) -> int:
        """Bytes in use on a GPU."""
        return sum(amounts.get(gpu, 0) for amounts in self.claims.values())

    def free(self, gpu: str) -> int:
        """Bytes that nobody has."""
        return self.total - self.used(gpu)

    def others(self, owner: str, gpus: Iterable[str]) -> dict[str, int]:
        """Bytes that everybody but ``owner`` has on each of the GPUs."""
        own = self.claims.get(owner, {})
        return {gpu: self.used(gpu) - own.get(gpu, 0) for gpu in gpus}

    def claimed(self, owner: str, gpus: Iterable[str], amount: int) -> Ledger:
        """The ledger in which ``owner`` has this much on each of these GPUs, and nothing elsewhere.

        :raises OutOfMemory: it does not fit on one of them; nothing is claimed then.
        """
        own, gpus = self.claims.get(owner, {}), tuple(gpus)
        for number, gpu in enumerate(gpus):
            more, free = amount - own.get(gpu, 0), self.free(gpu)
            if more > free:
                raise OutOfMemory(
                    f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {more / GIB:.2f} GiB. "
                    f"GPU {number} has a total capacity of {self.total / GIB:.2f} GiB of which "
                    f"{free / GIB:.2f} GiB is free."
                )
        return evolve(self, claims={**self.claims, owner: dict.fromkeys(gpus, amount)})

    def without(self, owner: str) -> Ledger:
        """The ledger after ``owner`` has died."""
        return evolve(self, claims={name: own for name, own in self.claims.items() if name != owner})

    def share(self, utilization: float) -> int:
        """What a server with this ``--gpu-memory-utilization`` is to have of each GPU."""
        return math.ceil(self.total * utilization)

    def check_room(self, gpus: Iterable[str], utilization: float) -> None:
        """vLLM's check before it loads anything.

        :raises NoRoom: less is free on one of the GPUs.
        """
        wanted = self.share(utilization)
        for free in map(self.free, gpus):
            if free < wanted:
                raise NoRoom(
                    f"ValueError: Free memory on device ({gib(free)}/{gib(self.total)} GiB) on startup is "
                    f"less than desired GPU memory utilization ({utilization}, {gib(wanted)} GiB). Decrease "
                    "GPU memory utilization or reduce GPU memory used by other processes."
                )

    def check_neighbours(self, owner: str, before: Mapping[str, int]) -> None:
        """vLLM's check after its profiling run.

        :param before: what others had on each GPU when ``owner`` began.
        :raises NeighbourChanged: they have more or less now.
        """
        for gpu, now in self.others(owner, before).items():
            if now != before[gpu]:
                first, current = gib(self.total - before[gpu]), gib(self.total - now)
                raise NeighbourChanged(
                    f"AssertionError: Error in memory profiling. Initial free memory {first} GiB, current "
                    f"free memory {current} GiB. This happens when other processes sharing the same "
                    "container release GPU memory while vLLM is profiling during initialization."
                )
