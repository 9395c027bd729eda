"""Section 5 of the contract: how backends leave, what interferes with them, and how the proxy itself ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY, Proxy, Wire, chat, content, demo
from tests.integration.world import until


def body(route: str, **more: Any) -> bytes:
    """A chat completion."""
    return json.dumps(chat(f"{route}-model", **more)).encode()


# -- idle -----------------------------------------------------------------------------------------


def test_idle_reap(launch: Launch) -> None:
    """After idle seconds without a request the backend is stopped, and the next request starts it."""
    proxy = launch({"a": demo(idle="1s")})
    assert proxy.chat("a").status == 200
    ended = time.monotonic()
    proxy.until_state("a", "stopping", "absent")
    assert 0.8 < time.monotonic() - ended < 5
    proxy.until_state("a", "absent")
    assert not proxy.world.is_running("a")
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2


def test_long_stream_is_not_cut(launch: Launch) -> None:
    """A stream that takes longer than idle comes whole; the clock starts with its last byte."""
    proxy = launch({"a": demo(idle="0.5s")})
    answer = proxy.chat("a", stream=True, max_tokens=20, ignore_eos=True, demo_token_delay=0.1)
    ended = time.monotonic()
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert len(content(answer.body).split()) == 20
    assert proxy.state("a") == "ready"
    proxy.until_state("a", "absent")
    assert time.monotonic() - ended > 0.4
    assert proxy.world.starts("a") == 1


def test_passive_paths_keep_nothing_awake(launch: Launch) -> None:
    """Asking for health and metrics does not set the idle clock back."""
    proxy = launch({"a": demo(idle="1s")})
    assert proxy.chat("a").status == 200

    def look() -> bool:
        return proxy.ask("GET", "/a/metrics").status == 503

    until(look, 3, every=0.1)


def test_request_while_stopping(launch: Launch) -> None:
    """A request that comes while the backend is being stopped is answered by a new start."""
    proxy = launch({"a": demo("--ignore-term", "1", idle="0.3s", stop_grace="2s")})
    assert proxy.chat("a").status == 200
    proxy.until_state("a", "stopping")
    answer = proxy.chat("a")
    assert answer.status == 200
    assert float(answer.header("X-LLMProxy-Cold-Start") or 0) > 0.2
    assert proxy.world.starts("a") == 2


def test_stubborn_backend(launch: Launch) -> None:
    """A backend that ignores TERM is killed after stop_grace, with everything that it has started."""
    proxy = launch(
        {
            "a": demo(
                "--ignore-term",
                "-1",
                wrapper=["/bin/sh", "-c", "trap '' TERM; sleep 987 & exec \"$@\"", "sh"],
                idle="0.2s",
                stop_grace="1s",
            )
        }
    )
    assert proxy.chat("a").status == 200
    proxy.until_state("a", "stopping")
    began = time.monotonic()
    proxy.until_state("a", "absent")
    assert 0.5 < time.monotonic() - began < 8
    assert not proxy.world.is_running("a")


# -- interference from outside --------------------------------------------------------------------


def test_killed_while_ready(launch: Launch) -> None:
    """A backend that somebody kills is noticed at once, and the next request starts it."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    proxy.world.kill("a")
    proxy.until_state("a", "absent", seconds=3)
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2


def test_killed_while_starting(launch: Launch) -> None:
    """A backend that is killed while it starts is a failed start, told at once."""
    proxy = launch({"a": demo("--start-delay", "60")})
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", body("a"))
        until(lambda: proxy.world.starts("a"))
        proxy.world.kill("a")
        began = time.monotonic()
        answer = wire.answer()
        assert time.monotonic() - began < 5
    assert (answer.status, answer.error["code"]) == (503, "backend_start_failed")
    assert "137" in answer.error["message"]


def test_killed_while_streaming(launch: Launch) -> None:
    """A backend that is killed in mid-stream is told by an error event and no clean end."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire:
        proxy.world.kill("a")
        rest = wire.rest()
    assert b'"code": "backend_died"' in rest or b'"code":"backend_died"' in rest
    assert not rest.endswith(b"0\r\n\r\n")
    proxy.until_state("a", "absent", seconds=3)
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2


def test_killed_while_asked(launch: Launch) -> None:
    """A backend that is killed before it answers is 502; the next request starts it."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", body("a"), "X-Demo-Fault: hang")
        until(lambda: proxy.stats("a")["running"] == 1)
        proxy.world.kill("a")
        answer = wire.answer()
    assert (answer.status, answer.error["code"]) == (502, "backend_unavailable")
    assert answer.header("Retry-After")
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2


