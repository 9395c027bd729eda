"""A proxy whose process is another one after an upgrade, and clients that go on all the time."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.integration.proxy import ADMIN, KEY, Answer, Demo, Proxy, chat, head, running
from tests.integration.world import until

__all__ = ["Load", "processes", "upgradable", "upgrade"]


def processes(proxy: Proxy) -> list[int]:
    """All processes of a proxy, the one that was started last at the end."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            if str(proxy.file).encode() in words and b"llmproxy" in words and state[0] != "Z":
                found.append((int(state[19]), int(entry.name)))
    return [pid for _, pid in sorted(found)]


@contextmanager
def upgradable(folder: Path, backends: Mapping[str, Demo], **options: Any) -> Iterator[Proxy]:
    """A proxy with backends that are child processes; ended whatever process it is by then."""
    with running("process", folder, backends, **options) as proxy:
        try:
            yield proxy
        finally:
            for pid in processes(proxy):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not processes(proxy))


def upgrade(proxy: Proxy) -> Answer:
    """Have another process take its place, as the command does."""
    return proxy.ask("POST", "/api/upgrade", key=ADMIN)


@define
class Load:
    """Clients of all kinds, each of which asks again as soon as it has its answer.

    :ivar answered: how many answers each kind has had, and ``longest`` the seconds that one took at most.
    :ivar failed: what went wrong.
    """

    proxy: Proxy
    answered: Counter[str] = field(factory=Counter)
    longest: dict[str, float] = field(factory=dict)
    failed: list[str] = field(factory=list)
    _kept: list[http.client.HTTPConnection] = field(factory=list)
    _over: threading.Event = field(factory=threading.Event)
    _threads: list[threading.Thread] = field(factory=list)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        for connection in self._kept:
            connection.close()

    def more(self, kind: str, count: int, make: Callable[[], Callable[[], None]]) -> None:
        """So many clients of a kind, each with something of its own."""
        for _ in range(count):
            thread = threading.Thread(target=self._go_on, args=(kind, make()))
            self._threads.append(thread)
            thread.start()

    def _go_on(self, kind: str, once: Callable[[], None]) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                once()
            except Exception as cause:
                self.failed.append(f"{kind}: {cause!r}")
                if len(self.failed) > 20:
                    return
            else:
                self.answered[kind] += 1
                self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - began)

    # -- kinds --------------------------------------------------------------------------------------

    def kept(self, pause: float = 0.0) -> Callable[[], None]:
        """A client that keeps its connection for as long as it may."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=20)
        self._kept.append(connection)
        fields = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

        def once() -> None:
            body = json.dumps(chat("a-model", max_tokens=1))
            connection.request("POST", "/v1/chat/completions", body, fields)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            if answer.will_close:
                connection.close()
            time.sleep(pause)

        return once

    def fresh(self, pause: float = 0.0) -> Callable[[], None]:
        """One that connects for each request."""

        def once() -> None:
            answer = self.proxy.chat("a", max_tokens=1)
            assert answer.status == 200, answer
            time.sleep(pause)

        return once

    def streams(self, tokens: int, delay: float) -> Callable[[], None]:
        """One that is streamed to."""
        more: dict[str, Any] = {"ignore_eos": True, "max_tokens": tokens, "demo_token_delay": delay}

        def once() -> None:
            answer = self.proxy.chat("a", stream=True, **more)
            assert answer.status == 200, answer
            assert answer.body.rstrip().endswith(b"data: [DONE]"), answer.body[-300:]
            assert answer.body.count(b'"content"') >= tokens, answer.body[-300:]

        return once

    def held(self, route: str, *, stream: bool) -> Callable[[], None]:
        """One that asks for a model that has most often been stopped since."""

        def once() -> None:
            answer = self.proxy.chat(route, max_tokens=2, stream=stream)
            assert answer.status == 200, answer
            assert not stream or answer.body.rstrip().endswith(b"data: [DONE]"), answer.body[-300:]
            time.sleep(1.2)

        return once

    def uploads(self) -> Callable[[], None]:
        """One whose request takes long to come."""
        body = json.dumps(chat("a-model", "x" * (1 << 20), max_tokens=1)).encode()

        def once() -> None:
            with self.proxy.wire() as wire:
                length = f"Content-Length: {len(body)}"
                wire.send(head("POST", "/v1/chat/completions", "Content-Type: application/json", length))
                for at in range(0, len(body), 150_000):
                    wire.send(body[at : at + 150_000])
                    time.sleep(0.05)
                answer = wire.answer()
                assert answer.status == 200, answer

        return once
