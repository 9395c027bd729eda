"""The proxy before a real GPU: servers that take its memory in turns, and die of a wrong schedule.

As tests/integration/test_gpu.py it runs on a machine that has a GPU and little else::

    python3 -m pytest -c /dev/null --rootdir=. --noconftest -p no:cacheprovider -rs -s \\
        tests/integration/test_gpu_schedule.py
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmproxy.runtimes.gpus import AbsentMeter, open_nvml
from tests.integration import cuda_server

PORT = 8177
SECONDS = 45.0
"""Of traffic."""

MODELS = {"a": 0.55, "b": 0.55, "c": 0.4, "d": 0.4, "e": 0.9}
SLEEPERS = ("b", "d")


def settings(folder: Path) -> dict[str, Any]:
    """Five models, of which the GPU holds one or two."""

    def backend(name: str, share: float) -> dict[str, Any]:
        command = [sys.executable, cuda_server.__file__, "$${port}", name, str(share), str(folder / "faults")]
        return {"runtime": "process", "gpu_memory": share, "command": command} | (
            {"sleep": "1"} if name in SLEEPERS else {}
        )

    return {
        "listen": [f"tcp:{PORT}:interface=127.0.0.1"],
        "docker": {"host": f"unix://{folder}/none.sock"},
        "state_dir": str(folder / "state"),
        "stop_backends_on_exit": True,
        "host_memory_for_sleep": "100GiB",
        "scheduler": {"max_wait_before_drain": "3s"},
        "defaults": {"min_residency": "2s", "idle": "20s", "start_timeout": "60s"},
        "backends": {name: backend(name, share) for name, share in MODELS.items()},
    }


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Path]:
    """llmproxy, with its log in the folder that is given."""
    meter = open_nvml()
    if isinstance(meter, AbsentMeter):
        pytest.skip(meter.reason)
    config = tmp_path / "llmproxy.yaml"
    config.write_text(json.dumps(settings(tmp_path)))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
                *("--nodaemon", f"--pidfile={tmp_path}/pid", "llmproxy", "--config", str(config)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 20
        while ask("GET", "/healthz")[0] != 200:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield tmp_path
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        finally:
            process.kill()


def ask(method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and answer; 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text or b"null")
    except OSError:
        return 0, None
    finally:
        connection.close()


def test_five_models_on_one_gpu(proxy: Path) -> None:
    """Whoever is asked for is served, with no server out of memory and none disturbed while it loads."""
    waits: dict[str, list[float]] = {name: [] for name in MODELS}
    wrong: list[object] = []
    until = time.monotonic() + SECONDS

    def client(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < until:
            name = chance.choice(sorted(MODELS))
            begun = time.monotonic()
            status, answer = ask("POST", f"/{name}/v1/chat/completions", {"model": name})
            waits[name].append(time.monotonic() - begun - 0.5)
            if status != 200 or answer != {"model": name, "asleep": False}:
                wrong.append((name, status, answer))
            time.sleep(chance.random())

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    events = [line for line in (proxy / "log").read_text().splitlines() if "Fleet#" in line]
    starts = sum("absent -> starting" in line for line in events)
    wakes = sum("sleeping -> waking" in line for line in events)
    print(f"\n{sum(map(len, waits.values()))} requests, {starts} starts, {wakes} wakes")
    for name, seconds in waits.items():
        ordered = sorted(seconds)
        middle, worst = ordered[len(ordered) // 2], ordered[-1]
        print(f"{name}: {len(ordered)} requests, median wait {middle:.1f} s, worst {worst:.1f} s")
    faults = proxy / "faults"
    assert not faults.exists(), faults.read_text() + "\n".join(events)
    assert wrong == []
    assert min(map(len, waits.values())) > 0
    assert max(map(max, waits.values())) < 60
