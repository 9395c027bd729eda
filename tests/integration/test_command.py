"""The operator's command against a running proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.proxy import ADMIN, KEY, Proxy, demo, running
from tests.integration.world import until


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with a backend that works and one that does not."""
    backends = {
        "a": demo("--start-delay", "0.3", "--log-line", "a line of the backend's log"),
        "broken": demo("--start-delay", "60", "--exit-after", "0.1", "--exit-code", "3"),
    }
    with running(kind, tmp_path_factory.mktemp("command"), backends) as proxy:
        yield proxy


def environment(proxy: Proxy, key: str = ADMIN) -> dict[str, str]:
    """What the command needs to find the proxy."""
    found = {**proxy.environ(), "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}", "LLMPROXY_ADMIN_KEY": key}
    return {**found, "COLUMNS": "200"}


def llmproxy(proxy: Proxy, *arguments: str, key: str = ADMIN) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "llmproxy", *arguments],
        cwd=proxy.folder,
        env=environment(proxy, key),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_start_status_logs_stop(proxy: Proxy) -> None:
    """start waits until it is ready, status and logs tell of it, stop waits until it has gone."""
    done = llmproxy(proxy, "start", "a")
    assert done.returncode == 0, done
    assert done.stdout.startswith("a: ready after")
    assert proxy.state("a") == "ready"
    assert "was ready already" in llmproxy(proxy, "start", "a").stdout

    done = llmproxy(proxy, "status")
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["a"])
    assert "ready" in row
    done = llmproxy(proxy, "status", "a", "--json")
    (view,) = json.loads(done.stdout)["backends"]
    assert (view["state"], view["runtime"], view["models"]) == ("ready", "process", ["a-model"])
    assert view["last_start"]["seconds"] > 0.3

    done = llmproxy(proxy, "logs", "a")
    assert done.returncode == 0
    assert "a line of the backend's log" in done.stdout
    lines = llmproxy(proxy, "logs", "a", "--json", "-n", "3").stdout.splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["backend"] == "a"

    done = llmproxy(proxy, "restart", "a")
    assert done.returncode == 0, done
    done = llmproxy(proxy, "stop", "a")
    assert done.returncode == 0
    assert "was ready, stopped after" in done.stdout
    assert proxy.state("a") == "absent"
    assert not proxy.world.is_running("a")
    assert "was not running" in llmproxy(proxy, "stop", "a").stdout
    assert proxy.world.starts("a") == 2


def test_failed_start(proxy: Proxy) -> None:
    """A start that fails is status 1 with the reason; again within the cool-down, too."""
    done = llmproxy(proxy, "start", "broken")
    assert done.returncode == 1
    assert "exit status 3" in done.stderr
    done = llmproxy(proxy, "start", "broken")
    assert done.returncode == 1
    assert "exit status 3" in done.stderr
    assert proxy.world.starts("broken") == 1
    done = llmproxy(proxy, "--json", "start", "broken")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "backend_start_failed"
    assert "failed" in llmproxy(proxy, "status").stdout
    assert llmproxy(proxy, "restart", "broken").returncode == 1
    assert proxy.world.starts("broken") == 2


def test_what_is_wrong(proxy: Proxy) -> None:
    """An unknown backend, a wrong key and a proxy that is not there are status 1, wrong usage is 2."""
    done = llmproxy(proxy, "start", "nobody")
    assert done.returncode == 1
    assert "nobody" in done.stderr
    for key in ("wrong", KEY):
        done = llmproxy(proxy, "status", key=key)
        assert done.returncode == 1
        assert "LLMPROXY_ADMIN_KEY" in done.stderr
        assert "Traceback" not in done.stderr
    done = llmproxy(proxy, "--url", "http://127.0.0.1:1", "status")
    assert done.returncode == 1
    assert "not reachable" in done.stderr
    assert llmproxy(proxy, "no-such-command").returncode == 2
    assert llmproxy(proxy, "start").returncode == 2


