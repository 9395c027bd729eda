"""The command as a whole: its help, its groups, what it watches, and what it does to several at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.shell_completion import BashComplete

from llmproxy.cli import watching
from llmproxy.cli.changes import Bell
from llmproxy.cli.client import Api
from llmproxy.cli.main import cli
from llmproxy.cli.progress import step_of
from llmproxy.config.keys import told_hash
from llmproxy.config.model import digest_of
from llmproxy.config.resolve import Sources, read_sources
from tests.unit.fake_proxy import KEY, FakeProxy, backend, run, served

COMMANDS = cli.list_commands(click.Context(cli))
WITHOUT_JSON = ("completion",)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch) as fake:
        yield fake


# -- help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    """The list, which loads no command, says of each what it says of itself, and that has an example."""
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    assert " ".join((found.help or "").split()).startswith(cli.later[name].help)
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"llmproxy {name}" in result.stdout.partition("Example")[2]
    assert ("--json" in result.stdout) == (name not in WITHOUT_JSON)


def test_the_list() -> None:
    """It is in sections, and says how the proxy is found and what the statuses mean."""
    shown = run("--help").stdout
    for part in ("Steer:", "  start ", "LLMPROXY_URL", "Exit status: 0 done; 1", "llmproxy why coder"):
        assert part in shown
    assert "Others:" not in shown


def test_a_command_that_is_none() -> None:
    """Status 2, with the one that may be meant."""
    result = run("statsu")
    assert result.exit_code == 2
    assert "Did you mean status" in result.stderr
    assert "Did you mean" not in run("xyzzyx").stderr


# -- status -----------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Watching ends like by Ctrl-C before the third look; the seconds that each waited for."""
    waited: list[float] = []

    def wait(self: Bell, seconds: float) -> bool:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt
        return len(waited) == 1

    monkeypatch.setattr(Bell, "wait", wait)
    monkeypatch.setattr(watching, "_SETTLE", 0.0)
    return waited


