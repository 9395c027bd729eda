"""The bodies of requests while they come and until they have been passed on, and the room that all take."""

from __future__ import annotations

import tempfile
from typing import IO

__all__ = ["IN_MEMORY", "Body", "Full", "Room"]

IN_MEMORY = 1024 * 1024
"""Bytes of a request body that are kept in memory; larger bodies wait in a temporary file, since a thousand
requests may be held at once."""


class Full(Exception):
    """As much waits in files as may; the message is for the client."""


class Room:
    """What bodies may take and do take, all together (bytes).

    :ivar most_memory: beyond it, bodies are put into files however small they are.
    :ivar most_disk: beyond it, they are not taken.
    """

    __slots__ = ("disk", "memory", "most_disk", "most_memory")

    def __init__(self, most_memory: int, most_disk: int) -> None:
        self.most_memory, self.most_disk = most_memory, most_disk
        self.memory = self.disk = 0


class Body:
    """What has come of a body.

    :param room: what it shares with all others.
    :ivar size: bytes so far.
    """

    __slots__ = ("_data", "_file", "_held", "_room", "size")

    def __init__(self, room: Room) -> None:
        self.size = 0
        self._room = room
        self._data: bytes | bytearray = b""
        self._file: IO[bytes] | None = None
        # What is counted of it, in memory or in the file.
        self._held = 0

    def write(self, data: bytes) -> None:
        """The next bytes.

        :raises Full: there is no room for them.
        :raises OSError: the file system does not take them.
        """
        room, count = self._room, len(data)
        self.size += count
        if self._file is None:
            if self.size <= IN_MEMORY and room.memory + count <= room.most_memory:
                room.memory += count
                self._held += count
                if not self._data:
                    # Most come in one piece, which is not copied.
                    self._data = data
                elif isinstance(self._data, bytearray):
                    self._data += data
                else:
                    # One buffer, whatever the pieces: an object for each byte would be fifty times the body.
                    self._data = bytearray(self._data) + data
                return
            self._to_file()
        assert self._file is not None
        self._count_on_disk(count)
        self._file.write(data)

    def _to_file(self) -> None:
        data, held = self._data, self._held
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._room.memory -= held
        self._data, self._held = b"", 0
        self._count_on_disk(held)
        self._file.write(data)

    def _count_on_disk(self, count: int) -> None:
        room = self._room
        if room.disk + count > room.most_disk:
            raise Full(f"More than {room.most_disk} bytes of request bodies would wait in files.")
        room.disk += count
        self._held += count

    def replace(self, data: bytes) -> None:
        """Keep this instead of what has come."""
        self.close()
        self.size, self._file = 0, None
        self.write(data)

    def whole(self) -> bytes:
        """All of it, in memory."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read()
        if not isinstance(self._data, bytes):
            self._data = bytes(self._data)
        return self._data

    def source(self) -> bytes | IO[bytes]:
        """All of it, to be sent: bytes, or the file where it is kept."""
        return self.whole() if self._file is None else self._file

    def close(self) -> None:
        """It is not needed any more."""
        held, self._held = self._held, 0
        if self._file is not None:
            self._room.disk -= held
            self._file.close()
        else:
            self._room.memory -= held
            self._data = b""
