"""Answers as they come, byte by byte: what was said, whether it was said to its end, and how it ended.

Nothing is taken on trust: a length that is no number, a chunk with anything else behind it, or bytes after
the last answer are told as such and not put right.
"""

from __future__ import annotations

import select
import socket
import struct
import time

from attrs import define, field

__all__ = ["Conn", "Reading", "read_answer"]


class _Over(Exception):
    """No more bytes."""


class _Malformed(Exception):
    """They are no HTTP."""


@define
class Reading:
    """One answer, as far as it came.

    :ivar status: None before its status line has come whole.
    :ivar whole: its framing says that this is all of it.
    :ivar end: why no more was read of one that is not whole: ``eof``, ``reset``, ``late`` (time was up),
        ``left`` (the client hung up, as it meant to).
    :ivar malformed: what is no HTTP about it.
    """

    status: int | None = None
    fields: dict[str, str] = field(factory=dict)
    body: bytes = b""
    whole: bool = False
    end: str = ""
    malformed: str = ""


@define
class Conn:
    """A client's connection.

    :ivar deadline: monotonic seconds after which it gives up.
    :ivar leave_at: when it hangs up.
    :ivar leave_after: after how many bytes it hangs up.
    :ivar pause: seconds between reads, of ``most`` bytes each.
    """

    port: int
    deadline: float
    receive_buffer: int | None = None
    leave_at: float = float("inf")
    leave_after: float = float("inf")
    pause: float = 0.0
    most: int = 65536
    rude: bool = False
    socket: socket.socket = field(init=False)
    _buffer: bytearray = field(init=False, factory=bytearray)
    _seen: int = field(init=False, default=0)
    end: str = field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        self.socket = socket.socket()
        if self.receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.socket.settimeout(10)
        try:
            self.socket.connect(("127.0.0.1", self.port))
        except OSError:
            self.socket.close()
            raise

    def send(self, data: bytes, pieces: int = 1, pause: float = 0.0) -> None:
        """Send it, in so many pieces; what the other side does not take any more is let be."""
        size = max(1, len(data) // pieces)
        try:
            for at in range(0, len(data), size):
                self.socket.settimeout(max(0.1, self.deadline - time.monotonic()))
                self.socket.sendall(data[at : at + size])
                if pause:
                    time.sleep(pause)
        except OSError:  # its answer may have come nevertheless
            pass

    def close(self) -> None:
        """Hang up; a rude client resets the connection."""
        if self.rude:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _fill(self) -> None:
        if self.end:
            raise _Over
        if self.pause:
            time.sleep(self.pause)
        until = min(self.deadline, self.leave_at)
        readable, _, _ = select.select([self.socket], [], [], max(0.0, until - time.monotonic()))
        if self._seen >= self.leave_after or (not readable and self.leave_at <= self.deadline):
            self.end = "left"
            raise _Over
        if not readable:
            self.end = "late"
            raise _Over
        try:
            data = self.socket.recv(self.most)
        except OSError:
            self.end = "reset"
            raise _Over from None
        if not data:
            self.end = "eof"
            raise _Over
        self._seen += len(data)
        self._buffer += data

    def line(self) -> bytes:
        """Up to the next line's end, which is not part of it."""
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > 65536:
                raise _Malformed("a line without an end")
            self._fill()
        found = bytes(self._buffer[:at])
        del self._buffer[: at + 2]
        return found

    def take(self, count: int, into: Reading) -> None:
        """So many bytes of the body."""
        while count:
            if not self._buffer:
                self._fill()
            part = bytes(self._buffer[:count])
            del self._buffer[: len(part)]
            into.body += part
            count -= len(part)

    def exactly(self, count: int) -> bytes:
        """So many bytes.

        :raises EOFError: they do not come.
        """
        found = Reading()
        try:
            self.take(count, found)
        except _Over:
            raise EOFError(self.end) from None
        return found.body

    def more(self, seconds: float) -> bytes:
        """What comes unasked within some time; whoever still wants to may go on asking."""
        self.leave_at = time.monotonic() + seconds
        self.pause = 0.0
        try:
            while True:
                self._fill()
        except _Over:
            if self.end == "left":
                self.end = ""
            return bytes(self._buffer)
        finally:
            self.leave_at = float("inf")


def read_answer(conn: Conn, method: str = "GET") -> Reading:
    """One answer, as far as it comes; interim ones (1xx but 101) are skipped."""
    found = Reading()
    try:
        _read(conn, method, found)
    except _Over:
        found.end = conn.end
    except _Malformed as wrong:
        found.malformed = str(wrong)
    return found


def _read(conn: Conn, method: str, found: Reading) -> None:
    status = 100
    while 100 <= status < 200 and status != 101:
        first = conn.line()
        words = first.split(b" ", 2)
        if not first.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise _Malformed(f"status line {first[:100]!r}")
        status = int(words[1])
        fields: dict[str, str] = {}
        while line := conn.line():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                raise _Malformed(f"field {line[:100]!r}")
            key = name.lower()
            if key in fields and key in ("content-length", "transfer-encoding"):
                raise _Malformed(f"two fields {key}")
            fields[key] = value.strip()
    found.status, found.fields = status, fields
    if method == "HEAD" or status in (101, 204, 304):
        found.whole = True
    elif "transfer-encoding" in fields:
        if "content-length" in fields:
            raise _Malformed("a length beside chunks")
        _chunks(conn, found)
    elif "content-length" in fields:
        if not fields["content-length"].isdigit():
            raise _Malformed("length")
        conn.take(int(fields["content-length"]), found)
        found.whole = True
    else:
        raise _Malformed("neither a length nor chunks: nobody can tell whether it is whole")


def _chunks(conn: Conn, found: Reading) -> None:
    while True:
        size = conn.line()
        try:
            count = int(size, 16)
        except ValueError:
            raise _Malformed(f"chunk size {size[:40]!r}") from None
        if not count:
            break
        conn.take(count, found)
        if conn.line():
            raise _Malformed("bytes behind a chunk")
    if conn.line():
        raise _Malformed("bytes behind the last chunk")
    found.whole = True
