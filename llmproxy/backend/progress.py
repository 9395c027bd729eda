"""Where a start is, how long its phases took, and how long it will still take.  Pure.

Phases only go forward.  What is expected is what earlier starts of the same configuration took; where the log
tells how much of a phase is done, that counts the more the further it has come.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen

from llmproxy.engines.phases import ORDER, Phase

__all__ = ["WAKING", "Forecast", "Progress"]

WAKING = "waking"
"""The only phase of a wake; no log tells of it."""

FETCHED_ONCE = frozenset(("placing", "pulling", "downloading"))
"""Phases that may take any time, and that earlier starts say nothing of."""

TELLING = 0.05
"""Part of a phase from which on its pace says something of the rest."""

_RANKS = {name: rank for rank, name in enumerate((*ORDER, WAKING))}


@frozen
class Forecast:
    """What is known of when a backend will be ready.

    :ivar phase: what it does, or waits for; None: nothing.
    :ivar progress: the part of the phase that is done, from 0 to 1; None: not known.
    :ivar since: when the phase began (POSIX seconds).
    :ivar eta: seconds until it is ready; None: not known.
    :ivar reason: what it waits for, in words.
    """

    phase: str | None = None
    progress: float | None = None
    since: float | None = None
    eta: float | None = None
    reason: str | None = None


@define
class Progress:
    """One start, or one wake.

    :param began: when it was decided on.
    :param name: its first phase.
    :param expected: seconds of the phases of earlier ones.
    :param whole: seconds of the whole of earlier ones; None: there were none.
    :ivar since: when the present phase began.
    :ivar done: the part of the present phase that is done; None: not known.
    :ivar reason: what it waits for in the present phase, in words.
    """

    began: float
    name: str
    expected: Mapping[str, float] = field(factory=dict)
    whole: float | None = None
    since: float = field(init=False)
    done: float | None = field(init=False, default=None)
    reason: str = field(init=False, default="")
    _told_at: float = field(init=False, default=0.0)
    _before: list[tuple[str, float]] = field(init=False, factory=list)
    _shown: float | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.since = self.began
        self.expected = {name: seconds for name, seconds in self.expected.items() if name in _RANKS}

    def advance(self, phase: Phase, now: float) -> bool:
        """It is in that phase now.

        :return: whether that is another one than before; what is past does not come again.
        """
        old = _RANKS[self.name]
        if _RANKS[phase.name] < old:
            return False
        moved = phase.name != self.name
        if moved:
            self._before.append((self.name, self.since))
            self.name, self.since, self.done, self._shown = phase.name, now, None, None
        self.reason = phase.reason
        if phase.took is not None and self._before:
            # It is told at its end, and may be the first that is heard of it.
            self.since = min(self.since, max(self._before[-1][1], now - phase.took))
        if phase.progress is not None and phase.progress > (-1.0 if self.done is None else self.done):
            self.done, self._told_at = phase.progress, now
        return moved

    def seconds(self, now: float) -> dict[str, float]:
        """What each phase has taken so far, in their order."""
        begins = [*self._before, (self.name, self.since)]
        ends = [*(since for _, since in begins[1:]), now]
        return {name: max(0.0, end - since) for (name, since), end in zip(begins, ends, strict=True)}

    def left(self, now: float) -> float | None:
        """Seconds until it is ready, never negative; None when nobody can say.

        Within a phase it does not grow: one that takes longer than it should holds it where it is.
        """
        reckoned = self._reckon(now)
        if reckoned is not None and self._shown is not None:
            reckoned = min(reckoned, self._shown)
        self._shown = reckoned
        return reckoned

    def forecast(self, now: float) -> Forecast:
        """The same, with all else that is known."""
        return Forecast(self.name, self.done, self.since, self.left(now), self.reason or None)

    def _reckon(self, now: float) -> float | None:
        rank = _RANKS[self.name]
        later = sum(seconds for name, seconds in self.expected.items() if _RANKS[name] > rank)
        ends = self._ends()
        if ends is not None:
            return max(0.0, ends - now) + later
        if self.expected:
            return None if self.name in FETCHED_ONCE else later
        return None if self.whole is None else max(0.0, self.began + self.whole - now)

    def _ends(self) -> float | None:
        """When the present phase should be over."""
        usual, done = self.expected.get(self.name), self.done
        if done is None:
            return None if usual is None else self.since + usual
        so_far, rest = self._told_at - self.since, 1 - done
        if usual is None:
            # Nothing but its own pace; and where nothing is known of what comes next, its end tells nothing.
            known = done >= TELLING and (rest > 0 or bool(self.expected))
            return self._told_at + so_far * rest / done if known else None
        if done < TELLING:
            return self._told_at + usual * rest
        # The pace so far, so_far / done, weighs as much as is done.
        return self._told_at + (usual * rest + so_far) * rest