def test_killed_while_stopping(launch: Launch) -> None:
    """A backend that is killed while it is being stopped is absent at once."""
    proxy = launch({"a": demo("--ignore-term", "-1", stop_grace="20s")})
    assert proxy.chat("a").status == 200
    assert proxy.act("a", "stop", "").status == 202
    proxy.until_state("a", "stopping")
    proxy.world.kill("a")
    proxy.until_state("a", "absent", seconds=3)


def test_stop_drains(launch: Launch) -> None:
    """The operator's stop lets a stream finish; with force it is broken off."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a", tokens=30, delay=0.05) as wire:
        assert proxy.act("a", "stop", "").json["state"] == "draining"
        rest = wire.through(b"data: [DONE]\n\n")
        assert b"error" not in rest
    proxy.until_state("a", "absent")
    with proxy.streaming("a") as wire:
        assert proxy.act("a", "stop", "?force=1&wait=1").json["state"] == "absent"
        assert b"backend_died" in wire.rest()
    assert not proxy.world.is_running("a")


# -- the proxy killed, and started again ----------------------------------------------------------


def again(proxy: Proxy) -> None:
    """Kill the proxy and start it again."""
    proxy.kill()
    proxy.start()


def test_proxy_killed_while_absent(launch: Launch) -> None:
    """A proxy that is killed while nothing runs finds nothing, and starts on demand."""
    proxy = launch({"a": demo()})
    again(proxy)
    assert proxy.state("a") == "absent"
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1


def test_proxy_killed_while_starting(launch: Launch) -> None:
    """A backend that starts when the proxy is killed goes on starting, and is not started twice."""
    proxy = launch({"a": demo("--start-delay", "2")})
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", body("a"))
        until(lambda: proxy.world.starts("a"))
        proxy.kill()
        assert wire.rest() == b""
    proxy.start()
    assert proxy.state("a") == "starting"
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1


def test_proxy_killed_right_after_the_launch(launch: Launch) -> None:
    """Even at the very moment of a start there is only one backend afterwards."""
    proxy = launch({"a": demo("--start-delay", "0.3")})
    for pause in (0.0, 0.01, 0.05):
        with proxy.wire() as wire:
            wire.post("/a/v1/chat/completions", body("a"))
            time.sleep(pause)
            again(proxy)
        assert proxy.chat("a").status == 200
        assert proxy.stats("a")["pid"] == last_pid(proxy)
        running = [pid for pid in pids(proxy) if is_alive(pid)]
        assert running == [last_pid(proxy)]
        assert proxy.act("a", "stop").json["state"] == "absent"


def pids(proxy: Proxy) -> list[int]:
    """Process ids of all starts of ``a``."""
    lines = (proxy.folder / "starts-a").read_text().splitlines()
    return [int(line.split()[1]) for line in lines]


def last_pid(proxy: Proxy) -> int:
    """Process id of the last start of ``a``."""
    return pids(proxy)[-1]


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_proxy_killed_while_ready(launch: Launch) -> None:
    """A ready backend is adopted, answers without a start, and is reaped when it is idle."""
    proxy = launch({"a": demo(idle="1.5s")})
    assert proxy.chat("a").status == 200
    again(proxy)
    proxy.until_state("a", "ready", seconds=5)
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1
    proxy.until_state("a", "absent")
    assert not proxy.world.is_running("a")


def test_proxy_killed_while_streaming(launch: Launch) -> None:
    """A proxy that is killed in mid-stream leaves the backend running, and adopts it."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire:
        proxy.kill()
        assert not wire.rest().endswith(b"0\r\n\r\n")
    proxy.start()
    assert proxy.chat("a").status == 200
    until(lambda: proxy.stats("a")["aborted"] == 1)
    assert proxy.world.starts("a") == 1
    proxy.world.kill("a")  # an adopted one is watched, too
    proxy.until_state("a", "absent", seconds=3)
    assert proxy.chat("a").status == 200