def test_config(proxy: Proxy) -> None:
    """config shows every setting with its source and no secret; a bad file is status 2."""
    done = llmproxy(proxy, "config", "--config", str(proxy.file), "--no-docker")
    assert done.returncode == 0, done
    assert "backends.a.command" in done.stdout
    assert "MAP__" not in done.stdout
    for secret in (KEY, ADMIN):
        assert secret not in done.stdout + done.stderr
    done = llmproxy(proxy, "config", "--config", str(proxy.file), "--no-docker", "--json")
    settings = json.loads(done.stdout)["settings"]
    assert settings["backends.a.runtime"]["value"] == "process"
    assert "llmproxy.yaml" in settings["backends.a.runtime"]["source"]
    assert settings["backends.a.idle"]["source"] == "default"
    bad = proxy.folder / "bad.yaml"
    bad.write_text("backends: {a: {colour: red}}")
    done = llmproxy(proxy, "config", "--config", str(bad), "--check", "--no-docker")
    assert done.returncode == 2
    assert "colour" in done.stderr


def is_connected(pid: int, port: int) -> bool:
    """Whether that process has a connection to that port."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in lines if line.split()[2].endswith(f":{port:04X}")}
    for file in Path(f"/proc/{pid}/fd").iterdir():
        # It may have been closed since it was listed.
        with suppress(FileNotFoundError):
            if os.readlink(file) in {f"socket:[{inode}]" for inode in inodes}:
                return True
    return False


def test_following(proxy: Proxy) -> None:
    """events and logs --follow tell what happens as it happens."""
    assert proxy.chat("a").status == 200
    pipes = {
        words: subprocess.Popen(
            [sys.executable, "-u", "-m", "llmproxy", *words.split()],
            cwd=proxy.folder,
            env=environment(proxy),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for words in ("events -f --json", "logs -f -n 0 a")
    }
    try:
        for pipe in pipes.values():
            until(lambda pipe=pipe: is_connected(pipe.pid, proxy.port))  # type: ignore[misc]
        time.sleep(0.5)
        assert proxy.act("a", "stop").json["state"] == "absent"
        assert pipes["logs -f -n 0 a"].wait(5) == 0  # it ends with the run
        time.sleep(0.2)
    finally:
        for pipe in pipes.values():
            pipe.terminate()
        told = {words: pipe.communicate(timeout=10)[0].decode() for words, pipe in pipes.items()}
    events = [json.loads(line) for line in told["events -f --json"].splitlines() if line.startswith("{")]
    steps = [(event["from"], event["to"]) for event in events if event["backend"] == "a"]
    assert ("absent", "starting") in steps
    assert steps[-1] == ("stopping", "absent")
    # Without -f it ends with what is remembered; those about others are left out where one is named.
    kept = [json.loads(line) for line in llmproxy(proxy, "events", "--json").stdout.splitlines()]
    # What a decision tells of states are those at the time when it is told.
    told_at = [event["at"] for event in events if event["backend"] == "a"]
    assert [event["at"] for event in kept if event["backend"] == "a"] == told_at
    about = llmproxy(proxy, "events", "-n", "1", "-b", "a").stdout.splitlines()
    assert len(about) == 1
    assert "a stopping -> absent" in about[0]
    assert "There is no backend 'nobody'" in llmproxy(proxy, "events", "-b", "nobody").stderr
    assert "Shutting down" in told["logs -f -n 0 a"]
    assert "startup complete" not in told["logs -f -n 0 a"]


def test_keys_and_usage(proxy: Proxy) -> None:
    """keys shows the proxy's keys and no secret; usage what they have used."""
    done = llmproxy(proxy, "keys", "--config", str(proxy.file))
    assert done.returncode == 0, done
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["KEY", "site", "boss", "default"]
    assert KEY not in done.stdout + done.stderr
    assert proxy.chat("a").status == 200

    def used() -> dict[str, int]:
        found = json.loads(llmproxy(proxy, "usage", "--by", "key,backend", "--json").stdout)
        return {row["backend"]: row["requests"] for row in found["rows"] if row["key"] == "site"}

    # What is over is written down a moment later.
    until(lambda: used().get("a", 0) >= 1)
    rows = llmproxy(proxy, "usage", "--by", "key,backend").stdout.splitlines()
    assert any(row.split()[:2] == ["site", "a"] for row in rows)
    assert llmproxy(proxy, "usage", "--csv").stdout.startswith("key,requests,")
    assert llmproxy(proxy, "usage", "--since", "soon").returncode == 2


