"""The operator's command against a server that speaks the admin API's shapes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from llmproxy.cli.client import Api, connect, read_env_file
from llmproxy.cli.view import backend_lines, backends_table, duration, event_line
from tests.unit.fake_proxy import KEY, FakeProxy, Handler, backend, run, served

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch) as fake:
        yield fake


def test_status_shows_every_backend(proxy: FakeProxy) -> None:
    """``status`` has a line for each backend, and the reason and fix of a failure."""
    result = run("status")
    assert result.exit_code == 0
    coder, chat = result.stdout.splitlines()[1:3]
    assert coder.split()[:2] == ["coder", "ready"]
    assert "stops in 1 m 30 s" in coder
    assert "http://172.18.0.3:8001" in coder
    assert "retry in 20 s" in chat
    assert "Lower --gpu-memory-utilization." in result.stdout


def test_status_of_one(proxy: FakeProxy) -> None:
    """``status NAME`` shows all that is known of it, the end of a failed start's log included."""
    result = run("status", "chat")
    assert result.exit_code == 0
    assert "CUDA out of memory" in result.stdout


@pytest.mark.parametrize("arguments", [("status", "--json"), ("--json", "status")])
def test_status_json(proxy: FakeProxy, arguments: tuple[str, ...]) -> None:
    """--json gives the API's own shapes, before or after the command's name."""
    result = run(*arguments)
    assert [b["name"] for b in json.loads(result.stdout)["backends"]] == ["coder", "chat"]


def test_status_with_nothing_configured(proxy: FakeProxy) -> None:
    """With no backends ``status`` says how to get some."""
    proxy.backends.clear()
    assert "No backends are configured" in run("status").stdout


def test_start_waits_and_tells(proxy: FakeProxy) -> None:
    """``start`` waits for readiness, and says when a backend was ready already."""
    proxy.backends["chat"]["state"] = "absent"
    result = run("start", "chat", "coder")
    assert result.exit_code == 0
    assert "chat: ready after" in result.stdout
    assert "coder: was ready already" in result.stdout
    assert ("POST", "/api/backends/chat/start", {"wait": ["1"]}) in proxy.asked


def test_start_without_waiting(proxy: FakeProxy) -> None:
    """``start --no-wait`` comes back at once with the state as it is."""
    proxy.after["start"] = "starting"
    result = run("start", "--no-wait", "chat")
    assert (result.exit_code, result.stdout) == (0, "chat: starting\n")
    assert ("POST", "/api/backends/chat/start", {}) in proxy.asked


