"""What can never fit, and why.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmproxy.scheduling.claims import Room
from llmproxy.scheduling.outlook import Model

__all__ = ["why_never"]


def why_never(
    model: Model, models: Iterable[Model], rooms: Mapping[str, Room], lease_ends: Mapping[str, float]
) -> tuple[list[str], float | None]:
    """The sums by which it does not fit, whoever leaves; none: it does.  And when it could, if it is lent
    memory alone that is lacking.

    :param lease_ends: when the memory that is lent on each GPU comes back.
    """
    sums: list[str] = []
    until: list[float | None] = []
    others = [one for one in models if one.pinned and one.name != model.name]
    for gpu, units in model.claim.items():
        room = rooms[gpu]
        pinned = {
            one.name: (one.rest if one.phase in ("draining", "leaving") else one.held).get(gpu, 0)
            for one in others
        }
        taken = sum(pinned.values())
        if units <= room.capacity - taken:
            continue
        sums.append(f"it needs {room.told(units)} of GPU {gpu}, which has {room.told(room.total)}")
        if room.reserve:
            sums.append(f"{room.told(room.reserve)} of it reserved")
        if room.leased:
            sums.append(f"{room.told(room.leased)} of it lent")
        sums += [f"{room.told(held)} of it pinned by {name}" for name, held in pinned.items() if held]
        lent = room.leased and units <= room.total - room.reserve - taken
        until.append(lease_ends.get(gpu) if lent else None)
    ends = [end for end in until if end is not None]
    return sums, max(ends) if ends and len(ends) == len(until) else None