def test_completion(proxy: Proxy) -> None:
    """A real bash completes commands and backends by what completion prints."""
    script = """
        eval "$(llmproxy completion bash)"
        COMP_WORDS=(llmproxy start b) COMP_CWORD=2
        _llmproxy_completion llmproxy
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(llmproxy "") COMP_CWORD=1
        _llmproxy_completion llmproxy
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=proxy.folder,
        env={**environment(proxy), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    backends, commands = done.stdout.splitlines()
    assert backends == "broken", done
    assert {"status", "start", "top", "config"} <= set(commands.split())


def test_two_models_on_one_gpu(kind: str, tmp_path: Path) -> None:
    """They make room for each other, sleep and wake, and lend the GPU; the command tells of all of it."""
    gpu = tmp_path / "gpu"
    gpu.mkdir()
    shares = ("--gpu", str(gpu), "--gpu-memory-utilization", "0.6", "--start-delay", "0.2")
    settings = {"gpu_memory": 0.6, "min_residency": 0}
    backends = {
        "coder": demo(*shares, "--enable-sleep-mode", environment={"VLLM_SERVER_DEV_MODE": "1"}, **settings),
        "chat": demo(*shares, **settings),
    }
    with running(kind, tmp_path, backends, host_memory_for_sleep="64GiB") as proxy:

        def told(*words: str, status: int = 0) -> str:
            done = llmproxy(proxy, *words)
            assert done.returncode == status, done
            return done.stdout if status == 0 else done.stderr

        assert "coder would be ready in about" in told("plan", "coder")
        assert proxy.chat("coder").status == 200
        assert "It was started for requests that waited for it." in told("why", "coder")
        assert "coder falls asleep at level 1: makes room for chat" in told("plan", "chat")
        assert proxy.chat("chat").status == 200
        assert proxy.state("coder") == "sleeping"
        assert "sleeping (level 1)" in told("status")
        why = told("why", "coder")
        assert "It was evicted" in why
        assert "it makes room for chat" in why
        assert "coder had to leave for it." in told("why", "chat")
        assert "cannot sleep" in told("sleep", "chat", status=1)

        assert told("wake", "coder").startswith("coder: ready after")
        assert proxy.state("chat") == "absent"
        assert "asleep at level 1 after" in told("sleep", "coder")
        assert "coder is absent" not in told("why", "coder")
        assert told("start", "chat").startswith("chat: ready after")
        row = told("gpus").splitlines()[1]
        assert "chat 0.60" in row
        assert "coder 0.0" in row

        lent = told("lease", "--memory", "50%", "--for", "40m", "--note", "a game", "--wait")
        assert lent.startswith("lease-1: 0.50 of GPU 0 (a game), held, 4")
        assert proxy.state("chat") == "absent"
        assert "a game" in told("leases")
        refused = told("start", "chat", status=1)
        assert "0.50 of it lent" in refused
        assert "llmproxy release" in refused
        assert proxy.chat("chat").error["code"] == "does_not_fit"
        assert "lease-1" in told("status")
        assert told("release", "--all") == "lease-1: released\n"
        assert told("start", "chat").startswith("chat: ready after")
        assert "use one that backends use: 0" in told(
            "lease", "--gpu", "7", "--memory", "0.5", "--for", "1m", status=2
        )
        assert "The record spans" in told("advise")
        metrics = proxy.ask("GET", "/metrics", key=None).body.decode()
        assert 'llmproxy_evictions_total{backend="coder",reason="room"}' in metrics
        assert 'llmproxy_evictions_total{backend="chat",reason="lease"} 1.0' in metrics
        assert 'llmproxy_wake_seconds_count{backend="coder"} 1.0' in metrics
        assert not (gpu / "faults").exists()
