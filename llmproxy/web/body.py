"""The body of a request while it comes and until it has been passed on."""

from __future__ import annotations

import tempfile
from typing import IO

__all__ = ["IN_MEMORY", "Body"]

IN_MEMORY = 1024 * 1024
"""Bytes of a request body that are kept in memory; larger bodies wait in a temporary file, since a thousand
requests may be held at once."""


class Body:
    """What has come of a body.

    :ivar size: bytes so far.
    """

    __slots__ = ("_file", "_pieces", "size")

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """The next bytes."""
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)
            return
        self._pieces.append(data)
        if self.size > IN_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
            self._file.writelines(self._pieces)
            self._pieces = []

    def whole(self) -> bytes:
        """All of it, in memory."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read()
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def source(self) -> bytes | IO[bytes]:
        """All of it, to be sent: bytes, or the file where it is kept."""
        return self.whole() if self._file is None else self._file

    def close(self) -> None:
        """It is not needed any more."""
        self._pieces = []
        if self._file is not None:
            self._file.close()
