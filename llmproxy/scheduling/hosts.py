"""On which of several hosts a model starts.  Pure.

Each host that it may be on makes an offer, and the best one is taken: where there is room now; else where
there will be, as others leave already; else where the cheapest set of idle models would leave for it; else
where busy ones may leave when they have drained.  Among equals it goes where its container is, with its image
and its weights, and then where most is left beside it.

Nothing is kept between two looks: whoever waits is offered all hosts again the next time, and what leaves for
it on one host makes that the better offer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from llmproxy.scheduling.claims import Memory, Room
from llmproxy.scheduling.outlook import Place

__all__ = ["BUSY", "COMING", "HELD", "IDLE", "NEVER", "NOW", "SOON", "Offer", "best", "spare"]

NOW, SOON, COMING, IDLE, BUSY, HELD, NEVER = range(7)
"""How soon it could start: there is room; there is, and somebody starts or leaves beside it; there will be;
when idle ones have left; when busy ones have; when it is known who may; not at all."""


@frozen
class Offer:
    """What one host has for one model.

    :ivar step: how soon, see :data:`NOW`.
    :ivar cost: of those who would leave, see :func:`llmproxy.scheduling.victims.weight`.
    :ivar spare: the least part of its GPUs that nobody would have beside it.
    :ivar crowd: how many others are on that host.
    :ivar sums: why it can never be there, in words.
    :ivar until: when that may change by itself.
    """

    place: Place
    step: int
    cost: float = 0.0
    spare: float = 1.0
    crowd: int = 0
    sums: Sequence[str] = ()
    until: float | None = None


def best(offers: Iterable[Offer]) -> Offer | None:
    """The one to take; None when it can be nowhere.  Of equal ones the first."""

    def order(offer: Offer) -> tuple[float, ...]:
        return (offer.step, offer.cost, not offer.place.there, -offer.spare, offer.crowd)

    return min((offer for offer in offers if offer.step != NEVER), key=order, default=None)


def spare(claim: Memory, free: Memory, rooms: Mapping[str, Room]) -> float:
    """The least part of the GPUs of a claim that is free beside it; 1 without a claim."""
    return min(
        ((free.get(gpu, 0) - units) / max(1, rooms[gpu].total) for gpu, units in claim.items()), default=1.0
    )
