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
        for words in ("events --json", "logs -f -n 0 a")
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
    events = [json.loads(line) for line in told["events --json"].splitlines() if line.startswith("{")]
    steps = [(event["from"], event["to"]) for event in events if event["backend"] == "a"]
    assert ("absent", "starting") in steps
    assert steps[-1] == ("stopping", "absent")
    assert "Shutting down" in told["logs -f -n 0 a"]
    assert "startup complete" not in told["logs -f -n 0 a"]
