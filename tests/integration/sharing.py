"""Load on models that share a GPU, who was served when, and what has to hold of it whatever was asked.

The GPU is a folder that all demo servers of a test share (:mod:`llmproxy.demo.gpus`): a start or a wake
without room, and one beside which another one comes or goes, fails as vLLM does, and is noted in a file.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import define, evolve, field, frozen

from llmproxy.demo.gpus import look
from llmproxy.demo.ledger import GIB
from tests.integration.proxy import ADMIN, Proxy, Wire, chat, content, head

__all__ = [
    "Events",
    "Fault",
    "Gpu",
    "Heard",
    "Load",
    "Move",
    "check_turns",
    "evictions",
    "longest",
    "one_at_a_time",
    "summary",
]

LONGEST = 150.0
"""Seconds after which a client gives up; whoever waits for so long has been forgotten."""


@frozen
class Fault:
    """What a GPU that was too full, or a neighbour that changed, did to a server.

    :ivar who: its model.
    """

    at: float
    who: str
    kind: str
    what: str


@frozen
class Gpu:
    """The folder, seen from the test."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Gpu:
        """One that nobody uses yet; servers of other users may use it, too."""
        folder.mkdir()
        folder.chmod(0o777)
        return cls(folder)

    def faults(self) -> list[Fault]:
        """All that went wrong up to now."""
        file = self.folder / "faults"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            Fault(found["time"], found["who"], found["kind"], found["what"])
            for found in map(json.loads, lines)
        ]

    def used(self) -> float:
        """GiB that servers have."""
        return look(self.folder).used("0") / GIB


@frozen
class Heard:
    """One request, as its client knows it.

    :ivar asked: POSIX seconds; ``ended`` as well.
    :ivar waited: seconds until the first word, less what the server takes for it; until the end without one.
    :ivar status: 0 when nobody answered.
    :ivar code: of the error that came instead of an answer or within it.
    :ivar whole: the answer came to its proper end.
    """

    route: str
    asked: float
    ended: float
    waited: float
    status: int
    code: str
    whole: bool
    retry_after: float = 0.0

    @property
    def good(self) -> bool:
        """It was answered."""
        return self.status == 200 and self.whole and not self.code


def unchunked(raw: bytes) -> tuple[bytes, bool]:
    """What came in chunks, and whether it has ended."""
    found = b""
    while True:
        line, mark, rest = raw.partition(b"\r\n")
        if not mark:
            return found, False
        size = int(line, 16)
        if size == 0:
            return found, True
        found += rest[:size]
        if len(rest) < size + 2:
            return found, False
        raw = rest[size + 2 :]


