"""``python -m tests.integration.soak``: two hours of all kinds of clients, and what the proxy takes."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

from tests.integration.chaos.aftermath import unexcused
from tests.integration.chaos.stage import ROUTES, Stage
from tests.integration.chaos.traffic import Client, Records
from tests.integration.chaos.windows import Windows
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


class Beside(threading.Thread):
    """Does something again and again until it is over.  Whatever goes wrong in it is told, and it goes on."""

    pause: ClassVar[float]
    """Seconds between two times."""

    def __init__(self, stage: Stage, over: threading.Event) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self._stage = stage
        self._over = over

    def run(self) -> None:
        while not self._over.wait(self.pause):
            try:
                self.once()
            except Exception as cause:
                self._stage.records.wrong.append(f"{self.name}: {cause!r}")

    def once(self) -> None:
        """One time."""
        raise NotImplementedError


class Small(Beside):
    """Asks a model that always runs for something small, straight and through the proxy, and notes how long
    each takes."""

    pause = 0.5

    def __init__(self, stage: Stage, over: threading.Event) -> None:
        super().__init__(stage, over)
        self.taken: list[float] = []
        self.straight: list[float] = []
        ready = [one for one in stage.journal() if (one["model"], one["what"]) == ("pin-model", "ready")]
        self._model = f"http://127.0.0.1:{ready[-1]['port']}/v1/chat/completions"
        self._proxy = f"http://127.0.0.1:{stage.proxy.port}/v1/chat/completions"

    def once(self) -> None:
        self._ask(self._model, BACKEND_KEY, self.straight)
        self._ask(self._proxy, KEY, self.taken)

    def _ask(self, url: str, key: str, taken: list[float]) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        asked = urllib.request.Request(url, SMALL, headers)
        began = time.monotonic()
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answer.read()
        except (OSError, HTTPException) as cause:
            raise RuntimeError(f"{url} was answered {cause!r}") from cause
        taken.append(time.monotonic() - began)


class Watcher(Beside):
    """A page that is open: it asks how the models are, follows the events for some time, and goes."""

    pause = 2.0

    def once(self) -> None:
        answer = self._stage.proxy.ask("GET", "/api/backends", key=ADMIN)
        if answer.status != 200:
            raise ValueError(f"/api/backends was answered {answer.status}")
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self._stage.proxy.port}/api/events",
            headers={"Authorization": f"Bearer {ADMIN}"},
        )
        end = time.monotonic() + 30
        # It is never silent for so long.
        with urllib.request.urlopen(asked, timeout=60) as events:
            while time.monotonic() < end and not self._over.is_set():
                if not events.readline():
                    raise EOFError("the events have ended")


def sweep(records: Records, windows: Windows, *, all_of_them: bool = False) -> tuple[int, list[str]]:
    """Judge what is over, and forget it: the clients' memory is not what is looked at.

    :param all_of_them: also what is not over, which is wrong.
    :return: how many were over, and what is wrong with them.
    """
    done = [
        (ident, one) for ident, one in list(records.exchanges.items()) if all_of_them or one.ended is not None
    ]
    for ident, _ in done:
        del records.exchanges[ident]
    judged = (unexcused(one, windows) for _, one in done)
    return len(done), [told for told in judged if told is not None]


def _drained(values: list[float]) -> tuple[float, ...]:
    """What is in it, which is taken out; another thread adds to it."""
    found = tuple(values)
    del values[: len(found)]
    return found


def sample(stage: Stage, began: float, small: Small, asked: int) -> Sample:
    """How it is now."""
    pid = stage.proxy.pid
    told = stage.proxy.ask("GET", "/metrics", key=ADMIN).body.decode()
    timers = re.search(r"^llmproxy_timers (\d+)", told, re.MULTILINE)
    assert timers is not None, "the metrics tell of timers"
    return Sample(
        time.monotonic() - began,
        stage.proxy.resident(),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        int(timers[1]),
        _drained(small.taken),
        asked,
        _drained(small.straight),
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
            count, told = sweep(stage.records, stage.windows)
            wrong += told
            samples.append(sample(stage, began, small, count))
            if file is not None:
                save(samples[-1:], file)
        over.set()
        for thread in threads:
            thread.join(70)
        wrong += [f"{thread.name} does not end" for thread in threads if thread.is_alive()]
        wrong += sweep(stage.records, stage.windows, all_of_them=True)[1]
        wrong += stage.records.wrong
    return samples, wrong


def main() -> int:
    """Soak, and tell what came of it.

    :return: 1 when something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.integration.soak", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=120.0,
        help="how long; less than 60 tell nothing of memory, less than 12 nothing of latency [120]",
    )
    parser.add_argument(
        "--clients", type=int, default=8, help="of all kinds, each with one request at a time [8]"
    )
    parser.add_argument("--seed", default="1", help="what they ask follows from it [1]")
    parser.add_argument("--samples", type=Path, help="write what was measured there, as JSON lines")
    parser.add_argument("--plot", type=Path, help="write a picture of it there, as SVG")
    options = parser.parse_args()
    # What was begun is ended by whoever began it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by TERM"))
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
