"""Many clients at once, in one thread, and what each of them was told."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from attrs import define

from tests.integration.proxy import KEY

__all__ = ["Asked", "Outcome", "ask_all", "may_open", "open_silent", "outcome_of", "tally"]

LONGEST = 4096
"""Bytes of an answer's end that are kept: an error fits in."""

_CHUNK = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
"""Between two chunks; there is no CR in what streams say."""

_ERROR = re.compile(rb'^data: (\{"error".*)$', re.MULTILINE)


@define
class Asked:
    """What each client of a crowd sends."""

    port: int
    body: dict[str, Any]
    path: str = "/v1/chat/completions"
    key: str = KEY

    @property
    def stream(self) -> bool:
        """Whether it is to be answered by a stream, which says that it is over."""
        return bool(self.body.get("stream"))

    def request(self) -> bytes:
        """The bytes."""
        data = json.dumps(self.body).encode()
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode() + data


@define
class Outcome:
    """What became of one.

    :ivar kind: ``complete``; ``refused``: an error that says what it is, also in a stream that had only told
        that it waits; ``wordless``: one that does not; ``broken``: an answer that has no end, and so does not
        look complete; ``closed``: no byte came; ``unconnected``.
    :ivar code: of the error.
    :ivar seconds: from the first try to the end."""

    kind: str
    status: int = 0
    code: str = ""
    seconds: float = 0.0


class _Client(asyncio.Protocol):
    def __init__(self, asked: Asked) -> None:
        self.over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._head = b""
        self._end = b""
        self._length: int | None = None
        self._body = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._asked.request())

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" not in self._head:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = head + end
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    self._length = int(line.partition(b":")[2])
        self._body += len(data)
        self._end = (self._end + data)[-LONGEST:]
        whole = (
            self._body == self._length if self._length is not None else self._end.endswith(b"\r\n0\r\n\r\n")
        )
        if whole:
            self._finish(True)

    def _finish(self, whole: bool) -> None:
        if self.over.done():
            return
        self.over.set_result(outcome_of(self._asked, self._head, self._end, whole))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(False)


def outcome_of(asked: Asked, head: bytes, end: bytes, whole: bool) -> Outcome:
    """What an answer is worth, by its head and its end."""
    if not head:
        return Outcome("closed")
    status = int(head.split()[1])
    if not whole:
        return Outcome("broken", status)
    if status >= 400:
        return _refusal(status, end)
    if not asked.stream:
        return Outcome("complete", status)
    said = _CHUNK.sub(b"", end)
    error = _ERROR.search(said)
    if error is not None and b'"choices"' not in said:
        return _refusal(status, error[1])
    done = error is None and b"data: [DONE]\n\n" in said
    return Outcome("complete" if done else "broken", status)


def _refusal(status: int, told: bytes) -> Outcome:
    try:
        code = json.loads(told)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return Outcome("refused", status, str(code)) if code else Outcome("wordless", status)


async def _one(asked: Asked, limit: float) -> Outcome:
    begun = time.monotonic()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit):
            _, client = await loop.create_connection(lambda: _Client(asked), "127.0.0.1", asked.port)
            outcome = await client.over
    except TimeoutError:
        outcome = Outcome("unanswered")
    except OSError as error:
        outcome = Outcome("unconnected", code=type(error).__name__)
    outcome.seconds = time.monotonic() - begun
    return outcome


async def _persistent(asked: Asked, limit: float, pause: float) -> Outcome:
    """One that tries again, as SDKs do, until it has its answer."""
    begun = time.monotonic()
    while True:
        outcome = await _one(asked, limit)
        outcome.seconds = time.monotonic() - begun
        if outcome.kind == "complete" or outcome.seconds > limit:
            return outcome
        await asyncio.sleep(pause)


def ask_all(
    asked: Asked, count: int, *, limit: float, spread: float = 0.0, again_after: float | None = None
) -> list[Outcome]:
    """Have so many ask at once.

    :param limit: seconds until one that has no answer counts as unanswered.
    :param spread: seconds over which they come.
    :param again_after: seconds after which one that was not served asks again; None: it does not.
    """

    async def all_of_them() -> list[Outcome]:
        async def one(number: int) -> Outcome:
            await asyncio.sleep(spread * number / count)
            if again_after is None:
                return await _one(asked, limit)
            return await _persistent(asked, limit, again_after)

        return list(await asyncio.gather(*(one(number) for number in range(count))))

    return asyncio.run(all_of_them())


@define
class Silent:
    """Connections that never say anything.

    :ivar opened: how many were let in.
    :ivar closed: those of them that the proxy has ended.
    """

    opened: int = 0
    closed: int = 0


def open_silent(port: int, count: int, *, stay: float) -> Silent:
    """Open so many connections, say nothing, and look what becomes of them within ``stay`` seconds."""
    found = Silent()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        found.opened += 1
        try:
            async with asyncio.timeout(stay):
                await reader.read()
                found.closed += 1
        except (TimeoutError, OSError):
            pass
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(count)))

    asyncio.run(all_of_them())
    return found


def tally(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many of each kind, with the code of those that were refused."""
    return dict(Counter(f"{one.kind} {one.code}".strip() for one in outcomes).most_common())


def may_open(files: int) -> bool:
    """Raise this process's limit of open files; whether that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(hard, files)))
        except (ValueError, OSError):
            return False
    return True
