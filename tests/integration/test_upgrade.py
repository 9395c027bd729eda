"""One process of the proxy gives its place to the next one, over the network."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import time
from pathlib import Path

import pytest

from tests.certificates import authority, issue
from tests.integration.proxy import ADMIN, KEY, Proxy, Wire, chat, content, demo, free_port, head
from tests.integration.upgraded import Load, processes, upgradable, upgrade
from tests.integration.world import until

UPGRADES = 20


def alone(proxy: Proxy, pid: int) -> None:
    """Wait until that process is the only one."""
    until(lambda: processes(proxy) == [pid])


def test_twenty_upgrades_lose_no_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streams, kept connections, uploads and those who wait for a start: all get their whole answer, and all
    of them are in the books, once."""
    backends = {"a": demo(), "b": demo("--start-delay", "1.5", idle="0.3s")}
    with upgradable(tmp_path, backends) as proxy:
        proxy.chat("a")
        with Load(proxy) as load:
            load.more("kept", 2, lambda: load.kept(0.02))
            load.more("resting", 3, lambda: load.kept(0.25))
            load.more("fresh", 2, lambda: load.fresh(0.02))
            load.more("stream", 3, lambda: load.streams(60, 0.02))
            load.more("held", 2, lambda: load.held("b", stream=False))
            load.more("held stream", 1, lambda: load.held("b", stream=True))
            load.more("upload", 1, load.uploads)
            time.sleep(0.5)
            before = dict(load.longest)
            load.longest.clear()
            pids, took, paused = {proxy.pid}, [], []
            for _ in range(UPGRADES):
                began = time.monotonic()
                done = upgrade(proxy)
                assert done.status == 200, done
                took.append(time.monotonic() - began)
                paused.append(done.json["paused"])
                pids.add(done.json["pid"])
        assert load.failed == []
        assert len(pids) == UPGRADES + 1
        assert {"kept", "resting", "fresh", "stream", "held", "upload"} <= set(load.answered)
        assert load.longest["fresh"] < 2.0, load.longest
        alone(proxy, done.json["pid"])
        with capsys.disabled():
            told = ", ".join(f"{kind} {count}" for kind, count in load.answered.items())
            most = ", ".join(f"{kind} {seconds:.3f}" for kind, seconds in load.longest.items())
            print(f"\n  answers: {told}\n  longest: {most} s (before: {before.get('fresh', 0):.3f})")
            print(f"  an upgrade: {sum(took) / len(took):.2f} s, at most {max(took):.2f} s")
            print(f"  nobody accepts: {sum(paused) / len(paused):.4f} s, at most {max(paused):.4f} s")

        def counted() -> bool:
            rows = proxy.ask("GET", "/api/usage?by=backend", key=ADMIN).json["rows"]
            return bool(sum(row["requests"] for row in rows) == sum(load.answered.values()) + 1)

        until(counted)
        # As a supervisor would end it.
        os.kill(done.json["pid"], signal.SIGTERM)
        until(lambda: not processes(proxy))


def test_those_who_wait_go_on_waiting(tmp_path: Path) -> None:
    """A held stream hears on, as if nothing had happened, and the model is started once."""
    often = {"heartbeat_after": "0.2s", "heartbeat_every": "0.2s"}
    with upgradable(tmp_path, {"a": demo("--start-delay", "3", **often)}) as proxy, proxy.wire() as wire:
        body = json.dumps(chat("a-model", stream=True, max_tokens=5)).encode()
        wire.post("/v1/chat/completions", body, "Content-Type: application/json", "X-Request-ID: mine")
        wire.through(b": llmproxy {")
        done = upgrade(proxy)
        assert done.status == 200, done
        wire.pending = b""
        wire.through(b": llmproxy {")
        rest = wire.through(b"data: [DONE]\n\n")
        elapsed = [
            json.loads(line.removeprefix(": llmproxy "))["elapsed"]
            for line in rest.decode().splitlines()
            if line.startswith(": llmproxy {")
        ]
        assert elapsed == sorted(elapsed)
        assert elapsed[-1] >= 2
        assert content(b"\n".join(line for line in rest.splitlines() if line.startswith(b"data")))
        assert proxy.world.starts("a") == 1
        # It is written down by the new process, with all of its time.
        line = proxy.access("mine")
        assert (line["key"], line["outcome"], line["client"]) == ("site", "ok", "127.0.0.1")
        assert float(line["held"]) > 2.5
        alone(proxy, done.json["pid"])


