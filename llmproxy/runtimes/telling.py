"""What one watcher has been told, so that it is told each thing once and in order."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from llmproxy.runtimes.interface import Exit, Instance, Watcher

__all__ = ["Teller"]


@define(eq=False)
class Teller:
    """Speaks to one :class:`~llmproxy.runtimes.interface.Watcher` and keeps its rules: ``gone`` at most once
    for a run, never before ``running`` or the end of ``ensure_started``; nothing of a run that is over.

    :ivar known: the run that the watcher believes alive.
    :ivar told: whether it knows the state at all.
    """

    watcher: Watcher
    known: str | None = None
    told: bool = False
    _last: Instance | None = None
    # Late news can only be of the last few runs; run ids never come back.
    _over: deque[str] = field(factory=lambda: deque(maxlen=16))

    def running(self, instance: Instance, *, again: bool = False) -> None:
        """It runs.  Said once for the same facts, unless ``again``."""
        if instance.run in self._over:
            return
        if self.known is not None and self.known != instance.run:
            self.ended(self.known, Exit())
        if self.known == instance.run and self._last == instance and not again:
            return
        self.known, self.told, self._last = instance.run, True, instance
        self.watcher.running(instance)

    def replaced(self, instance: Instance) -> None:
        """Another run has the place of the one that was known: told as one, so that nobody else takes it."""
        if self.known is not None:
            self._over.append(self.known)
            self.known = None
        self.running(instance)

    def is_over(self, run: str) -> bool:
        """Whether it was told that this run has ended."""
        return run in self._over

    def answered(self, instance: Instance) -> None:
        """``ensure_started`` gives this run away: from now on its end is told."""
        if instance.run in self._over or self.known == instance.run:
            return
        if self.known is not None:
            self.ended(self.known, Exit())
        self.known, self.told, self._last = instance.run, True, None

    def ended(self, run: str, exit: Exit) -> None:
        """That run is over."""
        if self.known == run:
            self.known, self.told, self._last = None, True, None
            self._over.append(run)
            self.watcher.gone(run, exit)

    def absent(self) -> None:
        """Nothing runs.  Said if the watcher knows nothing yet."""
        if self.known is not None:
            self.ended(self.known, Exit())
        elif not self.told:
            self.told = True
            self.watcher.gone(None, Exit())
