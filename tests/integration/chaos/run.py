"""One seed, from the first start to the last end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.integration.chaos.aftermath import (
    RECOVERING,
    Footprint,
    aftermath,
    ended_in_flight,
    excused,
    footprint,
    over_the_budget,
    unexcused,
)
from tests.integration.chaos.faults import BACKEND_FAULTS, PROXY_FAULTS, Fault, able, chosen
from tests.integration.chaos.report import Report
from tests.integration.chaos.stage import ROUTES, BrokenOff, Kind, Stage
from tests.integration.chaos.story import Story
from tests.integration.chaos.traffic import PATIENCE, Client
from tests.integration.private_engine import PrivateEngine

__all__ = ["run"]


def run(
    kind: Kind,
    seed: str,
    seconds: float,
    folder: Path,
    *,
    engine: PrivateEngine | None = None,
    clients: int = 8,
    only: Sequence[str] = (),
) -> Report:
    """Let faults and traffic go on for some seconds, and look what comes of it.

    :param only: faults by name; all if empty.
    """
    stage = Stage(kind, folder, f"{kind[0]}{abs(hash((seed, time.time()))) % 10**10}", engine)
    began = time.monotonic()
    quiet = threading.Event()
    begun: list[threading.Thread] = []
    with stage.set_up():
        harms = [able(faults, stage, only) for faults in (BACKEND_FAULTS, PROXY_FAULTS)]
        if not any(harms):
            stage.records.wrong.append(f"none of these faults can be done here: {', '.join(only)}")
        try:
            stage.start_proxy()
            story = Story(stage.proxy.log_file, stage.over)
            story.start()
            begun.append(story)
            before = _warm(stage, seed)
            stage.watch.start()
            crowd = [_client(stage, f"c{number}", seed, quiet) for number in range(clients)]
            for client in crowd:
                client.start()
            until = time.monotonic() + seconds
            harm = [
                threading.Thread(target=_harm, args=(stage, faults, seed, until), daemon=True)
                for faults in harms
                if faults
            ]
            guard = threading.Thread(target=_guard, args=(stage,), daemon=True)
            for thread in (*harm, guard):
                thread.start()
                begun.append(thread)
            for thread in harm:
                thread.join()
            stage.rest(1)
            quiet.set()
            deadline = time.monotonic() + PATIENCE + 10
            for client in crowd:
                client.join(max(0.1, deadline - time.monotonic()))
                if client.is_alive():
                    stage.records.wrong.append(f"client {client.label} still waits")
            wrong = aftermath(stage, _client(stage, RECOVERING, seed, threading.Event()), before)
            wrong += stage.watch.lacks()
        finally:
            # However it ends: what is harmed from here on nobody would mend.
            quiet.set()
            stage.over.set()
            for thread in begun:
                thread.join(60)
        return _report(stage, story, seed, time.monotonic() - began, wrong)


def _client(stage: Stage, label: str, seed: str, over: threading.Event) -> Client:
    return Client(label, seed, stage.proxy.port, ROUTES, stage.records, stage.windows, over)


def _warm(stage: Stage, seed: str) -> Footprint:
    """Each model has answered once; what the proxy takes then."""
    client = _client(stage, "first", seed, threading.Event())
    for route in ROUTES:
        client.routes = (route,)
        client.plain()
    for exchange in stage.records.exchanges.values():
        if exchange.verdict.word != "right":
            stage.records.wrong.append(f"before any fault: {exchange}")
    time.sleep(1)
    return footprint(stage.look().proxies[-1], 2.0)


def _harm(stage: Stage, faults: Sequence[Fault], seed: str, until: float) -> None:
    choose = random.Random(f"{seed}/{faults[0].name}")
    with suppress(BrokenOff):
        while time.monotonic() < until:
            stage.rest(choose.expovariate(1 / 1.5))
            fault = chosen(faults, choose)
            try:
                fault.act(stage, random.Random(choose.random()))
            except BrokenOff:
                raise
            except Exception as cause:
                stage.records.wrong.append(f"fault {fault.name}: {cause!r}")


def _guard(stage: Stage) -> None:
    """The proxy ends only by a fault; it is started again, whatever it was that ended it."""
    while not stage.over.wait(0.2):
        if stage.watch.last.proxies:
            continue
        with stage.starting, suppress(BrokenOff):  # whoever holds it starts one
            if stage.over.is_set() or stage.look().proxies:
                continue
            stage.records.wrong.append(f"the proxy has ended by itself: {stage.proxy.log()[-1500:]}")
            with stage.windows.open("(ended by itself)", {"cut", "refused", "unreachable", "term"}):
                try:
                    stage.configure()
                    stage.start_proxy()
                except AssertionError as cause:
                    stage.records.wrong.append(str(cause))
                    stage.rest(5)


def _report(stage: Stage, story: Story, seed: str, seconds: float, wrong: list[str]) -> Report:
    report = Report(stage.kind, seed, seconds, absent=stage.absent)
    for exchange in list(stage.records.exchanges.values()):
        report.kinds[exchange.asked.kind] += 1
        word, code = exchange.verdict.word, exchange.verdict.code
        report.outcomes[f"{word} {code}" if word == "refused" else word] += 1
        told = unexcused(exchange, stage.windows, story)
        if told is not None:
            report.wrong.append(told)
            if exchange.verdict.body:
                (stage.folder / f"wrong-{exchange.asked.ident}").write_bytes(exchange.verdict.body)
        elif word in ("cut", "refused", "unreachable"):
            excuse = excused(exchange, stage.windows, story)
            report.excused[f"{word} by {excuse or 'what was asked'}"] += 1
    for name, count in stage.windows.faults.items():
        if not name.startswith("("):
            report.faults[name] = count
    report.starts = sum(line["what"] == "start" for line in stage.journal())
    report.wrong += stage.records.wrong
    report.wrong += stage.watch.wrong
    report.wrong += ended_in_flight(stage)
    report.wrong += over_the_budget(stage, time.time() - time.monotonic())
    report.wrong += wrong
    return report
