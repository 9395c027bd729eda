"""When the faults are over: is all well again without help, and is nothing left over?"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from tests.integration.chaos.stage import GPU_ROUTES, ROUTES, Stage
from tests.integration.chaos.story import Story
from tests.integration.chaos.traffic import Client, Exchange
from tests.integration.chaos.windows import Windows
from tests.integration.proxy import ADMIN, Answer

__all__ = ["RECOVERING", "Footprint", "aftermath", "excused", "footprint", "unexcused"]

RECOVERY = 100.0
"""Seconds in which each model has to answer: a start that failed again and again is tried again after a time
that doubles, up to 80 s after five of them."""

RECOVERING = "last"
"""The client that asks then."""

BREAKS = ("die-mid-stream", "close-mid-body", "die-before-head")
"""What a server may be asked to do to an answer, by which that ends early."""

DYING = (*BREAKS, "error-event", "exit-mid-stream=3", "exit=1")
"""Likewise, or by which it says that its engine is dead."""

FREEING = 10.0
"""Seconds within which the memory of what was ended from outside is free."""

_REST = 30.0
"""Seconds for what nobody uses to be stopped: it is idle after 2 s, put to sleep, and stopped 2 s later."""


@frozen
class Footprint:
    """What a proxy with nothing to do takes.

    :ivar kinds: descriptors by what they are.
    :ivar wakes: how often it wakes in a second.
    :ivar busy: part of a core that it takes.
    """

    kinds: Counter[str]
    threads: int
    wakes: float
    busy: float

    @property
    def descriptors(self) -> int:
        """How many there are."""
        return self.kinds.total()


def footprint(pid: int, seconds: float) -> Footprint:
    """Look at it for that long."""
    began, worked = _switches(pid), _worked(pid)
    time.sleep(seconds)
    wakes, busy = (_switches(pid) - began) / seconds, (_worked(pid) - worked) / seconds
    return Footprint(_descriptors(pid), len(os.listdir(f"/proc/{pid}/task")), wakes, busy)


def _descriptors(pid: int) -> Counter[str]:
    kinds: Counter[str] = Counter()
    sockets: dict[str, str] = {}
    for name in ("tcp", "tcp6", "unix"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            inode = words[6] if name == "unix" else words[9]
            sockets[f"socket:[{inode}]"] = name if name == "unix" else f"{name} in state {words[3]}"
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            what = os.readlink(each)
            kinds[sockets.get(what, what.partition(":")[0])] += 1
    return kinds


def _switches(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    return 0


def _worked(pid: int) -> float:
    """Seconds of a core that it has had."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def excused(exchange: Exchange, windows: Windows, story: Story | None = None) -> str | None:
    """The fault that excuses how it ended, if one does.

    :param story: a start that failed is told to those who come before the next one, too.
    """
    verdict, ended, route = exchange.verdict, exchange.ended or time.monotonic(), exchange.asked.route
    word = "silent" if (verdict.word, verdict.code) == ("cut", "silent") else verdict.word
    fault = windows.excuse(word, route, exchange.began, ended)
    # An answer to HEAD has no body that would say which it is.
    failed = verdict.code.startswith("backend_start") or verdict.code == "HEAD 503"
    if fault is None and story is not None and failed:
        start = story.last_failed(route, ended)
        fault = None if start is None else windows.excuse(word, route, start.began, start.failed)
    return fault


def _as_asked(exchange: Exchange) -> bool:
    """Its server has done to it what it was asked to, or it has asked for what may not be there."""
    asked, verdict = exchange.asked, exchange.verdict
    match verdict.word:
        case "cut":
            return asked.fault in DYING and verdict.code != "silent"
        case "refused" if asked.passive:
            return verdict.code in ("not_running", "backend_unavailable")
        case "refused":
            return asked.fault in DYING and verdict.code in ("backend_died", "backend_unavailable")
        case _:
            return False


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def unexcused(exchange: Exchange, windows: Windows, story: Story | None = None) -> str | None:
    """What is wrong with an exchange, if no fault excuses it."""
    asked, verdict = exchange.asked, exchange.verdict
    if asked.ident.startswith(f"{RECOVERING}-") and verdict.word == "refused":
        return None  # that is looked at as a whole
    took = (exchange.ended or time.monotonic()) - exchange.began
    told = f"{asked.ident} ({asked.kind}, {asked.route}{', ' + asked.fault if asked.fault else ''}): "
    told += f"{verdict.word} {verdict.code} after {took:.1f} s"
    match verdict.word:
        case "right" | "left":
            if asked.fault in BREAKS and verdict.word == "right":
                return f"{told}: it looks complete"
            return None
        case "cut" | "unreachable" | "refused":
            return None if _as_asked(exchange) or excused(exchange, windows, story) else told
        case _:
            return told


def _was_over(exchange: Exchange, at: float) -> bool:
    """Whether it had ended by then for all but its server, which may take a moment to see that: it was whole,
    or the server itself had broken it off, as it was asked to."""
    if exchange.ended is None or exchange.ended >= at + 0.5:
        return False
    return exchange.verdict.word == "right" or exchange.asked.fault in BREAKS


