"""Which GPUs a server sees.  Pure.

Three hands sort them out, one after the other: Docker, which lets a container see some of the host's;
NVIDIA's runtime, which does the same by a variable; and CUDA, which hides some of what is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

__all__ = ["MOST", "DeviceRequest", "Visible", "choose", "hide", "visible_to_container", "visible_to_process"]

MOST = 64
"""GPUs that one machine is believed to have; more is a slip of the pen."""


@frozen
class DeviceRequest:
    """GPUs that a container asks Docker for (Docker Engine API, ``DeviceRequest``).

    :ivar ids: their indices on the host or their UUIDs.
    :ivar count: where no ids are given: how many, -1 for all; 0 for none.
    """

    ids: tuple[str, ...] = ()
    count: int = 0

    @classmethod
    def of(cls, parts: Iterable[tuple[int, Sequence[str]]]) -> DeviceRequest:
        """Several at once, each a count and ids, as the ``devices`` of a container and of a compose service
        are.  ``nvidia.com/gpu=0`` is a GPU by the name that the container device interface has for it."""
        ids: list[str] = []
        count = 0
        for number, names in parts:
            found = [name.removeprefix(_INTERFACE) for name in names]
            if "all" in found or number < 0:
                count = -1
            elif count >= 0:
                count += number if not found else 0
            ids += found
        return cls((), count) if count < 0 else cls(tuple(ids), 0 if ids else count)


_INTERFACE = "nvidia.com/gpu="


@frozen
class Visible:
    """GPUs that a server sees, as the host names them.

    :ivar ids: in the order in which it counts them; ``None`` for all that there are.
    :ivar why: what says so; empty when nothing does.
    """

    ids: tuple[str, ...] | None = None
    why: str = ""

    def first(self, number: int) -> tuple[str, ...]:
        """The first ones of them; fewer when it sees fewer."""
        number = min(number, MOST)
        return _numbered(number) if self.ids is None else self.ids[:number]


def visible_to_container(devices: DeviceRequest | None, environment: Mapping[str, str]) -> Visible:
    """What a container sees before CUDA hides anything.

    A device request is stronger than the variable: dockerd sets ``NVIDIA_VISIBLE_DEVICES`` from it (moby,
    ``daemon/nvidia_linux.go``), and images that are made from NVIDIA's say ``all`` there.  For the variable
    see NVIDIA Container Toolkit, "GPU Enumeration": ``none`` and ``void`` and an empty one give no GPU.
    """
    if devices is not None:
        why = "the container's device request"
        if devices.ids:
            return Visible(_in_order(devices.ids), why)
        if devices.count < 0:
            return Visible(None, why)
        if devices.count == 0:
            return Visible((), "the container asks for no GPU")
        return Visible(_numbered(min(devices.count, MOST)), why)
    said = environment.get("NVIDIA_VISIBLE_DEVICES")
    if said is None:
        return Visible()
    why = f"NVIDIA_VISIBLE_DEVICES={said.strip()}"
    names = _names(said)
    if "all" in names:
        return Visible(None, why)
    return Visible(() if set(names) & {"none", "void"} else _in_order(names), why)


def visible_to_process(environment: Mapping[str, str]) -> Visible:
    """What a process on the host sees."""
    return hide(Visible(), environment)


def hide(visible: Visible, environment: Mapping[str, str]) -> Visible:
    """What CUDA leaves of them (CUDA C++ Programming Guide, "CUDA Environment Variables"): of
    ``CUDA_VISIBLE_DEVICES`` all counts that stands before the first name of none, as ``-1`` is."""
    said = environment.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return visible
    return choose(visible, _names(said), f"CUDA_VISIBLE_DEVICES={said.strip()}")


def choose(visible: Visible, names: Sequence[str], why: str) -> Visible:
    """Those of them that are named by their place among them, or by the beginning of their UUID."""
    chosen: list[str] = []
    for name in names:
        found = _find(visible.ids, name)
        if found is None:
            break
        chosen.append(found)
    return Visible(tuple(dict.fromkeys(chosen)), why)


def _find(ids: tuple[str, ...] | None, name: str) -> str | None:
    if re.fullmatch("[0-9]{1,4}", name):
        place = int(name)
        if ids is None:
            return str(place)
        return ids[place] if place < len(ids) else None
    if name.startswith(("GPU-", "MIG-")):
        return next((each for each in ids or () if each.startswith(name)), name)
    return None


def _names(text: str) -> tuple[str, ...]:
    """A list as it stands in a variable."""
    return tuple(name.removeprefix(_INTERFACE) for name in map(str.strip, text.split(",")) if name)


def _in_order(ids: Sequence[str]) -> tuple[str, ...]:
    """A server counts the host's GPUs in the host's order, however they were asked for.  That of UUIDs is not
    known."""
    unique = tuple(dict.fromkeys(ids))
    if all(re.fullmatch("[0-9]{1,4}", each) for each in unique):
        return tuple(sorted((str(int(each)) for each in unique), key=int))
    return unique


def _numbered(number: int) -> tuple[str, ...]:
    return tuple(str(place) for place in range(number))
