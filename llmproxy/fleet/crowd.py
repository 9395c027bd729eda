"""How backends are in each other's way, for whoever wants to know how long, or why.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmproxy.backend.makeup import Makeup

__all__ = ["gone_in", "neighbours"]


def gone_in(others: Iterable[Makeup | None], now: float) -> float | None:
    """Seconds until none of them is in the way any more; None when nobody can say.

    :param others: None stands for what is no backend, such as a lease.
    """
    seconds = [None if other is None else _gone_in(other, now) for other in others]
    return None if None in seconds or not seconds else max(each for each in seconds if each is not None)


def _gone_in(other: Makeup, now: float) -> float | None:
    state = other.state
    if state in ("absent", "failed", "sleeping"):
        return 0.0
    if state in ("starting", "waking"):
        # It is what one waits for while it does: one starts at a time.
        return other.forecast().eta
    if state == "draining" or other.gate.busy:
        return None
    known = other.surroundings.learned.estimate(other.name, other.fingerprint)
    takes = known.sleep_seconds if state == "falling_asleep" else known.stop_seconds
    if state in ("stopping", "falling_asleep"):
        return max(0.0, other.since + takes - now)
    stays = other.since + other.spec.min_residency if other.wishes.swapped_in else now
    return max(0.0, stays - now) + takes


def neighbours(
    backend: Makeup, others: Iterable[Makeup], gpus_of: Callable[[Makeup], Iterable[str]]
) -> tuple[str, ...]:
    """The names of those that have memory of its GPUs.

    :param gpus_of: the GPUs of a backend, by names that tell those of different machines apart.
    """
    gpus = set(gpus_of(backend))
    return tuple(
        other.name
        for other in others
        if other is not backend
        and other.state not in ("absent", "failed")
        and gpus.intersection(gpus_of(other))
    )
