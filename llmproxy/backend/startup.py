"""Follows the starts of one backend: its phases, as the runtime and its own log tell them."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llmproxy.backend.progress import WAKING, Forecast, Progress
from llmproxy.engines.phases import Phase, read_phase
from llmproxy.scheduling.learned import Estimate

__all__ = ["Startup"]

FOUND = 1.0
"""Seconds after which the log of what was found running is read: most of it is ready at once, and there may
be hundreds."""

Follow = Callable[[Callable[[str], None]], Deferred[None]]


class Startup:
    """One start, or one wake, after the other.  Nothing here can fail a start, or hold it up.

    :param estimate: what is to be expected, asked at the beginning.
    :param follow: has lines of its log told from now on; None: they tell no phases.
    :param announce: told of each new phase, but for the first.
    """

    def __init__(
        self,
        clock: IReactorTime,
        estimate: Callable[[], Estimate],
        follow: Callable[[], Follow | None],
        announce: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._estimate = estimate
        self._follow = follow
        self._announce = announce
        self._progress: Progress | None = None
        self._following: Deferred[None] | None = None
        self._later: IDelayedCall | None = None

    def begin(self, phase: str) -> None:
        """It begins, with that phase."""
        self.over()
        known = self._estimate()
        whole = known.reload_seconds if "reload_seconds" in known.measured else None
        self._progress = Progress(self._clock.seconds(), phase, known.phases, whole)

    def begin_waking(self) -> None:
        """It begins to wake."""
        self.over()
        known = self._estimate()
        usual = {WAKING: known.wake_seconds} if "wake_seconds" in known.measured else {}
        self._progress = Progress(self._clock.seconds(), WAKING, usual)

    def step(self, phase: Phase) -> None:
        """It is that far."""
        progress = self._progress
        if progress is not None and progress.advance(phase, self._clock.seconds()):
            self._announce(phase.name)

    def runs(self, *, found: bool = False) -> None:
        """It runs, and its log tells what comes next.

        :param found: it ran before, so that it may be ready at once.
        """
        if self._progress is None:
            return
        self.step(Phase("starting"))
        follow = self._follow()
        if follow is None:
            return
        if found:
            self._later = self._clock.callLater(FOUND, self._read, follow)
        else:
            self._read(follow)

    def _read(self, follow: Follow) -> None:
        # Lines may come, and the start may be over, before this returns.
        begun = self._progress
        following = follow(self._line)
        following.addErrback(lambda _: None)  # a log that cannot be read tells nothing
        if self._progress is begun:
            self._following = following
        else:
            following.cancel()

    def _line(self, line: str) -> None:
        phase = read_phase(line)
        if phase is not None:
            self.step(phase)

    def forecast(self) -> Forecast:
        """How far it is."""
        return Forecast() if self._progress is None else self._progress.forecast(self._clock.seconds())

    def over(self) -> dict[str, float]:
        """It has ended, either way.

        :return: the seconds of its phases.
        """
        progress, self._progress = self._progress, None
        following, self._following = self._following, None
        later, self._later = self._later, None
        if later is not None and later.active():
            later.cancel()
        if following is not None:
            following.cancel()
        return {} if progress is None else progress.seconds(self._clock.seconds())
