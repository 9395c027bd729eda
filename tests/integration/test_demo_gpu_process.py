"""Demo servers as processes that share a GPU: a wrong schedule fails by itself."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from urllib.error import HTTPError

import pytest

from llmproxy.demo.gpus import look
from llmproxy.demo.ledger import GIB
from tests.integration.test_demo_process import Start, ask, start, wait_for

__all__ = ["start"]  # the fixture
READY = "Application startup complete."


@pytest.fixture(autouse=True)
def _no_gpu_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's own environment says of GPUs is not for these servers."""
    for name in ("CUDA_VISIBLE_DEVICES", "LLMPROXY_DEMO_GPU_DIR", "LLMPROXY_DEMO_GPU_TOTAL"):
        monkeypatch.delenv(name, raising=False)


def faults(folder: Path) -> list[str]:
    """The kinds of error that the servers have noted."""
    file = folder / "faults"
    return [json.loads(line)["kind"] for line in file.read_text().splitlines()] if file.exists() else []


def used(folder: Path) -> float:
    return round(look(folder).used("0") / GIB, 2)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and the rest of its log."""
    log, _ = process.communicate(timeout=20)
    return process.returncode, log


def test_no_room_and_kill(start: Start, tmp_path: Path) -> None:
    """A second start without room dies with vLLM's line; what a killed one had is free at once."""
    gpu = ("--gpu", str(tmp_path / "gpu"), "--gpu-total", "24GiB")
    first, _ = start(*gpu)
    wait_for(first, READY)
    assert used(tmp_path / "gpu") == 22.08
    second, _ = start(*gpu, "--start-delay", "60")
    status, log = ended(second)
    assert status == 1
    assert (
        "Free memory on device (1.92/24.0 GiB) on startup is less than desired GPU memory utilization "
        "(0.92, 22.08 GiB)"
    ) in log
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=10)
    assert used(tmp_path / "gpu") == 0
    third, _ = start(*gpu)
    wait_for(third, READY)
    assert faults(tmp_path / "gpu") == ["no-room"]
    other, _ = start("--gpu", str(tmp_path / "gpu"), "--gpu-total", "12GiB")
    assert ended(other)[0] == 1
    assert faults(tmp_path / "gpu") == ["no-room"]  # no fault of a schedule


def test_two_starts_at_once(start: Start, tmp_path: Path) -> None:
    """Of two that load at once on one GPU at least one dies of its profiling; on two GPUs none does."""
    gpu = ("--gpu", str(tmp_path), "--gpu-memory-utilization", "0.4", "--start-delay", "2")
    pair = [start(*gpu, "--model", name)[0] for name in "ab"]
    logs = []
    for process in pair:
        assert process.stdout is not None
        log = ""
        for line in process.stdout:
            log += line
            if READY in line:
                break
        logs.append(log)
    dead = [process for process, log in zip(pair, logs, strict=True) if READY not in log]
    assert dead
    assert {process.wait(timeout=10) for process in dead} == {1}
    assert any("Error in memory profiling. Initial free memory" in log for log in logs)
    assert faults(tmp_path) == ["profiling"] * len(dead)

    apart = tmp_path / "apart"
    both = [start("--gpu", str(apart), "--start-delay", "1", CUDA_VISIBLE_DEVICES=name)[0] for name in "01"]
    for process in both:
        wait_for(process, READY)
    assert faults(apart) == []


def test_sleep_frees_and_wake_reclaims(start: Start, tmp_path: Path) -> None:
    """Three take turns on a GPU that holds one awake and the others asleep; waking too many is the end."""
    gpu = ("--gpu", str(tmp_path), "--gpu-memory-utilization", "0.8", "--sleep-keeps", "1GiB")
    servers = []
    for name in "abc":
        process, port = start(*gpu, "--enable-sleep-mode", "--model", name, VLLM_SERVER_DEV_MODE="1")
        wait_for(process, READY)
        servers.append((process, port))
        assert json.loads(ask(port, "/sleep?level=1", {})) == {"status": "sleeping", "level": 1}
    assert used(tmp_path) == 3
    (first, one), (second, two), _ = servers
    assert json.loads(ask(one, "/wake_up", {}))["status"] == "awake"
    assert used(tmp_path) == 21.2
    assert b"good" in ask(one, "/v1/completions", {"prompt": "good morning"})
    assert faults(tmp_path) == []
    log = wait_for(first, "to wake up tags")
    assert "Sleep mode freed 18.20 GiB memory, 1.00 GiB memory is still in use." in log

    with pytest.raises(HTTPError, match="500"):
        ask(two, "/wake_up", {})
    _, log = ended(second)
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 18.20 GiB." in log
    assert faults(tmp_path) == ["out-of-memory"]
    assert used(tmp_path) == 20.2
