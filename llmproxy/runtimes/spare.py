"""One file descriptor kept for when none is left: what runs can be looked at, and put down, even then.

Whoever cannot open a file does not know what is in it: a process that is not looked at is not gone, and a
record that is not read does not lack.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from attrs import define, field

__all__ = ["NONE_LEFT", "SPARE", "Spare"]

T = TypeVar("T")

NONE_LEFT = frozenset((errno.EMFILE, errno.ENFILE))
"""What says that there is no descriptor."""


@define
class Spare:
    """Keeps it."""

    _fd: int | None = field(default=None, init=False)

    def keep(self) -> None:
        """Have it, where one can be had."""
        if self._fd is None:
            with suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def let_go(self) -> None:
        """Give it back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def use(self, job: Callable[[], T]) -> T:
        """Do what opens one file at a time; once more, with what is kept for it, where none could be opened.

        :param job: may be done twice.
        :raises OSError: as the job does.
        """
        try:
            result = job()
        except OSError as cause:
            if cause.errno not in NONE_LEFT or self._fd is None:
                raise
        else:
            if self._fd is None:
                # Another thread took its descriptor while it was used; now there may be one.
                self.keep()
            return result
        self.let_go()
        try:
            return job()
        finally:
            self.keep()


SPARE = Spare()
"""That of this process."""
