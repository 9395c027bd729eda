"""The crowds, each against a real proxy with the demo server as a child process."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.integration.load.crowd import Asked, Outcome, ask_all, open_silent, tally
from tests.integration.proxy import Proxy, chat, demo
from tests.integration.world import ProcessWorld

__all__ = ["SCENARIOS", "Result", "Scenario"]

DEFAULT_FILES = 1024
"""What a process may open where nobody has said another thing."""

MANY_FILES = min(30_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""What a proxy for ten thousand clients should be allowed, as far as this machine lets it."""

FILES_BESIDE = 400
"""Of those, what belongs to no client; each client may need two: its own connection and the one to the
backend."""

SLOWEST = 3.0
"""Seconds in which whoever speaks is served, whoever else says nothing: well before the first of those are
closed, and more than a busy machine takes."""


@define
class Result:
    """What was seen.

    :ivar figures: by name, for the table.
    :ivar wrong: what must not be, a sentence each; empty: nothing.
    """

    figures: dict[str, str] = field(factory=dict)
    wrong: list[str] = field(factory=list)

    def must(self, holds: bool, what: str) -> None:
        """It is wrong unless it holds."""
        if not holds:
            self.wrong.append(what)


Scenario = Callable[[Path, float], Result]
"""What is done in a folder, with crowds of that part of their full size."""


@define(eq=False)
class LimitedProxy(Proxy):
    """One that may open so many files, and cannot raise that."""

    files: int = DEFAULT_FILES

    def command(self, *arguments: str) -> list[str]:
        """See :class:`~tests.integration.proxy.Proxy`."""
        return ["prlimit", f"--nofile={self.files}:{self.files}", *super().command(*arguments)]


def _fitting(files: int) -> int:
    """How many clients are served at once at least where so many files may be open."""
    return (files - FILES_BESIDE) // 2