def test_watching_on_a_pipe(proxy: FakeProxy, looks: list[float]) -> None:
    """A table after the other; Ctrl-C is no failure."""
    result = run("status", "--watch")
    assert result.exit_code == 0
    assert result.stdout.count("BACKEND") == 3
    assert looks == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "seconds", "names"),
    [
        (("--watch", "5"), 5.0, 0),
        (("-w", "0.5", "coder"), 0.5, 1),
        (("--watch", "coder"), 2.0, 1),
        (("coder", "-w"), 2.0, 1),
        (("--watch=7",), 7.0, 0),
    ],
)
def test_seconds_to_watch(
    proxy: FakeProxy, looks: list[float], arguments: tuple[str, ...], seconds: float, names: int
) -> None:
    """They may be left away, also before a backend's name."""
    result = run("status", *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert looks[0] == seconds
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(documents) == 3
    assert len(documents[0]["backends"]) == (names or 2)


def test_watching_goes_on_while_the_proxy_is_away(
    proxy: FakeProxy, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen last stays, and it is said why; if it is away from the beginning, that is a failure."""
    real, asked = Api.backends, []

    def backends(self: Api) -> list[dict[str, Any]]:
        asked.append(self)
        if len(asked) == 2:
            return connect_nowhere().backends()
        return real(self)

    def connect_nowhere() -> Api:
        return Api("http://127.0.0.1:1")

    monkeypatch.setattr(Api, "backends", backends)
    result = run("status", "--watch")
    assert result.exit_code == 0
    first, second, third = result.stdout.split("\n\n")[:3]
    assert ("This was seen last." in first, "This was seen last." in second) == (False, True)
    assert "coder" in second
    assert "This was seen last." not in third
    monkeypatch.setenv("LLMPROXY_URL", "http://127.0.0.1:1")
    looks.clear()
    assert run("status", "--watch").exit_code == 1


# -- steering ---------------------------------------------------------------------------------------


def test_several_at_once(proxy: FakeProxy) -> None:
    """What cannot be done to one does not keep the others from it; each is named once."""
    result = run("start", "coder", "nope", "chat", "coder")
    assert result.exit_code == 1
    assert "coder: was ready already" in result.stdout
    assert "chat: ready after" in result.stdout
    assert "nope: There is no backend 'nope'" in result.stderr
    assert [path for verb, path, _ in proxy.asked if verb == "POST"].count("/api/backends/coder/start") == 1
    found = json.loads(run("stop", "coder", "nope", "--json").stdout)
    assert [one["name"] for one in found["backends"]] == ["coder"]
    assert [(one["backend"], one["code"]) for one in found["errors"]] == [("nope", "route_not_found")]
    both = json.loads(run("stop", "no", "nope", "--json").stdout)
    assert (both["backends"], len(both["errors"])) == ([], 2)


def test_they_are_done_at_the_same_time(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is asked for before the first is done."""
    from threading import Barrier

    both, real = Barrier(2, timeout=10), Api.act

    def act(self: Api, name: str, verb: str, **how: Any) -> dict[str, Any]:
        both.wait()
        return real(self, name, verb, **how)

    monkeypatch.setattr(Api, "act", act)
    assert run("restart", "coder", "chat").exit_code == 0


def test_given_up(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while something starts is status 1, and says that the start goes on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmproxy.cli.steering.together", interrupted)
    result = run("start", "coder", "chat")
    assert result.exit_code == 1
    assert "Given up waiting for coder, chat; the proxy goes on." in result.stderr


def test_a_fault_in_a_thread_is_seen(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not leave the command waiting."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Api, "act", broken)
    assert isinstance(run("restart", "coder").exception, ValueError)


def test_steps() -> None:
    """What a backend does at present, beside its state."""
    for state, more, told in (
        ("starting", {"phase": "compiling"}, "compiling"),
        ("starting", {"phase": "loading weights", "progress": 0.5}, "loading weights 50%"),
        ("starting", {"phase": "starting"}, ""),
        ("draining", {"in_flight": 1}, "1 request to finish"),
        ("draining", {"in_flight": 3}, "3 requests to finish"),
        ("absent", {"waits": {"why": "coder is busy"}}, "waits: coder is busy"),
        ("ready", {"phase": None}, ""),
    ):
        assert step_of(backend("a", state, **more)) == told


# -- what happened ----------------------------------------------------------------------------------


def test_which_events(proxy: FakeProxy) -> None:
    """Those that are remembered, unless more is asked for; none is told as such."""
    run("events")
    run("events", "-f", "-n", "20", "--backend", "coder")
    asked = [query for _, path, query in proxy.asked if path == "/api/events"]
    assert asked == [{"follow": ["0"]}, {"tail": ["20"], "follow": ["1"], "backend": ["coder"]}]
    proxy.events = []
    assert run("events").stderr == "Nothing is remembered.\n"
    assert run("events", "--json").output == ""


def test_no_output(proxy: FakeProxy) -> None:
    """A backend that has written nothing is told as such, where a person looks."""
    proxy.output = ""
    assert "There is no output of coder" in run("logs", "coder").stderr
    assert run("logs", "coder", "--json").output == ""


USAGE = {
    "by": ["key"],
    "since": "2026-11-19",
    "until": "2026-11-26",
    "rows": [
        {
            "key": "site",
            "requests": 1234,
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "estimated_tokens": 7,
            "held_seconds": 3.5,
            "gpu_seconds": None,
        }
    ],
}


def test_usage(proxy: FakeProxy) -> None:
    """A table, the API's own JSON, or its CSV."""
    proxy.documents["usage"] = USAGE
    proxy.csv = "key,requests\nsite,1234\n"
    heading, row = run("usage").stdout.splitlines()
    assert heading.split()[0] == "KEY"
    assert row.split()[:2] == ["site", "1,234"]
    assert json.loads(run("usage", "--by", "key, day", "--since", "30d", "--json").stdout) == USAGE
    assert run("usage", "--by", "backend", "--by", "day", "--until", "1d", "--csv").stdout == proxy.csv
    asked = [query for _, path, query in proxy.asked if path == "/api/usage"]
    assert asked == [
        {"by": ["key"], "since": ["7d"]},
        {"by": ["key,day"], "since": ["30d"]},
        {"by": ["backend,day"], "since": ["7d"], "until": ["1d"], "format": ["csv"]},
    ]
    proxy.documents["usage"] = {**USAGE, "rows": []}
    assert run("usage").stdout == "Nothing was used in that time.\n"


def test_usage_that_cannot_be_told(proxy: FakeProxy) -> None:
    """Wrong usage is status 2, and a proxy that does not keep it is told as such."""
    for words in (("--by", "colour"), ("--by", ","), ("--csv", "--json")):
        assert run("usage", *words).exit_code == 2
    result = run("usage")
    assert result.exit_code == 1
    assert "does not record usage" in result.stderr


# -- keys and configuration -------------------------------------------------------------------------

KEYS = """
keys:
  - {name: me, secret: a-secret-of-mine-0123456789, admin: true}
  - {name: site, secret: secret-of-the-site-01, routes: [chat, coder], may_start: false, expires: 2001-01-01}
  - {name: soon, secret: secret-for-a-while-01234, priority: 5, requests_per_minute: 60, expires: 2999-01-01}
backends:
  coder: {runtime: process, command: [serve]}
"""


@pytest.fixture
def configured(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, and no proxy that runs."""
    monkeypatch.delenv("LLMPROXY_ADMIN_KEY")
    monkeypatch.setenv("LLMPROXY_URL", "http://127.0.0.1:1")
    Path("llmproxy.yaml").write_text(KEYS, encoding="utf-8")
    return Path("llmproxy.yaml")


def test_keys(configured: Path) -> None:
    """Names, rights, routes, limits and when they end, but no secret."""
    result = run("keys")
    assert result.exit_code == 0, result.output
    assert "note: these are the keys of the configuration: llmproxy is not reachable" in result.stderr
    assert "note" not in run("keys", "--config", "llmproxy.yaml").stderr
    heading, me, site, soon = result.stdout.splitlines()
    assert heading.split() == ["KEY", "RIGHTS", "ROUTES", "LIMITS", "EXPIRES", "SOURCE"]
    assert "admin, client" in me
    assert "never" in me
    assert "client, no start" in site
    assert "chat, coder" in site
    assert "expired 2001-01-01" in site
    assert "60 requests/min, priority 5" in soon
    assert "2999-01-01" in soon
    as_json = run("--json", "keys")
    assert "secret" not in result.output + as_json.output
    found = {key["name"]: key for key in json.loads(as_json.stdout)["keys"]}
    assert (found["site"]["routes"], found["site"]["expired"]) == (["chat", "coder"], True)
    assert (found["me"]["routes"], found["me"]["expires"], found["me"]["expired"]) == (None, None, False)
    assert found["soon"]["requests_per_minute"] == 60
    assert "llmproxy.yaml" in found["me"]["source"]


def test_keys_of_the_running_proxy(proxy: FakeProxy) -> None:
    """Those that it has given out, too, and what is left of their limits; an older one has no such list."""
    key = {
        "name": "given",
        "admin": False,
        "client": True,
        "routes": None,
        "may_start": True,
        "may_evict": True,
    }
    key |= {"priority": 0, "requests_per_minute": 60, "expires": None, "source": "/api/keys"}
    proxy.documents["keys"] = {"keys": [{**key, "left": {"requests_per_minute": 58}}]}
    row = run("keys").stdout.splitlines()[1]
    assert "60 requests/min (58 left)" in row
    assert "/api/keys" in row
    assert json.loads(run("keys", "--json").stdout) == proxy.documents["keys"]
    del proxy.documents["keys"]
    result = run("keys")
    assert result.exit_code == 0
    assert "No key is configured" not in result.stdout
    assert "keys of the configuration" in result.stderr
    proxy.key = "another"
    assert run("keys").exit_code == 1


def test_a_key_for_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline the secret is shown by itself, and what llmproxy.yaml needs beside it, with no more of it than
    its digest."""
    now = datetime(2026, 1, 2, 3, tzinfo=UTC)
    monkeypatch.setattr("llmproxy.cli.keys_given.time", SimpleNamespace(time=now.timestamp))
    result = run(
        "keys", "add", "site", "--offline", "--route", "chat, coder", "--no-start", "--expires", "90d"
    )
    assert result.exit_code == 0, result.output
    (secret,) = result.stdout.split()
    assert secret not in result.stderr
    assert "It is shown this once" in result.stderr
    (entry,) = yaml.safe_load(result.stderr.partition("\n")[2])["keys"]
    (key,) = read_sources(Sources({}, yaml.safe_dump({"keys": [entry]}))).keys
    assert key.digest == digest_of(secret)
    assert (key.name, key.routes, key.may_start, key.may_evict) == ("site", ("chat", "coder"), False, True)
    assert key.expires == datetime(2026, 4, 2, tzinfo=UTC).timestamp()
    as_json = json.loads(run("--json", "keys", "add", "boss", "--offline", "--admin", "--no-client").stdout)
    assert (as_json["admin"], as_json["client"]) == (True, False)
    assert as_json["hash"] == told_hash(digest_of(as_json["secret"]))


def test_a_key_that_cannot_be() -> None:
    """It is refused like in the configuration, and no secret is shown."""
    result = run("keys", "add", "site", "--offline", "--expires", "never")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expires" in result.stderr


def test_keys_are_given_changed_and_taken(proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret stands by itself, so that it can be piped; as JSON it is what the proxy has told."""
    given = {"name": "site", "secret": "llmp-new", "former_until": 86400.0}
    asked: list[Any] = []

    def add(self: Api, key: dict[str, Any]) -> dict[str, Any]:
        asked.append(key)
        return {**given, "former_until": None}

    def rotate(self: Api, name: str, overlap: str | None) -> dict[str, Any]:
        asked.append((name, overlap))
        return given

    monkeypatch.setattr(Api, "add_key", add)
    monkeypatch.setattr(Api, "rotate_key", rotate)
    monkeypatch.setattr(Api, "revoke_key", lambda self, name: {"name": name})
    added = run("keys", "add", "site", "--requests-per-minute", "60")
    assert (added.stdout, asked[-1]) == ("llmp-new\n", {"name": "site", "requests_per_minute": 60})
    assert "counts from now on" in added.stderr
    assert "old secret" not in added.stderr
    rotated = run("keys", "rotate", "site", "--overlap", "7d")
    assert (rotated.stdout, asked[-1]) == ("llmp-new\n", ("site", "7d"))
    assert "Its old secret goes on until 1970-01-0" in rotated.stderr
    assert json.loads(run("--json", "keys", "rotate", "site").stdout) == given
    assert run("keys", "revoke", "a", "b").stdout == "a: revoked\nb: revoked\n"
    assert json.loads(run("--json", "keys", "revoke", "a", "b").stdout) == {"revoked": ["a", "b"]}
    given.pop("secret")
    lost = run("keys", "rotate", "site")
    assert lost.exit_code == 1
    assert "did not tell the secret" in lost.stderr


def test_a_key_for_administration_alone_has_no_routes(proxy: FakeProxy) -> None:
    """As it may use no model, none are listed."""
    key = {"name": "boss", "admin": True, "client": False, "routes": None, "priority": 0, "expires": None}
    proxy.documents["keys"] = {"keys": [{**key, "source": "/api/keys"}]}
    assert run("keys").stdout.splitlines()[1].split() == ["boss", "admin", "never", "/api/keys"]


def test_no_keys(configured: Path) -> None:
    """It is said what that means."""
    configured.write_text("{}", encoding="utf-8")
    assert "No key is configured" in run("keys").stdout
    configured.write_text("keys: 7", encoding="utf-8")
    result = run("keys")
    assert result.exit_code == 2
    assert "llmproxy.yaml" in result.stderr


def test_a_file_is_checked(configured: Path) -> None:
    """The file that is named, in one line, with status 2 if it is not right."""
    other = Path("other.yaml")
    other.write_text("backends: {a: {colour: red}}", encoding="utf-8")
    result = run("config", "--check", "other.yaml", "--no-docker")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "other.yaml" in result.stderr
    assert run("config", "--check", "other.yaml", "--config", "llmproxy.yaml").exit_code == 2
    assert run("config", "--check", "llmproxy.yaml", "--no-docker").exit_code == 0
    error = json.loads(run("config", "other.yaml", "--json").stdout)["error"]
    assert "colour" in error["message"]


def test_what_was_changed(configured: Path) -> None:
    """Without what has its default."""
    lines = run("config", "--changed", "--no-docker").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert "backends.coder.command" in names
    assert "backends.coder.idle" not in names


# -- completion -------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """What a shell is offered for the last word."""
    found = BashComplete(cli, {}, "llmproxy", "_LLMPROXY_COMPLETE")
    return [item.value for item in found.get_completions(list(words[:-1]), words[-1])]


def test_backends_are_completed(proxy: FakeProxy) -> None:
    """From the running proxy, without those that are named already; leases, too."""
    assert completed("start", "") == ["coder", "chat"]
    assert completed("start", "co") == ["coder"]
    assert completed("stop", "coder", "c") == ["chat"]
    assert completed("events", "-b", "ch") == ["chat"]
    assert completed("sta") == ["status", "start"]
    run("lease", "--memory", "1GiB", "--for", "1m")
    assert completed("release", "") == ["lease-1"]


def test_completion_is_silent(
    proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the proxy is away, refuses, or is something else, nothing is offered and nothing is said."""
    proxy.key = "another"
    assert completed("start", "") == []
    proxy.key = KEY
    proxy.backends["coder"] = {"title": "no backend of ours"}
    assert completed("start", "") == []
    monkeypatch.setenv("LLMPROXY_URL", "http://127.0.0.1:1")
    assert completed("start", "") == []
    monkeypatch.setenv("LLMPROXY_URL", "what is this")
    assert completed("start", "") == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_the_shell_reads(shell: str) -> None:
    """The script asks the command by the variable that the command looks at."""
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_LLMPROXY_COMPLETE={shell}_complete" in result.stdout
    assert run("completion", "tcsh").exit_code == 2


def test_the_date_of_leases(proxy: FakeProxy) -> None:
    """A lease that is about to end has no time left rather than less than none."""
    proxy.leases["lease-1"] = {
        "id": "lease-1",
        "gpu": "0",
        "memory": 0.5,
        "note": "",
        "held": True,
        "until": time.time() - 5,
        "waits": None,
    }
    assert "0.0 s" in run("leases").stdout
