"""Which run of a backend there is, as the runtime tells it."""

from __future__ import annotations

from attrs import define

from llmproxy.runtimes.interface import Exit, Instance

__all__ = ["Present"]


@define
class Present:
    """The run that is known, and the one that is there, which may be another one.

    :ivar known: the run that the lifecycle is about; None: there is none.
    :ivar there: the run that the runtime has last told of.
    :ivar last_gone: the run that ended last, and how.
    :ivar changes: how many times the thing behind the backend became a different one.
    """

    known: Instance | None = None
    there: Instance | None = None
    last_gone: tuple[str | None, Exit] = (None, Exit())
    changes: int = 0

    def running(self, instance: Instance) -> bool:
        """A run is alive.

        :return: it took the place of the one that was known, whose end was not heard of.
        """
        self.there = instance
        if self.known is None:
            return False
        if self.known.run == instance.run:
            self.known = instance
            return False
        self.known = None
        return True

    def started(self, instance: Instance) -> Exit | None:
        """The runtime has started it.

        :return: how it ended, if it did before this was told.
        """
        self.known = self.there = instance
        run, exit = self.last_gone
        if run != instance.run:
            return None
        self.there = None
        return exit

    def gone(self, run: str | None, exit: Exit) -> bool:
        """A run has ended; None: none was ever seen.

        :return: it was the one that is known.
        """
        self.last_gone = (run, exit)
        if self.there is not None and run in (None, self.there.run):
            self.there = None
        if self.known is None or run not in (None, self.known.run):
            return False
        self.known = None
        return True

    def stopped(self) -> None:
        """The end of what was known has been seen, or cannot be.  News of it may still be on its way; another
        run that someone has begun counts."""
        if self.there is not None and self.known is not None and self.there.run == self.known.run:
            self.there = None
        self.known = None