def ended_in_flight(stage: Stage) -> list[str]:
    """TERMs of the proxy's to a backend with requests that went on."""
    wrong = []
    exchanges = stage.records.exchanges
    for line in stage.journal():
        if line["what"] != "term":
            continue
        at, route = line["at"], line["model"].removesuffix("-model")
        for ident in line["open"]:
            exchange = exchanges.get(ident)
            if exchange is None or exchange.verdict.word == "left" or exchange.asked.passive:
                continue  # what wakes nobody keeps nobody
            if _was_over(exchange, at) or stage.windows.excuse("term", route, at - 0.5, at):
                continue
            asked = exchange.asked
            wrong.append(
                f"{route} was ended {at - exchange.began:.2f} s after {ident} ({asked.kind}) began,"
                f" which was in flight: {exchange.verdict.word} {exchange.verdict.code}"
            )
    return wrong


def over_the_budget(stage: Stage, began: float) -> list[str]:
    """Starts that the GPU had no room for, or beside which something ended that nobody had ended.

    :param began: POSIX time at which the monotonic clock began.
    """
    file = stage.folder / "gpu" / "faults"
    lines = file.read_text().splitlines() if file.exists() else []
    wrong = []
    for line in lines:
        told = json.loads(line)
        at = told["time"] - began
        freed = any(stage.windows.excuse("cut", route, at - FREEING, at) for route in GPU_ROUTES)
        if told["kind"] != "profiling":
            wrong.append(f"the GPU's budget was exceeded: {line}")
        elif not freed:
            wrong.append(f"something left the GPU beside a start: {line}")
    return wrong


def aftermath(stage: Stage, client: Client, before: Footprint) -> list[str]:
    """Look at all of it; what is wrong.  Nothing is done for the proxy but asking."""
    wrong = _recovery(stage, client)
    wrong += _rest(stage)
    wrong += _left(stage, before)
    return wrong


def _recovery(stage: Stage, client: Client) -> list[str]:
    """Each model answers."""
    wrong = []
    for route in ROUTES:
        deadline = time.monotonic() + RECOVERY
        while True:
            client.routes = (route,)
            client.plain()
            last = stage.records.exchanges[f"{client.label}-{client.count}"]
            if last.verdict.word == "right":
                break
            if time.monotonic() > deadline:
                wrong.append(f"{route} did not recover: {last.verdict.word} {last.verdict.code}")
                break
            time.sleep(1)
    return wrong


def _ask(stage: Stage, path: str) -> Answer | None:
    with suppress(OSError):
        return stage.proxy.ask("GET", path, key=ADMIN)
    return None


def _rest(stage: Stage) -> list[str]:
    """What is not used is stopped, and nobody waits or is in flight."""
    deadline, told = time.monotonic() + _REST, "the proxy does not answer"
    while time.monotonic() < deadline:
        answer = _ask(stage, "/api/backends")
        if answer is not None and answer.status == 200:
            backends = answer.json["backends"] if isinstance(answer.json, dict) else answer.json
            busy = [
                f"{each['name']} is {each['state']} with {each['in_flight']} + {each['waiting']} requests"
                for each in backends
                if each["in_flight"]
                or each["waiting"]
                or (each["name"] != "pin" and each["state"] != "absent")
            ]
            if not busy:
                return []
            told = "; ".join(busy)
        time.sleep(0.3)
    return [f"not at rest after {_REST:g} s: {told}"]


def _left(stage: Stage, before: Footprint) -> list[str]:
    """Nothing is left: processes, containers, files, descriptors, threads, timers."""
    wrong = []
    seen = stage.look()
    if len(seen.proxies) != 1:
        wrong.append(f"{len(seen.proxies)} processes of the proxy: {seen.proxies}")
    for route in ROUTES:
        count, wanted = len(seen.backends.get(route, ())), int(route == "pin")
        if count != wanted:
            wrong.append(f"{count} processes of {route}, which is to have {wanted}")
    if stage.kind == "docker":
        names = stage.containers()
        if len(names) > len(ROUTES) + stage.generation:  # a reload names another one
            wrong.append(f"containers: {names}")
    left = [each.name for each in (stage.folder / "tmp").iterdir()]
    if left:
        wrong.append(f"temporary files: {left}")
    if seen.proxies:
        after = footprint(seen.proxies[-1], 3.0)
        # Pools of threads keep what they have had, and each of the Docker SDK's a connection to the engine.
        if after.descriptors > before.descriptors + 8:
            wrong.append(f"descriptors: {_told(before.kinds)} before, {_told(after.kinds)} after")
        if after.threads > before.threads + 24:
            wrong.append(f"threads: {before.threads} before, {after.threads} after")
        if after.wakes > before.wakes + 30:
            wrong.append(
                f"it wakes {after.wakes:.0f} times a second, {before.wakes:.0f} before: timers are left"
            )
        if after.busy > before.busy + 0.1:
            wrong.append(f"it takes {after.busy:.0%} of a core, {before.busy:.0%} before")
    return wrong
