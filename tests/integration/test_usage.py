"""What is kept of requests by a real proxy that is killed, ended and started again."""

from __future__ import annotations

import http.client
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmproxy.usage.records import Kept, Record
from llmproxy.usage.store import Store
from tests.integration.proxy import ADMIN, KEY, Proxy, chat, demo, running
from tests.integration.world import until

USAGE = "/api/usage?by=backend,key"


@pytest.fixture
def proxy(kind: str, tmp_path: Path) -> Iterator[Proxy]:
    """One backend that is quickly ready, and claims half of a GPU."""
    backend = demo("--start-delay", "0.2", gpu_memory=0.5)
    with running(kind, tmp_path, {"a": backend}) as proxy:
        yield proxy


def rows(proxy: Proxy) -> list[dict[str, Any]]:
    """The sums of those who asked; what runs when the proxy begins is nobody's yet."""
    found = proxy.ask("GET", USAGE, key=ADMIN).json["rows"]
    return [row for row in found if row["key"] != "-"]


def written(proxy: Proxy) -> int:
    """Requests in the file itself."""
    path = proxy.folder / "state" / "usage.sqlite3"
    if not path.exists():
        return 0
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(database.execute("SELECT sum(requests) FROM usage").fetchone()[0] or 0)
    except sqlite3.OperationalError:
        # It is just being made.
        return 0
    finally:
        database.close()


def test_a_killed_proxy_has_written_what_was(proxy: Proxy) -> None:
    """The next one goes on from there, and so does the history."""
    told = proxy.ask("POST", "/v1/chat/completions", chat("a-model")).json["usage"]
    stream = proxy.ask(
        "POST", "/v1/chat/completions", chat("a-model", stream=True, stream_options={"include_usage": True})
    )
    last = [line for line in stream.body.splitlines() if b'"usage":{' in line or b'"usage": {' in line]
    streamed = json.loads(last[-1][6:])["usage"]
    proxy.ask("POST", "/v1/chat/completions", chat("a-model", stream=True))
    until(lambda: written(proxy) == 3)
    (row,) = rows(proxy)
    assert (row["requests"], row["key"]) == (3, "site")
    assert row["prompt_tokens"] == told["prompt_tokens"] + streamed["prompt_tokens"]
    assert row["completion_tokens"] == told["completion_tokens"] + streamed["completion_tokens"]
    # The last one was counted by its events, of which one told the role or the end.
    assert abs(row["estimated_tokens"] - streamed["completion_tokens"]) <= 1
    proxy.kill()
    proxy.start()
    assert rows(proxy)[0]["requests"] == 3
    proxy.ask("POST", "/v1/chat/completions", chat("a-model"))
    assert rows(proxy)[0]["requests"] == 4
    finished = proxy.ask("GET", "/api/requests", key=ADMIN).json["finished"]
    assert [one["id"] for one in finished] == [4, 3, 2, 1]
    assert finished[2]["tokens_per_second"] > 0


def test_an_ordered_end_loses_nothing(proxy: Proxy) -> None:
    """Neither the last request nor the last second of a GPU."""
    proxy.ask("POST", "/v1/chat/completions", chat("a-model"))
    proxy.stop()
    assert written(proxy) == 1
    proxy.start()
    (row,) = rows(proxy)
    assert row["gpu_seconds"] > 0


def test_a_damaged_file(proxy: Proxy) -> None:
    """It is put aside; requests are served all the same, and counted anew."""
    proxy.ask("POST", "/v1/chat/completions", chat("a-model"))
    proxy.stop()
    path = proxy.folder / "state" / "usage.sqlite3"
    path.write_bytes(b"not a database " * 1000)
    proxy.start()
    assert proxy.ask("POST", "/v1/chat/completions", chat("a-model")).status == 200
    until(lambda: path.with_suffix(".sqlite3.damaged").exists())
    until(lambda: rows(proxy) and rows(proxy)[0]["requests"] == 1)


def test_a_long_history(proxy: Proxy) -> None:
    """With 100,000 requests kept pages of them come at once, and memory stays flat while more come."""
    proxy.ask("POST", "/v1/chat/completions", chat("a-model"))
    proxy.stop()
    store = Store(str(proxy.folder / "state"), lambda: Kept(100_000, 400))
    now = time.time()
    who = ("id", now, "POST", "/v1/chat/completions", "a", "site", "127.0.0.1")
    record = Record(*who, 200, "ok", 0.0, 0.1, 0.5, 7, 20, False, 90, 900)
    for _ in range(10):
        store.write({}, [record] * 10_000, "2026-11-26")
    store.close()
    proxy.start()
    pages = (
        "/api/requests?limit=500",
        "/api/requests?outcome=error",
        "/api/requests?before=500",
        "/api/backends",
    )
    for path in pages:
        proxy.ask("GET", path, key=ADMIN)
    took = {path: quickest(partial(proxy.ask, "GET", path, key=ADMIN)) for path in pages}
    assert max(took.values()) < 0.5, took
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    body, fields = json.dumps(chat("a-model", max_tokens=1)), {"Authorization": f"Bearer {KEY}"}
    fields["Content-Type"] = "application/json"

    def more(count: int) -> None:
        for _ in range(count):
            connection.request("POST", "/v1/chat/completions", body, fields)
            assert connection.getresponse().read()

    more(1000)
    before = proxy.resident()
    more(4000)
    connection.close()
    assert proxy.resident() - before < 2_000_000
    assert len(proxy.ask("GET", pages[0], key=ADMIN).json["finished"]) == 500


def quickest(what: Callable[[], object]) -> float:
    """Seconds of the best of some times: others work on this machine, too."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        what()
        times.append(time.monotonic() - began)
    return min(times)
