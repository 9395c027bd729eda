"""Clients of all kinds.  What each asks follows from the seed; when it is asked follows from the machine."""

from __future__ import annotations

import base64
import json
import random
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field

from tests.integration.chaos import expected
from tests.integration.chaos.expected import Asked
from tests.integration.chaos.judge import Verdict, judge
from tests.integration.chaos.windows import BACKEND, Windows
from tests.integration.chaos.wire import Conn, Reading, read_answer
from tests.integration.proxy import head

__all__ = ["KINDS", "PATIENCE", "Client", "Exchange", "Records"]

PATIENCE = 60.0
"""Seconds that a client waits for the end of an answer; no fault takes so long, and whoever waits for longer
has been forgotten."""

OPEN = Verdict("open")

_WORDS = ("quick", "brown", "foxes", "jump", "over", "lazy", "dogs", "while", "vixens", "pack", "my", "box")


@define
class Exchange:
    """One request and what became of it; monotonic times."""

    asked: Asked
    began: float
    ended: float | None = None
    verdict: Verdict = OPEN


@define
class Records:
    """All exchanges by their ``X-Request-ID``, and what went wrong outside of them."""

    exchanges: dict[str, Exchange] = field(factory=dict)
    wrong: list[str] = field(factory=list)

    def begin(self, asked: Asked) -> Exchange:
        """One more."""
        found = Exchange(asked, time.monotonic())
        self.exchanges[asked.ident] = found
        return found

    def end(self, exchange: Exchange, verdict: Verdict) -> None:
        """It is over."""
        exchange.ended = time.monotonic()
        exchange.verdict = verdict


