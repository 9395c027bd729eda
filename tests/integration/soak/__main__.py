"""``python -m tests.integration.soak``: two hours of all kinds of clients, and what the proxy takes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tests.integration.chaos.stage import ROUTES, Stage
from tests.integration.chaos.traffic import Client
from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY
from tests.integration.soak.plot import draw
from tests.integration.soak.samples import Sample, judge, save
from tests.integration.world import until

EVERY = 10.0
"""Seconds between samples."""

PACE = 0.25
"""Seconds between two requests of one client, more or less."""

SMALL = json.dumps(
    {"model": "pin-model", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
).encode()


class Small(threading.Thread):
    """Asks a model that always runs for something small each half second, straight and through the proxy, and
    notes how long each takes."""

    def __init__(self, stage: Stage, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.taken: list[float] = []
        self.straight: list[float] = []
        self._stage = stage
        self._over = over

    def run(self) -> None:
        ready = [
            one for one in self._stage.journal() if (one["model"], one["what"]) == ("pin-model", "ready")
        ]
        straight = f"http://127.0.0.1:{ready[-1]['port']}/v1/chat/completions"
        proxied = f"http://127.0.0.1:{self._stage.proxy.port}/v1/chat/completions"
        while not self._over.wait(0.5):
            self._ask(straight, BACKEND_KEY, self.straight)
            self._ask(proxied, KEY, self.taken)

    def _ask(self, url: str, key: str, taken: list[float]) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        asked = urllib.request.Request(url, SMALL, headers)
        began = time.monotonic()
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answer.read()
        except OSError as cause:
            self._stage.records.wrong.append(f"a small request to {url} was answered {cause}")
        else:
            taken.append(time.monotonic() - began)


class Watcher(threading.Thread):
    """A page that is open: it asks how the models are, follows the events for some time, and goes."""

    def __init__(self, stage: Stage, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._stage = stage
        self._over = over

    def run(self) -> None:
        while not self._over.wait(2.0):
            answer = self._stage.proxy.ask("GET", "/api/backends", key=ADMIN)
            if answer.status != 200:
                self._stage.records.wrong.append(f"/api/backends was answered {answer.status}")
            asked = urllib.request.Request(
                f"http://127.0.0.1:{self._stage.proxy.port}/api/events",
                headers={"Authorization": f"Bearer {ADMIN}"},
            )
            until = time.monotonic() + 30
            with urllib.request.urlopen(asked, timeout=60) as events:
                while time.monotonic() < until and not self._over.is_set():
                    if not events.readline():
                        break


def sample(stage: Stage, began: float, small: Small, asked: int) -> Sample:
    """How it is now."""
    pid = stage.proxy.pid
    told = stage.proxy.ask("GET", "/metrics", key=ADMIN).body.decode()
    timers = re.search(r"^llmproxy_timers (\d+)", told, re.MULTILINE)
    assert timers is not None, "the metrics tell of timers"
    taken, small.taken = small.taken, []
    straight, small.straight = small.straight, []
    return Sample(
        time.monotonic() - began,
        stage.proxy.resident(),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        int(timers[1]),
        tuple(taken),
        asked,
        tuple(straight),
    )


def soak(
    seconds: float, clients: int, seed: str, folder: Path, file: Path | None = None
) -> tuple[list[Sample], list[str]]:
    """Have clients of all kinds ask for so long.

    :param file: each sample is added to it as it comes.
    :return: the samples; and what went wrong.
    """
    stage = Stage("process", folder, f"soak{os.getpid()}", small_disk=False)
    samples: list[Sample] = []
    wrong: list[str] = []
    with stage.set_up():
        stage.start_proxy()
        over = threading.Event()
        common = (stage.proxy.port, ROUTES, stage.records, stage.windows, over, PACE)
        crowd = [Client(f"s{number}", seed, *common, lethal=False) for number in range(clients)]
        until(lambda: stage.proxy.chat("pin", max_tokens=1).status == 200, 40)
        small = Small(stage, over)
        threads = (*crowd, small, Watcher(stage, over))
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(min(EVERY, seconds))
            # What is over is judged, counted and forgotten: the clients' memory is not what is looked at.
            done = {
                ident: one for ident, one in list(stage.records.exchanges.items()) if one.ended is not None
            }
            for ident, one in done.items():
                del stage.records.exchanges[ident]
                if (
                    one.verdict.word not in ("right", "left")
                    and not one.asked.fault
                    and not one.asked.passive
                ):
                    wrong.append(f"{ident} ({one.asked.kind}): {one.verdict.word} {one.verdict.code}")
            samples.append(sample(stage, began, small, len(done)))
            if file is not None:
                save(samples[-1:], file)
        over.set()
        for thread in threads:
            thread.join(70)
        wrong += stage.records.wrong
    return samples, wrong


def main() -> int:
    """Soak, and tell what came of it.

    :return: 1 when something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.integration.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0, help="how long [120]")
    parser.add_argument(
        "--clients", type=int, default=8, help="of all kinds, each with one request at a time [8]"
    )
    parser.add_argument("--seed", default="1", help="what they ask follows from it [1]")
    parser.add_argument("--samples", type=Path, help="write what was measured there, as JSON lines")
    parser.add_argument("--plot", type=Path, help="write a picture of it there, as SVG")
    options = parser.parse_args()
    if options.samples:
        options.samples.write_text("")
    with tempfile.TemporaryDirectory() as folder:
        samples, wrong = soak(
            options.minutes * 60, options.clients, options.seed, Path(folder), options.samples
        )
    if options.plot:
        options.plot.write_text(draw(samples, f"{options.minutes:g} minutes, {options.clients} clients"))
    verdict = judge(samples)
    for name, told in verdict.figures.items():
        sys.stdout.write(f"{name:18} {told}\n")
    for what in (*verdict.wrong, *wrong[:20]):
        sys.stdout.write(f"WRONG: {what}\n")
    return 1 if wrong or verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