def test_proxy_killed_while_stopping(launch: Launch) -> None:
    """A backend that is being stopped when the proxy is killed, and runs on, is adopted."""
    proxy = launch({"a": demo("--ignore-term", "1", stop_grace="4s")})
    assert proxy.chat("a").status == 200
    proxy.act("a", "stop", "")
    proxy.until_state("a", "stopping")
    time.sleep(0.1)
    again(proxy)
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1
    assert proxy.act("a", "stop").json["state"] == "absent"
    assert not proxy.world.is_running("a")


def test_backend_that_ended_while_the_proxy_was_away(launch: Launch) -> None:
    """What ended while no proxy ran is absent."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    proxy.kill()
    proxy.world.kill("a")
    proxy.start()
    assert proxy.state("a") == "absent"
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 2


# -- the proxy ends -------------------------------------------------------------------------------


def is_refused(proxy: Proxy) -> bool:
    """Whether no new connection is taken."""
    try:
        Wire(proxy.port).socket.close()
    except ConnectionError:
        return True
    return False


def test_term(launch: Launch) -> None:
    """TERM: no new connections, waiters refused, streams finished, backends left, and adopted later."""
    proxy = launch({"a": demo(), "slow": demo("--start-delay", "60")})
    assert proxy.chat("a").status == 200
    with proxy.streaming("a", tokens=40, delay=0.05) as stream, proxy.wire() as waiter, proxy.wire() as idle:
        waiter.post("/slow/v1/chat/completions", body("slow"))
        proxy.until_waiting("slow", 1)
        proxy.term()
        refused = waiter.answer()
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert int(refused.header("Retry-After") or 0) >= 1
        assert idle.rest() == b""
        until(lambda: is_refused(proxy), 2)
        assert b"error" not in stream.through(b"data: [DONE]\n\n")
        assert stream.rest() == b"\r\n0\r\n\r\n"
    assert proxy.wait(5) == -signal.SIGTERM
    assert proxy.world.is_running("a")
    proxy.start()
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1
    assert proxy.state("slow") == "starting"
    assert proxy.world.starts("slow") == 1


def test_term_and_the_drain_limit(launch: Launch) -> None:
    """A stream that goes on beyond drain is broken off, and the proxy ends."""
    proxy = launch({"a": demo()}, drain="0.5s")
    assert proxy.chat("a").status == 200
    with proxy.streaming("a") as wire:
        began = time.monotonic()
        assert proxy.stop() == -signal.SIGTERM
        assert 0.4 < time.monotonic() - began < 8
        assert not wire.rest().endswith(b"0\r\n\r\n")
    assert proxy.world.is_running("a")


def test_stop_backends_on_exit(launch: Launch) -> None:
    """With stop_backends_on_exit nothing runs when the proxy has ended."""
    proxy = launch(
        {"a": demo(), "slow": demo("--start-delay", "60", prewarm=True)}, stop_backends_on_exit=True
    )
    assert proxy.chat("a").status == 200
    until(lambda: proxy.world.starts("slow") == 1)
    assert proxy.stop() == -signal.SIGTERM
    assert not proxy.world.is_running("a")
    assert not proxy.world.is_running("slow")


# -- the configuration read again -----------------------------------------------------------------


def test_reload(launch: Launch) -> None:
    """HUP touches only the backends whose settings changed; their streams finish first."""
    same, old = demo(), demo()
    proxy = launch({"same": same, "a": old, "tuned": demo(), "gone": demo()})
    for route in ("same", "a", "tuned", "gone"):
        assert proxy.chat(route).status == 200
    pid = proxy.stats("same")["pid"]
    with (
        proxy.streaming("same", tokens=40, delay=0.05) as kept,
        proxy.streaming("a", tokens=40, delay=0.05) as drained,
    ):
        proxy.configure(
            {"same": same, "a": demo("--log-line", "new"), "tuned": demo(idle="1s"), "new": demo()}
        )
        proxy.hang_up()
        assert proxy.chat("new").status == 200
        assert proxy.ask("GET", "/gone/v1/models").status == 404
        assert proxy.chat("a").status == 200  # held until the old one has gone
        for wire in (kept, drained):
            assert b"error" not in wire.through(b"data: [DONE]\n\n")
    assert proxy.stats("same")["pid"] == pid
    assert proxy.world.starts("same") == proxy.world.starts("tuned") == 1
    assert proxy.world.starts("a") == 2
    assert "new" in proxy.ask("GET", "/api/backends/a/logs", key=ADMIN).body.decode()
    proxy.until_state("tuned", "absent")
    until(lambda: not proxy.world.is_running("gone"))


def test_bad_reload(launch: Launch) -> None:
    """A bad file is refused with its reason in the log, and the old configuration stays."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    good = proxy.file.read_text()
    for text, reason in (("backends: {a: {colour: red}}", "colour"), ("{", "llmproxy.yaml")):
        proxy.file.write_text(text)
        before = len(proxy.log())
        proxy.hang_up()
        line = next(each for each in proxy.log()[before:].splitlines() if "not reloaded" in each)
        assert reason in line
        assert proxy.chat("a").status == 200
    proxy.file.write_text(good)
    proxy.hang_up()
    assert proxy.chat("a").status == 200
    assert proxy.world.starts("a") == 1