@define(eq=False)
class Client(threading.Thread):
    """Asks one thing after the other until it is told to stop.

    :ivar label: part of each ``X-Request-ID``.
    :ivar lethal: some of its requests end the server that they are for.
    """

    label: str
    seed: str
    port: int
    routes: Sequence[str]
    records: Records
    windows: Windows
    over: threading.Event
    pace: float = 0.3
    lethal: bool = True
    _choose: random.Random = field(init=False)
    _random: random.Random = field(init=False)
    count: int = field(init=False, default=0)

    def __attrs_pre_init__(self) -> None:
        super().__init__(daemon=True)

    def __attrs_post_init__(self) -> None:
        self._choose = random.Random(f"{self.seed}/{self.label}")
        self._random = random.Random(self._choose.random())

    def run(self) -> None:
        """Go on; whatever is raised here is a fault of the test, and told."""
        kinds = [kind for kind, weight in KINDS for _ in range(weight)]
        while not self.over.is_set():
            kind, pause = self._choose.choice(kinds), self._choose.expovariate(1 / self.pace)
            # How much chance one of them takes is nothing to the next.
            self._random = random.Random(self._choose.random())
            try:
                kind(self)
            except Exception as cause:
                self.records.wrong.append(f"client {self.label}, {kind.__name__}: {cause!r}")
            self.over.wait(pause)

    # -- what they have in common -----------------------------------------------------------------

    def _next(self) -> str:
        self.count += 1
        return f"{self.label}-{self.count}"

    def _some(self, least: int, most: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=self._random.randint(least, most)))

    def _route(self) -> str:
        return self._random.choice(self.routes)

    def _connect(self, *exchanges: Exchange, **options: Any) -> Conn | None:
        try:
            return Conn(self.port, time.monotonic() + PATIENCE, **options)
        except OSError as wrong:
            for exchange in exchanges:
                self.records.end(exchange, Verdict("unreachable", type(wrong).__name__))
            self.over.wait(1)  # or it would ask for nothing else
            return None

    def _once(
        self, asked: Asked, data: bytes, *, pieces: int = 1, pause: float = 0.0, **options: Any
    ) -> Reading:
        """Ask on a connection of its own and read what comes."""
        exchange = self.records.begin(asked)
        leave_in = options.pop("leave_in", None)
        conn = self._connect(exchange, **options)
        if conn is None:
            return Reading()
        try:
            if leave_in is not None:
                conn.leave_at = time.monotonic() + leave_in
            conn.send(data, pieces, pause)
            read = read_answer(conn, asked.method)
            if read.whole and read.status != 101:
                self._nothing_more(conn, asked)
            # Before the connection is closed: who is told of its end has to find this.
            self.records.end(exchange, judge(asked, read))
            return read
        finally:
            conn.close()

    def _nothing_more(self, conn: Conn, asked: Asked) -> None:
        """An answer is given once."""
        more = conn.more(0.02)
        if more:
            self.records.wrong.append(f"{asked.ident}: bytes behind its answer: {more[:200]!r}")

    def _post(self, path: str, body: bytes, ident: str, *fields: str, method: str = "POST") -> bytes:
        length = f"Content-Length: {len(body)}"
        kind = "Content-Type: application/json"
        return head(method, path, length, kind, f"X-Request-ID: {ident}", *fields) + body

    def _chat(
        self, kind: str, *, stream: bool, tokens: int, delay: float, fault: str = "", **options: Any
    ) -> Reading:
        route, ident = self._route(), self._next()
        text = self._random.random() < 0.25
        words = self._some(1, 60)
        body: dict[str, Any] = {
            "model": f"{route}-model",
            "stream": stream,
            "ignore_eos": True,
            "max_tokens": tokens,
            "demo_token_delay": delay,
        }
        if text:
            body["prompt"] = words
        else:
            body["messages"] = [{"role": "user", "content": words}]
        if fault:
            body["demo_fault"] = fault
        by_model = self._random.random() < 0.7
        path = ("" if by_model else f"/{route}") + ("/v1/completions" if text else "/v1/chat/completions")
        asked = Asked(ident, kind, route, expected.chat(body, ident, text=text), stream, fault)
        data = self._post(path, json.dumps(body).encode(), ident)
        if not fault:
            return self._once(asked, data, **options)
        # It may take others along with it that are answered by the same process.
        others = BACKEND if "exit" in fault else ()
        with self.windows.open(f"request: {fault.partition('=')[0]}", others, (route,)):
            return self._once(asked, data, **options)

    # -- kinds ------------------------------------------------------------------------------------

    def plain(self) -> None:
        """A completion, whole."""
        self._chat("plain", stream=False, tokens=self._random.randint(1, 200), delay=0.001)

    def streams(self) -> None:
        """A stream of up to two seconds."""
        tokens = self._random.randint(1, 80)
        self._chat("stream", stream=True, tokens=tokens, delay=self._random.choice((0, 0.005, 0.025)))

    def hangs_up(self) -> None:
        """Somebody who leaves: while waiting, at the head, or in mid-stream; politely or not."""
        options: dict[str, Any] = {"rude": self._random.random() < 0.5}
        if self._random.random() < 0.5:
            options["leave_in"] = self._random.uniform(0, 1.5)
        else:
            options["leave_after"] = self._random.randint(1, 8000)
        self._chat("hang-up", stream=self._random.random() < 0.8, tokens=150, delay=0.02, **options)

    def bytes_of(self) -> None:
        """Many bytes, with a length or in chunks."""
        self._big("bytes", self._random.choice((0, 1, 65_536, 300_000, 3_000_000)))

    def slow_reader(self) -> None:
        """Many bytes to somebody who reads slowly."""
        self._big("slow reader", 1_500_000, receive_buffer=8192, pause=0.03, most=32_768)

    def _big(self, kind: str, size: int, **options: Any) -> None:
        route, ident = self._route(), self._next()
        chunked = "&chunked=1" if self._random.random() < 0.5 else ""
        method = "HEAD" if kind == "bytes" and self._random.random() < 0.1 else "GET"
        body = expected.fixed(b"") if method == "HEAD" else expected.big(size)
        asked = Asked(ident, kind, route, body, method=method)
        target = f"/{route}/big?bytes={size}{chunked}"
        self._once(asked, head(method, target, f"X-Request-ID: {ident}"), **options)

    def uploads(self) -> None:
        """A body of up to two mebibytes, in pieces, in chunks, or announced first."""
        route, ident = self._route(), self._next()
        data = self._random.randbytes(self._random.choice((1, 10_000, 400_000, 2_000_000)))
        asked = Asked(ident, "upload", route, expected.upload(data))
        how = self._random.choice(("length", "chunks", "expect"))
        pieces = self._random.choice((1, 5, 20))
        kind = "Content-Type: application/octet-stream"
        if how == "chunks":
            top = head(
                "POST", f"/{route}/upload", kind, "Transfer-Encoding: chunked", f"X-Request-ID: {ident}"
            )
            size = max(1, len(data) // 7)
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            more = ["Expect: 100-continue"] if how == "expect" else []
            length = f"Content-Length: {len(data)}"
            top, body = head("POST", f"/{route}/upload", kind, length, f"X-Request-ID: {ident}", *more), data
        self._once(asked, top + body, pieces=pieces, pause=0.02 if pieces > 1 else 0)

    def pipelines(self) -> None:
        """Several requests at once on one connection; their answers come in order."""
        route = self._route()
        exchanges, data = [], b""
        for number in range(self._random.randint(2, 6)):
            ident = self._next()
            target = f"/echo/{number}%2F?q={ident}"
            body = self._random.randbytes(self._random.randint(0, 500))
            method = "POST" if body else "GET"
            asked = Asked(ident, "pipeline", route, expected.echo(method, target, body), method=method)
            exchanges.append(self.records.begin(asked))
            data += head(
                method, f"/{route}{target}", f"Content-Length: {len(body)}", f"X-Request-ID: {ident}"
            )
            data += body
        conn = self._connect(*exchanges)
        if conn is None:
            return
        try:
            conn.send(data)
            last = False
            for exchange in exchanges:
                read = Reading(end="eof") if last else read_answer(conn, exchange.asked.method)
                verdict = judge(exchange.asked, read)
                # After an answer that says so, those behind it are not answered.
                self.records.end(exchange, Verdict("left", "closed") if last else verdict)
                last = last or not read.whole or read.fields.get("connection", "").lower() == "close"
            if not last:
                self._nothing_more(conn, exchanges[-1].asked)
        finally:
            conn.close()

    def keeps(self) -> None:
        """Several requests, one after the other, on a connection that is kept."""
        route = self._route()
        conn: Conn | None = None
        for number in range(4):
            ident = self._next()
            target = f"/echo/kept?{number}"
            asked = Asked(ident, "kept", route, expected.echo("GET", target), method="GET")
            exchange = self.records.begin(asked)
            fresh = conn is None
            conn = conn or self._connect(exchange)
            if conn is None:
                return
            conn.deadline = time.monotonic() + PATIENCE
            conn.send(head("GET", f"/{route}{target}", f"X-Request-ID: {ident}"))
            read = read_answer(conn)
            closed = read.status is None and read.end in ("eof", "reset") and not read.malformed
            if closed and not fresh:
                # It was closed while it was idle, as it may be: what is asked there may be asked again.
                self.records.end(exchange, Verdict("left", "closed while idle"))
            else:
                self.records.end(exchange, judge(asked, read))
            if not read.whole or read.fields.get("connection", "").lower() == "close":
                conn.close()
                conn = None
            else:
                self._nothing_more(conn, asked)
            if self.over.wait(self._random.uniform(0, 0.6)):
                break
        if conn is not None:
            conn.close()

    def websockets(self) -> None:
        """A WebSocket whose messages come back."""
        route, ident = self._route(), self._next()
        asked = Asked(ident, "websocket", route, expected.fixed(b"\0"), method="GET")
        exchange = self.records.begin(asked)
        conn = self._connect(exchange)
        if conn is None:
            return
        key = base64.b64encode(self._random.randbytes(16)).decode()
        fields = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        try:
            top = head(
                "GET", f"/{route}/websocket", *fields, f"Sec-WebSocket-Key: {key}", f"X-Request-ID: {ident}"
            )
            conn.send(top)
            read = read_answer(conn)
            if read.status != 101:
                self.records.end(exchange, judge(asked, read))
                return
            self.records.end(exchange, self._converse(conn))
        finally:
            conn.close()

    def _converse(self, conn: Conn) -> Verdict:
        for last in (False,) * self._random.randint(1, 8) + (True,):
            payload = self._random.randbytes(self._random.choice((2, 125, 126, 3000, 70_000)))
            payload = payload[:2] if last else payload
            kind, mask = 0x88 if last else 0x82, self._random.randbytes(4)
            conn.send(_frame(kind, payload, mask))
            wanted = _frame(kind, payload)
            try:
                came = conn.exactly(len(wanted))
            except EOFError as cause:
                return Verdict("late" if str(cause) == "late" else "cut")
            if came != wanted:
                return Verdict("wrong", "a message came back as another one")
            time.sleep(self._random.uniform(0, 0.3))
        return Verdict("right")

    def passive(self) -> None:
        """A path that wakes nobody."""
        route, ident = self._route(), self._next()
        asked = Asked(ident, "passive", route, expected.fixed(b""), method="GET", passive=True)
        self._once(asked, head("GET", f"/{route}/health", f"X-Request-ID: {ident}"))

    def broken(self) -> None:
        """A request whose server was asked to fail in it."""
        fault = self._random.choice(
            ("die-mid-stream", "close-mid-body", "die-before-head", "error-event", "stall", "hang", "503")
            + (("exit-mid-stream=3", "exit=1") if self._random.random() < 0.3 and self.lethal else ())
        )
        options = {"leave_in": 2.0} if fault in ("stall", "hang") else {}
        self._chat(
            "broken", stream=self._random.random() < 0.7, tokens=40, delay=0.005, fault=fault, **options
        )


def _frame(kind: int, payload: bytes, mask: bytes = b"") -> bytes:
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        top = bytes((kind, bit | len(payload)))
    elif len(payload) < 1 << 16:
        top = bytes((kind, bit | 126)) + struct.pack(">H", len(payload))
    else:
        top = bytes((kind, bit | 127)) + struct.pack(">Q", len(payload))
    if mask:
        key = (mask * (len(payload) // 4 + 1))[: len(payload)]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")
    return top + mask + payload


KINDS: Sequence[tuple[Callable[[Client], None], int]] = (
    (Client.plain, 6),
    (Client.streams, 8),
    (Client.hangs_up, 4),
    (Client.bytes_of, 3),
    (Client.slow_reader, 1),
    (Client.uploads, 3),
    (Client.pipelines, 3),
    (Client.keeps, 2),
    (Client.websockets, 2),
    (Client.passive, 1),
    (Client.broken, 1),
)
