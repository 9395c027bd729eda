"""The log of a real proxy: lines for people, or an object a line for programs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llmproxy.web.accesslog import GATHER
from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY, Proxy, demo, head
from tests.integration.world import ROOT, until


def objects(text: str) -> list[dict[str, Any]]:
    """All lines, each of which is an object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in found)
    for line in found:
        assert {"time", "level", "logger", "message"} <= set(line), line
    return found


def told(proxy: Proxy, **fields: object) -> list[dict[str, Any]]:
    """The lines with these fields, once there are any."""
    return until(
        lambda: [line for line in objects(proxy.log()) if all(line.get(n) == v for n, v in fields.items())]
    )


def test_every_line_is_an_object(launch: Launch) -> None:
    """From the first to the last, with what happened in fields; and no secret in any."""
    proxy = launch(
        {"a": demo(), "broken": {"runtime": "process", "engine": "generic", "command": ["/bin/false"]}},
        log={"format": "json"},
        stop_backends_on_exit=True,
    )
    answer = proxy.chat("a", headers={"X-Request-ID": "mine-1"})
    assert answer.status == 200
    assert proxy.chat("a", key="wrong-key-for-tests").status == 401
    assert proxy.ask("GET", "/broken/x").status == 503
    with proxy.wire() as wire:
        # What could break a line, if anything could.
        path = '/a/"}\\u000a{"level":"fake"}31m%0d%0a'
        wire.send(head("GET", path, 'X-Request-ID: "a"}{'))
        wire.answer()
    (request,) = told(proxy, request_id="mine-1")
    assert (request["key"], request["backend"], request["state"]) == ("site", "a", "absent")
    assert (request["status"], request["outcome"], request["error"]) == (200, "ok", None)
    assert request["held"] == pytest.approx(float(answer.header("X-LLMProxy-Cold-Start") or 0), abs=0.001)
    assert request["seconds"] >= request["first_byte"] >= request["held"] > 0
    assert request["completion_tokens"] == answer.json["usage"]["completion_tokens"]
    assert told(proxy, error="invalid_api_key")[0]["key"] is None
    assert told(proxy, error="backend_start_failed")[0]["backend"] == "broken"
    steps = [(line["from"], line["to"]) for line in told(proxy, backend="a") if "to" in line]
    assert steps == [("absent", "starting"), ("starting", "ready")]
    assert told(proxy, request_id='"a"}{')[0]["path"].endswith("31m%0d%0a")
    proxy.stop()
    lines = objects(proxy.log())
    assert {line["level"] for line in lines} <= {"info", "warn"}
    assert any("Server Shut Down" in line["message"] for line in lines)
    for secret in (KEY, ADMIN, BACKEND_KEY, "wrong-key-for-tests", "Hello there"):
        assert secret not in proxy.log()


def test_a_reload_changes_form_and_level(launch: Launch) -> None:
    """From then on, without a restart."""
    proxy = launch({"a": demo()})
    assert proxy.ask("GET", "/v1/models").status == 200
    until(lambda: "path=/v1/models" in proxy.log())
    proxy.configure({"a": demo()}, log={"format": "json", "level": "warn"})
    os.kill(proxy.pid, signal.SIGHUP)

    def silent() -> bool:
        before = proxy.log()
        assert proxy.ask("GET", "/v1/models").status == 200
        time.sleep(2 * GATHER)
        return proxy.log() == before

    # A request is not important enough any more.
    until(silent)
    before = proxy.log()
    proxy.configure({"a": demo()}, log={"format": "json"})
    os.kill(proxy.pid, signal.SIGHUP)
    until(lambda: proxy.log() != before)
    (first, *_) = objects(proxy.log()[len(before) :])
    assert "configuration read again" in first["message"]


def test_the_environment_says_so(launch: Launch) -> None:
    """As for a container; and a named file has the same lines, escaped where it is text."""
    proxy = launch({"a": demo()}, environment={"LLMPROXY_LOG_FORMAT": "json"})
    assert objects(proxy.log())
    proxy = launch({"a": demo()}, start=False, environment={"LLMPROXY_LOG_LEVEL": "error"})
    proxy.start()
    assert proxy.chat("a").status == 200
    proxy.stop()
    assert proxy.log() == ""


def test_a_log_file_of_twistds(launch: Launch) -> None:
    """``twistd --logfile`` keeps its meaning."""
    proxy = launch({"a": demo()}, start=False, log={"format": "json"})
    file = proxy.folder / "named.log"
    # It is an option of twistd's own, in front of the plugin's name.
    command = proxy.command()
    command[command.index("llmproxy") : command.index("llmproxy")] = ["--logfile", str(file)]
    process = subprocess.Popen(
        command, cwd=proxy.folder, env=proxy.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        until(lambda: file.exists() and "listening on" in file.read_text())
    finally:
        process.terminate()
        process.wait(20)
    assert any(line["message"].startswith("listening on") for line in objects(file.read_text()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to become somebody who may not use a socket")
def test_the_container_speaks_the_same_form(tmp_path: Path) -> None:
    """What the image's entry point has to say is an object, too, where the log has objects."""
    path = tmp_path / 'd"s'
    tmp_path.chmod(0o755)
    script = tmp_path / "entrypoint.sh"
    script.write_text((ROOT / "deploy" / "entrypoint.sh").read_text())
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        for parent in tmp_path.parents[:2]:
            parent.chmod(parent.stat().st_mode | 0o755)
        for form in ("json", "text"):
            ran = subprocess.run(
                ["/bin/sh", str(script), "echo", "and on"],
                env={
                    "PATH": os.environ["PATH"],
                    "DOCKER_HOST": f"unix://{path}",
                    "LLMPROXY_LOG_FORMAT": form,
                },
                user=65534,
                group=65534,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            assert ran.stdout == "and on\n"
            if form == "json":
                first, second = objects(ran.stderr)
                assert str(path) in first["message"]
                assert "DOCKER_GID=0" in second["message"]
            else:
                assert ran.stderr.startswith(f"llmproxy: {path} belongs to group 0")