@contextmanager
def proxy_of(
    folder: Path, files: int, *arguments: str, settings: Mapping[str, Any] = {}, **top: Any
) -> Iterator[Proxy]:
    """A proxy that may open so many files, before a demo server with these arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    proxy = LimitedProxy(folder, ProcessWorld(folder), files=files)
    try:
        proxy.configure({"a": demo(*arguments, **{"max_waiting": 20_000, **settings})}, **top)
        proxy.start()
        yield proxy
    finally:
        proxy.close()


def _still_serves(proxy: Proxy, result: Result) -> None:
    result.must(proxy.process is not None and proxy.process.poll() is None, "the proxy has ended")
    answer = proxy.chat("a", max_tokens=3)
    result.must(answer.status == 200, f"afterwards it answers {answer.status}")
    until = time.monotonic() + 10
    while time.monotonic() < until and proxy.backend("a")["in_flight"]:
        time.sleep(0.1)
    result.must(proxy.backend("a")["in_flight"] == 0, "places in flight are left over")


def _judge(outcomes: list[Outcome], result: Result, fits: int) -> None:
    """As many as fit are served, and everybody else is told why not, but for those who are closed at once
    where more come than can even be told."""
    result.figures["outcomes"] = _told(outcomes)
    count, crowded = len(outcomes), len(outcomes) > fits
    fine = ("complete", "refused", "closed", "unconnected") if crowded else ("complete", "refused")
    bad = [one for one in outcomes if one.kind not in fine]
    result.must(not bad, f"{len(bad)} were neither served nor told why not: {tally(bad)}")
    told = sum(one.kind == "refused" for one in outcomes)
    result.must(not crowded or told > 0, "nobody was told why")
    done = sum(one.kind == "complete" for one in outcomes)
    result.must(done >= min(fits, count), f"only {done} of {count} were complete, where {fits} fit")


def _streams(proxy: Proxy, part: float, *, limit: float, spread: float) -> list[Outcome]:
    """2,000 at once, of ten seconds each."""
    tokens = int(20 * max(0.3, part))
    body = chat("a-model", stream=True, ignore_eos=True, max_tokens=tokens, demo_token_delay=0.5)
    return ask_all(Asked(proxy.port, body), int(2000 * part), limit=limit, spread=spread)


def streams_at_1024(folder: Path, part: float) -> Result:
    """2,000 streams at once where 1,024 files may be open: as many as fit are served, the others told so."""
    result = Result()
    with proxy_of(folder, DEFAULT_FILES) as proxy:
        proxy.chat("a", max_tokens=1)
        _judge(_streams(proxy, part, limit=60, spread=2.0), result, _fitting(DEFAULT_FILES))
        _still_serves(proxy, result)
    return result


def streams_raised(folder: Path, part: float) -> Result:
    """2,000 streams at once where 30,000 files may be open: all are served."""
    result = Result()
    with proxy_of(folder, MANY_FILES) as proxy:
        proxy.chat("a", max_tokens=1)
        before = proxy.resident()
        outcomes = _streams(proxy, part, limit=90, spread=4.0)
        _judge(outcomes, result, len(outcomes))
        result.figures["longest"] = f"{max(one.seconds for one in outcomes):.1f} s"
        taken = proxy.resident() - before
        result.figures["memory"] = f"{taken / len(outcomes) / 1024:.0f} kB a stream"
        _still_serves(proxy, result)
    return result


def held_at_1024(folder: Path, part: float) -> Result:
    """10,000 requests for a cold model where 1,024 files may be open."""
    return _held(folder, int(10_000 * part), DEFAULT_FILES)


def held_raised(folder: Path, part: float) -> Result:
    """10,000 requests for a cold model where 30,000 files may be open: one start, all answered."""
    return _held(folder, min(int(10_000 * part), _fitting(MANY_FILES)), MANY_FILES)


def _held(folder: Path, count: int, files: int) -> Result:
    result = Result()
    limits = {"max_connections": 12_000, "max_held": 12_000, "max_connections_per_address": 0}
    settings = {"max_waiting": 12_000, "max_in_flight": 500}
    with proxy_of(folder, files, "--start-delay", "8", settings=settings, limits=limits) as proxy:
        outcomes = ask_all(Asked(proxy.port, chat("a-model", max_tokens=1)), count, limit=150, spread=5.0)
        _judge(outcomes, result, _fitting(files))
        result.figures["asked"] = str(count)
        result.figures["starts"] = str(proxy.world.starts("a"))
        result.must(proxy.world.starts("a") == 1, "it was not started just once")
        _still_serves(proxy, result)
    return result


def silent(folder: Path, part: float) -> Result:
    """5,000 connections that open and never speak: those who speak are served all the while."""
    result, count = Result(), int(5000 * part)
    limits = {"max_connections": 12_000, "idle_timeout": 5, "max_connections_per_address": 0}
    with proxy_of(folder, MANY_FILES, limits=limits) as proxy:
        proxy.chat("a", max_tokens=1)
        served: list[float] = []
        failed: list[str] = []
        over = threading.Event()

        def speak() -> None:
            while not over.is_set():
                begun = time.monotonic()
                try:
                    status = proxy.chat("a", max_tokens=1).status
                except (OSError, HTTPException) as cause:
                    failed.append(repr(cause))
                else:
                    if status == 200:
                        served.append(time.monotonic() - begun)
                    else:
                        failed.append(f"status {status}")
                time.sleep(0.1)

        speaking = threading.Thread(target=speak)
        speaking.start()
        try:
            found = open_silent(proxy.port, count, stay=30)
        finally:
            over.set()
            speaking.join()
        result.figures["opened"] = f"{found.opened}, closed by the proxy {found.closed}"
        slowest = max(served, default=0.0)
        result.figures["served meanwhile"] = f"{len(served)}, the slowest in {slowest:.2f} s"
        result.must(bool(served), "nobody that speaks was served")
        result.must(not failed, f"{len(failed)} that speak were not served, the first: {failed[:1]}")
        result.must(slowest < SLOWEST, f"one that speaks was served after {slowest:.1f} s")
        result.must(found.opened == count, f"only {found.opened} of {count} were let in")
        result.must(found.closed == found.opened, "some that say nothing are kept for ever")
        _still_serves(proxy, result)
    return result


def storm(folder: Path, part: float) -> Result:
    """The proxy is killed with 1,000 clients on it, which ask again and again until it is back."""
    result, count = Result(), int(1000 * part)
    with proxy_of(folder, MANY_FILES) as proxy:
        proxy.chat("a", max_tokens=1)
        outcomes: list[Outcome] = []

        def crowd() -> None:
            asked = Asked(proxy.port, chat("a-model", max_tokens=2, ignore_eos=True, demo_token_delay=1.0))
            outcomes.extend(ask_all(asked, count, limit=90, spread=1.0, again_after=0.2))

        clients = threading.Thread(target=crowd)
        clients.start()
        time.sleep(1.5)
        proxy.kill()
        time.sleep(2.0)
        begun = time.monotonic()
        proxy.start()
        up = time.monotonic() - begun
        clients.join()
        result.must(len(outcomes) == count, "the clients themselves have failed")
        _judge(outcomes, result, count)
        result.figures["back"] = (
            f"after {up:.1f} s, all served {time.monotonic() - begun:.1f} s after that start"
        )
        result.figures["starts"] = str(proxy.world.starts("a"))
        result.must(proxy.world.starts("a") == 1, "what ran was not found again")
        _still_serves(proxy, result)
    return result


def _told(outcomes: list[Outcome]) -> str:
    return ", ".join(f"{kind}: {number}" for kind, number in tally(outcomes).items())


SCENARIOS: Mapping[str, Scenario] = {
    "streams-1024": streams_at_1024,
    "streams": streams_raised,
    "held-1024": held_at_1024,
    "held": held_raised,
    "silent": silent,
    "storm": storm,
}
"""By the name that the command takes."""