def test_what_is_in_flight_there_keeps_its_backend(tmp_path: Path) -> None:
    """The new process does not stop a model that only the old one still streams from, but afterwards."""
    with upgradable(tmp_path, {"a": demo(idle="0.4s")}) as proxy:
        with proxy.streaming("a", tokens=100, delay=0.02) as wire:
            done = upgrade(proxy)
            assert done.status == 200, done
            assert proxy.backend("a")["in_flight"] == 1
            rest = wire.through(b"[DONE]")
            assert rest.count(b'"content"') > 50
        until(lambda: not proxy.world.is_running("a"))
        alone(proxy, done.json["pid"])


def test_what_outlasts_the_drain_limit_is_told_so(tmp_path: Path) -> None:
    """As when the proxy ends: an error event, and no clean end; the model goes on."""
    with (
        upgradable(tmp_path, {"a": demo()}, drain="0.5s") as proxy,
        proxy.streaming("a", delay=0.02) as wire,
    ):
        done = upgrade(proxy)
        assert done.status == 200, done
        rest = wire.rest()
        assert b'"code": "backend_died"' in rest
        assert not rest.endswith(b"0\r\n\r\n")
        alone(proxy, done.json["pid"])
        assert proxy.chat("a").status == 200
        assert proxy.world.starts("a") == 1


def test_a_new_process_that_does_not_come_up_changes_nothing(tmp_path: Path) -> None:
    """It is said why: a wrong setting, a file that is gone; streams go on, and a later upgrade succeeds."""
    with upgradable(tmp_path, {"a": demo()}) as proxy, proxy.streaming("a", tokens=400, delay=0.01) as wire:
        good = proxy.file.read_text()
        proxy.file.write_text(good + "\nno_such_setting: 1\n")
        refused = upgrade(proxy)
        assert refused.status == 409
        assert "no_such_setting" in refused.error["message"]
        os.rename(proxy.file, proxy.folder / "elsewhere")
        refused = upgrade(proxy)
        assert refused.status == 409
        assert str(proxy.file) in refused.error["message"]
        proxy.file.write_text(good)
        alone(proxy, proxy.pid)
        assert proxy.chat("a").status == 200
        assert wire.through(b"[DONE]")
        assert upgrade(proxy).status == 200


def test_the_end_of_the_service_waits_for_both(tmp_path: Path) -> None:
    """TERM to the new process: what the old one still carries has as long as what is carried there."""
    with (
        upgradable(tmp_path, {"a": demo()}) as proxy,
        proxy.streaming("a", tokens=100, delay=0.02) as old,
    ):
        done = upgrade(proxy)
        assert done.status == 200, done
        with proxy.streaming("a", tokens=100, delay=0.02) as new:
            os.kill(done.json["pid"], signal.SIGTERM)
            assert old.through(b"[DONE]")
            assert new.through(b"[DONE]")
        until(lambda: not processes(proxy))
        assert proxy.world.is_running("a")


def test_a_signal_is_enough(tmp_path: Path) -> None:
    """SIGUSR2 does what the command does, and what the API has set goes on: keys, leases."""
    with upgradable(tmp_path, {"a": demo(gpu_memory=0.5)}) as proxy:
        made = proxy.ask("POST", "/api/keys", {"name": "new"}, key=ADMIN)
        assert made.status in (200, 201), made
        lent = proxy.ask("POST", "/api/leases", {"memory": 0.25, "seconds": 600}, key=ADMIN)
        assert lent.status in (200, 201, 202), lent
        os.kill(proxy.pid, signal.SIGUSR2)
        until(lambda: processes(proxy) and proxy.pid not in processes(proxy))
        assert proxy.chat("a", key=made.json["secret"]).status == 200
        assert len(proxy.ask("GET", "/api/leases", key=ADMIN).json["leases"]) == 1