def test_start_that_fails(proxy: FakeProxy) -> None:
    """A start that fails is status 1, with the cause, the fix and the end of the log."""
    proxy.after["start"] = "failed"
    result = run("start", "chat")
    assert result.exit_code == 1
    for part in ("exited with status 1", "Lower --gpu-memory-utilization", "CUDA out of memory"):
        assert part in result.stderr
    as_json = run("start", "chat", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["backends"][0]["state"] == "failed"


def test_stop_tells_what_happened(proxy: FakeProxy) -> None:
    """``stop`` says what the backend was and that it has stopped; what did not run is no error."""
    result = run("stop", "coder")
    assert result.exit_code == 0
    assert "coder: was ready, stopped after" in result.stdout
    again = run("stop", "coder", "--force")
    assert (again.exit_code, again.stdout) == (0, "coder: was not running (absent)\n")
    assert ("POST", "/api/backends/coder/stop", {"wait": ["1"], "force": ["1"]}) in proxy.asked


def test_stop_tells_what_it_broke_off(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many requests did not end, whether it is waited for or not."""
    act = Api.act
    for cut, told in ((1, "; 1 request was broken off\n"), (3, "; 3 requests were broken off\n"), (0, "\n")):
        monkeypatch.setattr(Api, "act", lambda *args, cut=cut, **more: {**act(*args, **more), "cut": cut})
        for flag in ("--force", "--no-wait"):
            proxy.backends["coder"]["state"] = "ready"
            result = run("stop", "coder", "--force", flag)
            assert result.exit_code == 0
            assert result.stdout.endswith(told)
            assert told != "\n" or "broken" not in result.stdout


def test_stop_that_does_not_last(proxy: FakeProxy) -> None:
    """A backend that was asked for while it stopped is told as running again: status 1."""
    proxy.after["stop"] = "starting"
    result = run("stop", "coder")
    assert result.exit_code == 1
    assert "is starting again" in result.stderr
    assert run("stop", "coder", "--no-wait").exit_code == 0


def test_restart(proxy: FakeProxy) -> None:
    """``restart`` tells that the backend is ready again."""
    result = run("restart", "coder")
    assert result.exit_code == 0
    assert "coder: ready after" in result.stdout


def test_logs(proxy: FakeProxy) -> None:
    """``logs`` prints the lines; with --json one object to a line."""
    assert run("logs", "coder", "-n", "2").stdout == "one\ntwo\n"
    assert proxy.asked[-1][2] == {"tail": ["2"]}
    lines = run("logs", "coder", "--follow", "--json").stdout.splitlines()
    assert json.loads(lines[1]) == {"backend": "coder", "line": "two"}
    assert proxy.asked[-1][2] == {"tail": ["100"], "follow": ["1"]}


def test_events(proxy: FakeProxy) -> None:
    """``events`` prints each transition with its reason."""
    assert "coder absent -> starting: a request" in run("events").stdout
    assert json.loads(run("events", "--json").stdout.splitlines()[0])["to"] == "starting"


def test_events_tell_decisions(proxy: FakeProxy) -> None:
    """With their kind, and for whom they were made."""
    assert "coder decided: evict for chat: makes room" in run("events").stdout
    told = [json.loads(line) for line in run("events", "--json").stdout.splitlines()]
    assert [event.get("decision") for event in told] == [None, "evict"]


def test_status_tells_who_waits_and_sleeps(proxy: FakeProxy) -> None:
    """In the table, with what it waits for below it, and what is lent."""
    now = time.time()
    waits = {"why": "coder is busy", "on": ["coder"], "since": now - 70}
    proxy.backends["chat"] = backend("chat", "absent", waiting=2, waits=waits)
    proxy.backends["coder"]["pinned"], proxy.backends["coder"]["idle_in"] = True, None
    proxy.backends["small"] = backend("small", "sleeping", level=1, idle_in=3600.0)
    proxy.backends["deep"] = backend("deep", "ready", idle_in=60.0, needs={"sleep": [1, 2]})
    run("lease", "--memory", "16GiB", "--for", "40m", "--note", "a game")
    lines = run("status").stdout.splitlines()
    coder, chat, small, deep = lines[1:5]
    assert "pinned" in coder
    assert "waits for coder" in chat
    assert "sleeping (level 1)" in small
    assert "stops in 1 h 0 m" in small
    assert "sleeps in 1 m 0 s" in deep
    assert lines[5] == "chat waits for 1 m 10 s: coder is busy"
    assert lines[6].startswith("lease-1: 16.0 GiB of GPU 0 (a game), held, 4")
    assert [one["id"] for one in json.loads(run("status", "--json").stdout)["leases"]] == ["lease-1"]


def test_status_of_one_tells_its_needs(proxy: FakeProxy) -> None:
    """What it needs, what was decided last, and what it waits for."""
    needs = {"gpus": ["0", "1"], "memory": 0.6, "why": "as it says"}
    decision = {"kind": "evict", "reason": "makes room for chat", "for": "chat", "at": time.time()}
    waits: dict[str, Any] = {"why": "until coder has left", "on": [], "since": None}
    proxy.backends["chat"] = backend("chat", "absent", needs=needs, decision=decision, waits=waits)
    shown = run("status", "chat").stdout
    assert "0.60 of GPU 0, 1 (as it says)" in shown
    assert "evict 0.0 s ago: makes room for chat" in shown
    assert "until coder has left" in shown
    assert "chat waits: until coder has left" in run("status").stdout


def test_sleep_and_wake(proxy: FakeProxy) -> None:
    """They wait, and say what has become of the backend."""
    result = run("sleep", "coder")
    assert (result.exit_code, result.stdout[:38]) == (0, "coder: was ready, asleep at level 1 af")
    assert run("sleep", "coder").stdout == "coder: was asleep already\n"
    assert "coder: ready after" in run("wake", "coder").stdout
    assert "coder: was ready already" in run("wake", "coder").stdout
    proxy.after["sleep"] = "falling_asleep"
    assert run("sleep", "coder", "--no-wait").stdout == "coder: was ready, now falling_asleep\n"
    proxy.after["sleep"] = "absent"
    result = run("sleep", "coder")
    assert result.exit_code == 1
    assert "coder: does not sleep, is absent" in result.stderr


def test_start_that_waits_for_room(proxy: FakeProxy) -> None:
    """``start --no-wait`` says what it waits for."""
    proxy.after["start"] = "absent"
    proxy.backends["coder"]["waits"] = {"why": "chat is busy", "on": ["chat"], "since": None}
    assert run("start", "--no-wait", "coder").stdout == "coder: absent, waits: chat is busy\n"


def test_why(proxy: FakeProxy) -> None:
    """The sentences, one on a line; with --json the backend, too."""
    assert run("why", "coder").stdout.splitlines()[0] == "coder is ready, for 5.0 s."
    assert json.loads(run("why", "coder", "--json").stdout)["backend"]["name"] == "coder"
    assert run("why", "nope").exit_code == 1
    assert run("why").exit_code == 2


def test_plan(proxy: FakeProxy) -> None:
    """What is to be done, or what a request would do."""
    assert run("plan").stdout.splitlines()[1] == "chat waits: until coder has left."
    assert run("plan", "chat", "--json").exit_code == 0
    assert [query for _, path, query in proxy.asked if path == "/api/plan"] == [{}, {"backend": ["chat"]}]


def test_gpus(proxy: FakeProxy) -> None:
    """A line for each GPU, in GiB where its size is known; why its free memory is not measured."""
    result = run("gpus")
    row = result.stdout.splitlines()[1]
    assert row.split("  ")[0] == "0"
    for part in ("24.0 GiB", "0.0 GiB", "14.0 GiB", "9.0 GiB", "coder 14.0 GiB, lease-1"):
        assert part in row
    (gpu,) = json.loads(run("gpus", "--json").stdout)["gpus"]
    small = {**gpu, "unit": "fraction", "measured": None, "claims": [], "leases": []}
    small |= {"total": 1.0, "reserve": 0, "lent": 0, "claimed": 0.6, "unclaimed": 0.4}
    proxy.documents["gpus"] = {"gpus": [small], "not_measured": "NVML finds no GPU"}
    shown = run("gpus").stdout
    assert "0.60" in shown
    assert shown.endswith("Free memory is not measured: NVML finds no GPU.\n")
    proxy.documents["gpus"] = {"gpus": [], "not_measured": None}
    assert run("gpus").stdout == "No backend needs GPU memory.\n"


def test_advise(proxy: FakeProxy) -> None:
    """The recommendations, or why there are none."""
    assert run("advise").stdout == "The record spans 2 h 24 m.\n"
    one = {"told": "coder: pin it: 5 of 9 starts in 2 days would not have been needed", "gain": 120.0}
    proxy.documents["advice"] = {"days": 2.0, "advice": [one], "told": None}
    assert run("advise").stdout.endswith("needed (saves 2 m 0 s of waiting a day)\n")
    assert json.loads(run("advise", "--json").stdout)["days"] == 2.0


def test_leases_are_taken_shown_and_released(proxy: FakeProxy) -> None:
    """With what was asked for; --all ends all of them."""
    assert run("leases").stdout == "No GPU memory is lent.\n"
    result = run("lease", "--gpu", "1", "--memory", "16GiB", "--for", "40m", "--note", "ComfyUI")
    assert result.exit_code == 0
    assert result.stdout.startswith("lease-1: 16.0 GiB of GPU 1 (ComfyUI), held, ")
    assert proxy.bodies == [{"gpu": "1", "memory": "16GiB", "seconds": "40m", "note": "ComfyUI"}]
    proxy.held = False
    assert "waits until coder has left, 4" in run("lease", "--memory", "1GiB", "--for", "40m").stdout
    rows = run("leases").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["LEASE", "lease-1", "lease-2"]
    assert ("held" in rows[1], "until coder has left" in rows[2]) == (True, True)
    assert len(json.loads(run("leases", "--json").stdout)["leases"]) == 2
    assert run("release", "lease-1").stdout == "lease-1: released\n"
    assert run("release", "lease-1").exit_code == 1
    assert json.loads(run("release", "--all", "--json").stdout)["leases"][0]["id"] == "lease-2"
    assert run("release", "--all").stdout == "No GPU memory is lent.\n"
    assert (
        "note: All of it is lent." in run("lease", "--memory", "1GiB", "--for", "1m", "--note", "big").stderr
    )
    assert run("release").exit_code == 2
    assert run("release", "lease-1", "--all").exit_code == 2


def test_a_lease_is_waited_for(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """--wait says what it waits for, and then that it is held; Ctrl-C gives it up."""
    proxy.held = False
    words = ("lease", "--memory", "50%", "--for", "1h", "--wait")
    result = run(*words)
    assert "waits until coder has left" in result.stderr
    assert ", held, " in result.stdout
    result = run(*words, "--json")
    assert (json.loads(result.stdout)["held"], result.stderr) == (True, "")

    def interrupted(api: Api, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "lease_held", interrupted)
    result = run(*words)
    assert result.exit_code == 1
    assert "lease-3: given up" in result.stderr
    assert "lease-3" not in proxy.leases


def test_a_lease_that_is_refused(proxy: FakeProxy) -> None:
    """What is no size is wrong usage; what can never fit is status 1 with the fix."""
    result = run("lease", "--memory", "14", "--for", "1h")
    assert result.exit_code == 2
    assert "memory is '14'; use a fraction." in result.stderr
    result = run("lease", "--memory", "99GiB", "--for", "1h")
    assert result.exit_code == 1
    assert "Unpin something." in result.stderr
    assert run("lease", "--memory", "1GiB").exit_code == 2


@pytest.mark.parametrize("words", ["why", "plan", "sleep", "wake", "lease", "release"])
def test_help_helps(words: str) -> None:
    """With an example."""
    result = run(words, "--help")
    assert result.exit_code == 0
    assert f"Example: llmproxy {words}" in result.stdout


def test_wrong_key(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is refused or missing is status 1, says where to set it, and is not printed."""
    monkeypatch.setenv("LLMPROXY_ADMIN_KEY", "not-this-one")
    result = run("status")
    assert result.exit_code == 1
    assert "does not know this key" in result.stderr
    assert "LLMPROXY_ADMIN_KEY" in result.stderr
    assert "not-this-one" not in result.output
    monkeypatch.delenv("LLMPROXY_ADMIN_KEY")
    assert "asks for a key, and none is set" in run("status").stderr


def test_key_from_env_file(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variables the key comes from ./.env."""
    monkeypatch.delenv("LLMPROXY_ADMIN_KEY")
    Path(".env").write_text(f"# a comment\nVLLM_API_KEY={KEY}\n", encoding="utf-8")
    assert run("status").exit_code == 0


def test_not_reachable(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no proxy there, the command says so and how to start it."""
    monkeypatch.setenv("LLMPROXY_URL", "http://127.0.0.1:1")
    result = run("status")
    assert result.exit_code == 1
    assert "llmproxy is not reachable at http://127.0.0.1:1" in result.stderr
    assert "make run" in result.stderr
    assert "not reachable" in json.loads(run("--json", "status").stdout)["error"]["message"]


def test_unknown_backend(proxy: FakeProxy) -> None:
    """A backend that is not there is status 1, with the names of those that are."""
    result = run("stop", "nope")
    assert result.exit_code == 1
    assert "Backends: chat, coder." in result.stderr
    as_json = json.loads(run("stop", "nope", "--json").stdout)
    assert as_json["error"]["code"] == "route_not_found"


def test_something_else_answers(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no llmproxy is told as such, and so is an address that is none."""
    monkeypatch.setattr(Handler, "_serve", lambda self: self._send(404, "<html>"))
    monkeypatch.setattr(Handler, "do_GET", Handler._serve)
    assert "not as llmproxy does" in run("status").stderr
    monkeypatch.setattr(Handler, "do_GET", lambda self: self._send(200, "<html>"))
    assert "does not answer as llmproxy does" in run("status").stderr
    result = run("--url", "localhost:8000", "status")
    assert result.exit_code == 1
    assert "must be an address such as http://127.0.0.1:8000" in result.stderr


def test_wrong_usage() -> None:
    """Wrong usage is status 2."""
    assert run("start").exit_code == 2
    assert run("no-such-command").exit_code == 2
    assert run("logs", "coder", "-n", "many").exit_code == 2


def test_the_key_is_not_shown() -> None:
    """The API object does not show its key."""
    assert "abc" not in repr(connect(None, {"VLLM_API_KEY": "abc"}))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and an environment without llmproxy's variables or a Docker engine."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("LLMPROXY_", "MAP__", "COMPOSE_")) or name in ("VLLM_API_KEY", "IDLE_SECONDS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    return tmp_path


def test_config_shows_values_and_sources(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``config`` shows each setting in force with its source, says what it could not read, and no secret."""
    (alone / ".env").write_text("VLLM_API_KEY=very-secret\n", encoding="utf-8")
    monkeypatch.setenv("MAP__coder__container", "coder3b")
    monkeypatch.setenv("IDLE_SECONDS", "77")
    result = run("config")
    assert result.exit_code == 0
    (line,) = (row for row in result.stdout.splitlines() if row.startswith("backends.coder.idle"))
    assert line.split() == ["backends.coder.idle", "77", "environment", "IDLE_SECONDS"]
    assert "labels of containers are left out" in result.stderr
    assert "very-secret" not in result.output
    settings = json.loads(run("config", "--json", "--no-docker").stdout)["settings"]
    assert settings["backends.coder.container"]["value"] == "coder3b"


def test_config_file(alone: Path) -> None:
    """``config --config`` reads that file; ./llmproxy.yaml is read without being named."""
    text = "backends: {far: {runtime: url, url: 'http://10.0.0.1:8000'}}\n"
    (alone / "other.yaml").write_text(text, encoding="utf-8")
    result = run("config", "--config", "other.yaml", "--check", "--no-docker")
    assert (result.exit_code, result.stdout) == (0, "The configuration is right. Routes: /far.\n")
    assert "/far" not in run("config", "--check", "--no-docker").stdout
    (alone / "llmproxy.yaml").write_text(text, encoding="utf-8")
    assert "/far" in run("config", "--check", "--no-docker").stdout


def test_config_reads_the_compose_file(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes of services that have no container yet come from the compose file's labels."""
    monkeypatch.setenv("COMPOSE_FILE", str(ROOT / "docker-compose.yml"))
    assert "Routes: /coder, /chat, /qwen7b." in run("config", "--check", "--no-docker").stdout
    monkeypatch.setenv("COMPOSE_FILE", "missing.yml")
    result = run("config", "--check", "--no-docker")
    assert result.exit_code == 2
    assert "missing.yml: it cannot be read: No such file or directory" in result.stderr


def test_config_demo(alone: Path) -> None:
    """``config --demo`` shows the demo models' routes."""
    assert "Routes: /coder, /chat, /qwen7b." in run("config", "--demo", "--check").stdout


def test_config_with_an_error(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is not allowed is one line and status 2."""
    monkeypatch.setenv("IDLE_SECONDS", "soon")
    result = run("config", "--check")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: environment IDLE_SECONDS is 'soon'")
    assert len(result.stderr.splitlines()) == 1
    assert "IDLE_SECONDS" in json.loads(run("config", "--json").stdout)["error"]["message"]
    assert run("config", "--config", "missing.yaml").exit_code == 2


def test_example_is_right(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llmproxy.example.yaml is a configuration."""
    monkeypatch.setenv("VLLM_API_KEY", "k" * 20)
    (alone / "docker-compose.yml").write_text("services: {}\n", encoding="utf-8")
    file = str(ROOT / "llmproxy.example.yaml")
    result = run("config", "--config", file, "--check", "--no-docker")
    assert result.exit_code == 0, result.output
    assert "Routes: /coder, /chat, /local, /far." in result.stdout


@given(strategies.dictionaries(strategies.from_regex(r"[A-Z_]{1,9}", fullmatch=True), strategies.integers()))
def test_env_file_is_read_back(values: dict[str, int]) -> None:
    """Whatever plain values an .env file has are read, quoted or not."""

    class File:
        def read_text(self, encoding: str) -> str:
            quotes = ["", '"', "'"]
            lines = [f"{n}={quotes[v % 3]}{v}{quotes[v % 3]}" for n, v in values.items()]
            return "\n".join(["# comment", *lines])

    path: Any = File()
    assert read_env_file(path) == {name: str(value) for name, value in values.items()}


def test_words() -> None:
    """Durations, events and starts are told in a person's words."""
    assert [duration(s) for s in (-1, 9.96, 59.4, 61, 3700, 90000)] == [
        "0.0 s",
        "10 s",
        "59 s",
        "1 m 1 s",
        "1 h 1 m",
        "1 d 1 h",
    ]
    event = {"at": 0, "backend": "a", "from": "ready", "to": "stopping"}
    assert event_line(event).plain.endswith("a ready -> stopping")
    (day, _), (hours, _) = (event_line(event, today).plain.split(" a ") for today in ("2001-01-01", None))
    assert (len(day), len(hours)) == (19, 8)
    phase = {"at": 0, "backend": "a", "from": "starting", "to": "starting", "decision": "phase"}
    assert event_line({**phase, "reason": "compiling"}).plain.endswith(" a starting: compiling")
    shown = backend("a", "ready", last_start={"seconds": 12.0, "at": 1.0, "phases": {"loading weights": 3.0}})
    assert "12 s (loading weights 3.0 s)" in "\n".join(backend_lines(shown, 20.0))


def test_a_start_under_way() -> None:
    """How far it is and how long it will still take, in the table and in full; as far as either is known."""
    start = {"phase": "loading weights", "progress": 0.5, "eta": 12.0}
    for more, told in (
        (start, "loading weights 50%, 12 s left"),
        ({**start, "eta": None}, "loading weights 50%"),
        ({**start, "progress": None}, "loading weights, 12 s left"),
        ({}, ""),
    ):
        shown = backend("a", "starting", **more)
        assert told in backends_table([shown], 20.0, None)[1].plain
        lines = backend_lines(shown, 20.0)
        assert f"  now:         {told}" in lines or not told
    waits = backend(
        "a", "absent", phase="waiting for room", waits={"why": "b is busy", "on": ["b"], "since": 1.0}
    )
    lines = backend_lines(waits, 20.0)
    assert "  now:         waiting for room" in lines
    assert "  waits:       b is busy" in lines