def test_reload_of_keys(launch: Launch) -> None:
    """Keys are changed by HUP."""
    proxy = launch({"a": demo()})
    keys = [{"name": "next", "secret": "another-key"}, {"name": "boss", "secret": ADMIN, "admin": True}]
    proxy.configure({"a": demo()}, keys=keys)
    proxy.hang_up()
    until(lambda: proxy.ask("GET", "/v1/models", key="another-key").status == 200)
    assert proxy.ask("GET", "/v1/models").status == 401


# -- starts that are refused ----------------------------------------------------------------------


def run_to_end(proxy: Proxy, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a proxy that is expected to end by itself."""
    return subprocess.run(
        proxy.command(*arguments),
        cwd=proxy.folder,
        env={**proxy.environ(), **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backends: {a: {runtime: url, url: 'http://127.0.0.1:1', colour: red}}", ("colour", "backends.a")),
        ("backends: {a: {runtime: url, url: 'http://127.0.0.1:1', idle: soon}}", ("idle", "soon")),
        ("backends: {v1: {runtime: url, url: 'http://127.0.0.1:1'}}", ("v1",)),
        ("backends: {a: {runtime: process}}", ("a", "command")),
        ("backends: [1, 2", ("llmproxy.yaml",)),
        ("listen: ['nonsense:1']", ("nonsense",)),
    ],
)
def test_bad_configuration(launch: Launch, text: str, words: tuple[str, ...]) -> None:
    """A bad setting is one line on standard error and exit status 2; nothing was started."""
    proxy = launch({}, start=False)
    proxy.file.write_text(text)
    command = proxy.command()[:-2]  # --listen would hide what the file says
    ended = subprocess.run(
        command,
        cwd=proxy.folder,
        env=proxy.environ(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2, ended
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr
    assert ended.stdout == ""
    assert not (proxy.folder / "twistd.pid").exists()


def test_bad_environment_and_command_line(launch: Launch) -> None:
    """So are a bad variable, a file that is not there and a bad option."""
    proxy = launch({"a": demo(prewarm=True)}, start=False)
    bad = run_to_end(proxy, IDLE_SECONDS="soon")
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1), bad
    assert "IDLE_SECONDS" in bad.stderr
    bad = run_to_end(proxy, PREWARM_ROUTES="nobody")
    assert bad.returncode == 2
    assert "nobody" in bad.stderr
    bad = run_to_end(proxy, "--no-such-option")
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1), bad
    proxy.file.rename(proxy.folder / "elsewhere.yaml")
    bad = run_to_end(proxy)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1), bad
    assert "llmproxy.yaml" in bad.stderr
    assert proxy.world.starts("a") == 0
    for secret in (KEY, ADMIN, BACKEND_KEY):
        assert secret not in bad.stderr


def test_port_taken(launch: Launch) -> None:
    """A port that is taken ends the proxy with one line and status 1; nothing was started, nothing harmed."""
    proxy = launch({"a": demo()})
    assert proxy.chat("a").status == 200
    second = Proxy(proxy.folder / "second", proxy.world, port=proxy.port)
    second.folder.mkdir()
    second.configure({"b": demo(prewarm=True)})
    ended = run_to_end(second)
    assert ended.returncode == 1, ended
    assert len(ended.stderr.splitlines()) == 1, ended
    assert str(proxy.port) in ended.stderr
    assert proxy.world.starts("b") == 0
    assert proxy.chat("a").status == 200


def test_second_signal(launch: Launch) -> None:
    """INT ends the proxy as TERM does."""
    proxy = launch({"a": demo()})
    os.kill(proxy.pid, signal.SIGINT)
    assert proxy.wait(5) == -signal.SIGINT