class Unix(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def test_every_kind_of_endpoint_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS, a Unix socket and the PROXY protocol: connections that are open, too."""
    root = authority()
    private, certificate = issue(by=root).write(tmp_path)
    path, secure, behind = str(tmp_path / "socket"), free_port(), free_port()
    more = (
        f"ssl:{secure}:privateKey={private}:certKey={certificate}:interface=127.0.0.1",
        f"unix:{path}:mode=660",
        f"haproxy:tcp:{behind}:interface=127.0.0.1",
    )
    command = Proxy.command
    listens = [word for one in more for word in ("--listen", one)]
    monkeypatch.setattr(Proxy, "command", lambda proxy, *words: command(proxy, *words, *listens))
    context = ssl.create_default_context(cadata=root.pem.decode())
    with upgradable(tmp_path, {"a": demo()}) as proxy:
        connections = [
            http.client.HTTPSConnection("localhost", secure, context=context, timeout=20),
            Unix(path),
        ]

        def ask() -> list[bool]:
            """Whether each connection ends with its answer."""
            ends = []
            for connection in connections:
                connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
                answer = connection.getresponse()
                assert answer.read()
                assert answer.status == 200
                ends.append(answer.will_close)
            return ends

        def through_a_proxy() -> None:
            with Wire(behind) as wire:
                wire.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n" + head("GET", "/v1/models"))
                assert wire.answer().status == 200

        assert ask() == [False, False]
        for _ in range(2):
            done = upgrade(proxy)
            assert done.status == 200, done
            # Only the old process has the keys of a TLS session.
            assert ask() == [True, False]
            assert ask() == [False, False]
            through_a_proxy()
            assert os.stat(path).st_mode & 0o777 == 0o660
        alone(proxy, done.json["pid"])
        for connection in connections:
            connection.close()
        os.kill(done.json["pid"], signal.SIGTERM)
        until(lambda: not processes(proxy))
        assert not os.path.exists(path)
        assert "client=192.0.2.7" in proxy.log()


def test_a_model_that_is_configured_anew_ends_when_it_is_through(tmp_path: Path) -> None:
    """The new process has other settings for it: the old child finishes what it streams, then another one
    takes its place; a child of a route that is gone ends likewise."""
    with upgradable(tmp_path, {"a": demo(), "b": demo()}) as proxy:
        assert proxy.chat("b").status == 200
        with proxy.streaming("a", tokens=100, delay=0.02) as wire:
            (first,) = proxy.world.pids("a")  # type: ignore[attr-defined]
            proxy.configure({"a": demo("--token-delay", "0.001")})
            done = upgrade(proxy)
            assert done.status == 200, done
            assert Path(f"/proc/{first}").exists()
            assert proxy.state("a") == "absent"
            assert wire.through(b"[DONE]").count(b'"content"') > 50
        alone(proxy, done.json["pid"])
        assert proxy.chat("a").status == 200
        assert proxy.world.starts("a") == 2
        until(lambda: not Path(f"/proc/{first}").exists())
        until(lambda: not proxy.world.is_running("b"))


def test_the_new_process_is_told_to_end_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one serves on, on its Unix socket, too, which is not that one's to end."""
    path = str(tmp_path / "socket")
    command = Proxy.command
    more = ("--listen", f"unix:{path}")
    monkeypatch.setattr(Proxy, "command", lambda proxy, *words: command(proxy, *words, *more))
    with upgradable(tmp_path, {"a": demo()}) as proxy:
        os.kill(proxy.pid, signal.SIGUSR2)
        # With the process between.
        until(lambda: len(processes(proxy)) == 3)
        # So that nothing is given away.
        os.kill(proxy.pid, signal.SIGSTOP)
        try:
            until(lambda: proxy.log().count("routes: /a") == 2)
            os.kill(processes(proxy)[-1], signal.SIGTERM)
            until(lambda: "Server Shut Down" in proxy.log())
        finally:
            os.kill(proxy.pid, signal.SIGCONT)
        until(lambda: "not upgraded" in proxy.log())
        assert "Unhandled" not in proxy.log()
        connection = Unix(path)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        assert upgrade(proxy).status == 200


def test_the_old_process_is_told_to_end_before_the_new_one_serves(tmp_path: Path) -> None:
    """Then both do, and what ends with the proxy."""
    with upgradable(tmp_path, {"a": demo()}, stop_backends_on_exit=True) as proxy:
        with proxy.streaming("a", tokens=200, delay=0.02) as wire:
            os.kill(proxy.pid, signal.SIGUSR2)
            until(lambda: len(processes(proxy)) == 3)
            proxy.term()
            assert wire.through(b"[DONE]")
        until(lambda: not processes(proxy))
        assert "not upgraded: this process ends" in proxy.log()
        until(lambda: not proxy.world.is_running("a"))