def _code(body: bytes) -> str:
    """The code of the error that it is or has."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if b'"error"' in line]
    for line in lines:
        error = json.loads(line).get("error")
        if error:
            return str(error.get("code") or error.get("type") or "error")
    return ""


async def ask(port: int, route: str, *, stream: bool, tokens: int, delay: float) -> Heard:
    """One chat completion on a connection of its own; nothing is raised, whatever comes."""
    asked = time.time()
    heard = Heard(route, asked, asked, 0.0, 0, "", False)
    raw, first = b"", 0.0
    try:
        async with asyncio.timeout(LONGEST):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                words = chat(
                    f"{route}-model",
                    stream=stream,
                    ignore_eos=True,
                    max_tokens=tokens,
                    demo_token_delay=delay,
                )
                body = json.dumps(words).encode()
                fields = (
                    f"Content-Length: {len(body)}",
                    "Content-Type: application/json",
                    "Connection: close",
                )
                writer.write(head("POST", "/v1/chat/completions", *fields) + body)
                while data := await reader.read(65536):
                    raw += data
                    if not first and b"data: {" in raw:
                        first = time.time()
            finally:
                writer.close()
    except (OSError, TimeoutError) as wrong:
        heard = evolve(heard, code=type(wrong).__name__)
    return _judge(heard, raw, first, stream=stream, tokens=tokens, delay=delay)


def _judge(heard: Heard, raw: bytes, first: float, *, stream: bool, tokens: int, delay: float) -> Heard:
    ended, service = time.time(), delay if stream else delay * tokens
    heard = evolve(heard, ended=ended, waited=max(0.0, (first or ended) - heard.asked - service))
    top, found, rest = raw.partition(b"\r\n\r\n")
    if not found:
        return heard
    lines = top.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "transfer-encoding" in fields:
        body, whole = unchunked(rest)
    else:
        body, whole = rest, len(rest) == int(fields.get("content-length", -1))
    status = int(lines[0].split()[1])
    code = heard.code or _code(body)
    if status == 200 and whole and not code:
        # An engine that is put to sleep ends its answers early, and one whose weights were not loaded again
        # after its sleep says garbage.
        said = content(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
        whole = said.startswith("You") and len(said.split()) == tokens
        whole = whole and (not stream or body.endswith(b"data: [DONE]\n\n"))
    again = float(fields.get("retry-after", 0))
    return evolve(heard, status=status, code=code, whole=whole, retry_after=again)


Client = Callable[["Load"], Coroutine[Any, Any, None]]


@define
class Load:
    """Clients of one proxy, for some seconds; each goes on after what went wrong.

    :ivar heard: what came of each request.
    """

    port: int
    seconds: float
    seed: int = 1
    heard: list[Heard] = field(factory=list)
    random: random.Random = field(init=False)
    _until: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, *clients: Coroutine[Any, Any, None]) -> None:
        """Let them work until the time is over and all has been answered."""

        async def together() -> None:
            await asyncio.gather(*clients)

        self._until = time.monotonic() + self.seconds
        asyncio.run(together())

    @property
    def on(self) -> bool:
        """There is time left."""
        return time.monotonic() < self._until

    async def ask(self, route: str, *, stream: bool = True, tokens: int = 4, delay: float = 0.02) -> Heard:
        """One request; a client that is told to come again later pauses before it goes on."""
        heard = await ask(self.port, route, stream=stream, tokens=tokens, delay=delay)
        self.heard.append(heard)
        if not heard.good:
            await asyncio.sleep(min(10.0, heard.retry_after) or 0.5)
        return heard

    # -- ways to ask ----------------------------------------------------------------------------------

    async def in_turns(self, *routes: str) -> None:
        """One after the other, each as soon as the one before is answered."""
        while self.on:
            for route in routes:
                if self.on:
                    await self.ask(route, stream=False)

    async def in_bursts(self, routes: Sequence[str], count: int = 10, pause: float = 4.0) -> None:
        """So many at once of a random model, again and again."""
        bursts: list[asyncio.Task[Heard]] = []
        while self.on:
            route = self.random.choice(routes)
            bursts += [
                asyncio.create_task(self.ask(route, stream=bool(number % 2))) for number in range(count)
            ]
            await asyncio.sleep(pause)
        await asyncio.gather(*bursts)

    async def in_streams(self, route: str, seconds: float, pause: float) -> None:
        """Answers of some seconds, with pauses of about that length between."""
        while self.on:
            await self.ask(route, tokens=int(seconds / 0.1), delay=0.1)
            await asyncio.sleep(pause * self.random.uniform(0.5, 1.5))

    async def meanwhile(self, every: float, act: Callable[[], Awaitable[None]]) -> None:
        """Do something beside, again and again."""
        while self.on:
            await asyncio.sleep(every * self.random.uniform(0.7, 1.3))
            if self.on:
                await act()


def summary(heard: Iterable[Heard]) -> str:
    """Waits and errors by model, for a person."""
    by_route: dict[str, list[Heard]] = {}
    for one in heard:
        by_route.setdefault(one.route, []).append(one)
    lines = []
    for route, all_of_it in sorted(by_route.items()):
        waits = [one.waited for one in all_of_it if one.good]
        errors = [one.code or str(one.status) for one in all_of_it if not one.good]
        lines.append(
            f"  {route}: {len(waits):4} answered, waited {median(waits or [0]):6.2f} s (median)"
            f" {max(waits, default=0):6.2f} s (worst)" + (f"; {', '.join(errors)}" if errors else "")
        )
    return "\n".join(lines)


# -- what the proxy tells -------------------------------------------------------------------------------


@frozen
class Move:
    """One event: a transition, or what the scheduler decided."""

    at: float
    backend: str
    old: str
    new: str
    reason: str
    decision: str = ""


class Events:
    """All events of one life of a proxy, read as they come; it ends with that life, or with :meth:`stop`."""

    def __init__(self, proxy: Proxy) -> None:
        self._wire: Wire = proxy.wire()
        self._wire.socket.settimeout(None)
        self._wire.send(head("GET", "/api/events", key=ADMIN))
        self._raw = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self._wire.some():
            self._raw += data

    def stop(self) -> list[Move]:
        """All that came."""
        if self._thread.is_alive():
            time.sleep(0.2)
            self._wire.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._wire.socket.close()
        body, _ = unchunked(self._raw.partition(b"\r\n\r\n")[2])
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
        return [
            Move(
                found["at"],
                found["backend"],
                found["from"],
                found["to"],
                found["reason"],
                found.get("decision", ""),
            )
            for found in events
        ]


def evictions(moves: Iterable[Move]) -> int:
    """How often a model had to leave for another one."""
    return sum(move.decision in ("drain", "evict") for move in moves)


def longest(moves: Iterable[Move], *states: str) -> float:
    """Seconds that one was in one of these states at most."""
    since: dict[str, float] = {}
    found = 0.0
    for move in moves:
        if not move.decision:
            begun = since.pop(move.backend, move.at)
            found = max(found, move.at - begun)
            if move.new in states:
                since[move.backend] = move.at
    return found


_STARTS = ("starting", "waking")
_LEAVES = ("stopping", "falling_asleep")


def one_at_a_time(moves: Iterable[Move], routes: Iterable[str]) -> list[str]:
    """Each moment at which two started on the GPU, or one came or went beside one that started.

    What others did, and what was found running, is no decision of the proxy.
    """
    wrong = []
    states: dict[str, Move] = {}
    for move in moves:
        if move.decision or move.backend not in routes:
            continue
        others = [each for name, each in states.items() if name != move.backend]
        starting = [each for each in others if each.new in _STARTS]
        leaving = [each for each in others if each.new in _LEAVES]
        theirs = move.reason == "found running" or move.reason.startswith("a broken answer")
        begins = move.new in _STARTS and not theirs
        ends = move.new in _LEAVES and move.old not in _STARTS and not theirs
        if (begins and (starting or leaving)) or (ends and starting):
            wrong.append(f"{move} beside {[*starting, *leaving]}")
        states[move.backend] = move
    return wrong


def check_turns(
    heard: Iterable[Heard], bound: float, excused: Callable[[Heard], bool] = lambda _: False
) -> None:
    """Everybody was answered, and nobody waited for longer than that."""
    heard = list(heard)
    assert heard
    wrong = [one for one in heard if not one.good and not excused(one)]
    assert not wrong, wrong
    late = [one for one in heard if one.good and one.waited > bound]
    assert not late, (bound, late)
