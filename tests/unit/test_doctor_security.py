"""What ``llmproxy doctor --security`` says of facts, and how it gets them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner

from llmproxy.cli.main import cli
from llmproxy.config.model import BackendSpec, DockerSettings, Key
from llmproxy.doctor.checks.security import (
    check_admin,
    check_age,
    check_containers_rights,
    check_exposure,
    check_files,
    check_rates,
    check_socket,
    check_wire,
)
from llmproxy.doctor.facts import Container, Facts, KeptFile, Published, SecurityFacts
from llmproxy.doctor.findings import Finding
from llmproxy.doctor.gather.commands import Ran
from llmproxy.doctor.gather.security import gather_security
from llmproxy.doctor.judge import SECURITY, judge
from tests.unit.test_doctor_checks import HOST, SECRET, SPEC, VLLM, facts

DAY = 86400.0
MINE = Key("boss", SECRET[::-1], admin=True, client=False)
THEIRS = Key("site", SECRET, requests_per_minute=60)
SAFE = SecurityFacts((KeptFile(".env", 0o600, 900.0, tracked=False),), 0o700, 0o660)


def installation(
    *, keys: Iterable[Key] = (MINE, THEIRS), listen: tuple[str, ...] = ("tcp:8000",), **settings: Any
) -> Facts:
    """One that is as it should be, but for what is said."""
    found = facts(keys=keys)
    assert found.settings.config is not None
    config = evolve(found.settings.config, listen=listen, **{"metrics_access": "admin", **settings})
    return evolve(found, settings=evolve(found.settings, config=config), security=SAFE)


def told(findings: Iterable[Finding]) -> dict[str, str]:
    """The status of each check; the worst where it says several."""
    found: dict[str, str] = {}
    for each in findings:
        if found.get(each.check) not in ("fail", "warn"):
            found[each.check] = each.status
        assert each.status in ("ok", "skipped") or each.fix
    return found


def test_a_careful_installation_has_nothing_to_mend_but_the_wire() -> None:
    """All is well; that there is no TLS in the network is said."""
    found = told(judge(installation(), SECURITY))
    assert {name for name, status in found.items() if status in ("warn", "fail")} == {"security.tls"}
    assert not {name for name, status in found.items() if status == "fail"}


def test_models_in_the_network_are_told() -> None:
    """By their containers, and by what the compose file would publish."""
    assert told(check_exposure(installation())) == {"security.models": "ok"}
    shown = evolve(VLLM, published=(Published("0.0.0.0", 8001, 8001),))
    found = installation()
    found = evolve(found, engine=evolve(found.engine, containers={"coder3b": shown}))
    (finding,) = check_exposure(found)
    assert finding.status == "fail"
    assert "coder at 0.0.0.0:8001" in finding.finding
    assert "MODEL_BIND=127.0.0.1" in str(finding.fix)


def test_no_key_in_the_network_is_a_failure() -> None:
    """On loopback it is none."""
    assert told(check_exposure(installation(keys=())))["security.keys"] == "fail"
    alone = installation(keys=(), listen=("tcp:8000:interface=127.0.0.1",))
    assert "security.keys" not in told(check_exposure(alone))


@pytest.mark.parametrize(
    ("files", "check", "status"),
    [
        ([KeptFile(".env", 0o600, 0, False)], "security.files", "ok"),
        ([KeptFile(".env", 0o600, 0, None)], "security.files", "ok"),
        ([KeptFile(".env", 0o640, 0, False)], "security.files", "fail"),
        ([KeptFile(".env", 0o604, 0, False)], "security.files", "fail"),
        ([KeptFile(".env", 0o600, 0, True)], "security.git", "fail"),
        ([KeptFile("llmproxy.yaml", 0o644, 0, True)], "security.files", "fail"),
    ],
)
def test_files_with_keys(files: list[KeptFile], check: str, status: str) -> None:
    """They are for their owner only, and .env is not Git's; the configuration file only where it has keys."""
    found = evolve(installation(), security=SecurityFacts(tuple(files), 0o700, 0o660))
    assert told(check_files(found)) == {check: status}


def test_a_file_that_names_variables_may_be_read() -> None:
    """Keys of the environment are in no file."""
    sources = {"keys.boss": "environment LLMPROXY_ADMIN_KEY", "keys.site": "environment VLLM_API_KEY"}
    found = installation(sources=sources)
    found = evolve(found, security=SecurityFacts((KeptFile("llmproxy.yaml", 0o644, 0, True),)))
    assert told(check_files(found)) == {}
    assert told(check_age(found)) == {}


def test_the_state_folder_is_for_its_owner() -> None:
    """Models' output is there."""
    found = evolve(installation(), security=SecurityFacts((), 0o755))
    assert told(check_files(found)) == {"security.state": "warn"}


def test_keys_are_changed_each_quarter() -> None:
    """By when their file was last changed."""
    for days, status in ((91, "ok"), (93, "warn"), (-1, "ok")):
        found = installation()
        file = KeptFile(".env", 0o600, found.clock.now - days * DAY, False)
        assert told(check_age(evolve(found, security=SecurityFacts((file,))))) == {"security.age": status}


@pytest.mark.parametrize(
    ("listen", "trusted", "status"),
    [
        (("tcp:8000",), (), "warn"),
        (("tcp:8000:interface=127.0.0.1", "unix:/run/x.sock"), (), "ok"),
        (("ssl:8443:privateKey=k:certKey=c",), (), "ok"),
        (("ssl:8443:privateKey=k:certKey=c", "tcp:8000"), (), "warn"),
        (("ssl:8443:privateKey=k:certKey=c", "tcp:8000:interface=127.0.0.1"), (), "ok"),
        (("tcp:8000",), ("10.0.0.1",), "ok"),
    ],
)
def test_the_wire(listen: tuple[str, ...], trusted: tuple[str, ...], status: str) -> None:
    """TLS, a proxy in front, or this machine alone."""
    found = installation(listen=listen, trusted_proxies=trusted)
    assert told(check_wire(found)) == {"security.tls": status}


def test_a_launcher_is_seen_by_what_it_publishes() -> None:
    """In its container it listens for all; who gets there is decided outside."""
    for address, status in (("127.0.0.1", "ok"), ("0.0.0.0", "warn")):
        found = installation()
        launcher = Container("launcher", state="running", published=(Published(address, 8000, 8000),))
        found = evolve(found, engine=evolve(found.engine, containers={"launcher": launcher}))
        assert told(check_wire(found)) == {"security.tls": status}


def test_backends_elsewhere_without_tls() -> None:
    """The backend's key crosses the network."""
    far = BackendSpec("far", runtime="url", url="http://192.168.1.20:8000")
    near = BackendSpec("near", runtime="url", url="http://127.0.0.1:8000")
    found = installation(listen=("unix:/x",), backends={"far": far, "near": near, "coder": SPEC})
    (_, finding) = check_wire(found)
    assert (finding.check, finding.status) == ("security.backends", "warn")
    assert "far" in finding.finding
    assert "near" not in finding.finding


def test_rates_and_metrics() -> None:
    """A key without a rate matters once others are let in, and so does who reads the metrics."""
    free = (MINE, Key("site", SECRET))
    assert told(check_rates(installation())) == {"security.rates": "ok"}
    assert told(check_rates(installation(keys=free))) == {"security.rates": "warn"}
    alone = installation(keys=free, listen=("unix:/x",), metrics_access="open")
    assert told(check_rates(alone)) == {"security.rates": "skipped"}
    assert told(check_rates(installation(metrics_access="open")))["security.metrics"] == "warn"


def test_the_clients_key_is_not_the_administrators() -> None:
    """VLLM_API_KEY alone is both."""
    assert told(check_admin(installation())) == {"security.admin": "ok"}
    assert told(check_admin(installation(keys=(Key("default", SECRET, admin=True),)))) == {
        "security.admin": "warn"
    }


@pytest.mark.parametrize(
    ("host", "mode", "status"),
    [
        (HOST, 0o660, "ok"),
        (HOST, 0o666, "fail"),
        (HOST, None, "skipped"),
        ("tcp://192.168.1.20:2375", None, "fail"),
        ("tcp://127.0.0.1:2375", None, None),
        ("tcp://192.168.1.20:2376", None, None),
    ],
)
def test_the_socket(host: str, mode: int | None, status: str | None) -> None:
    """Whoever may use it is root; an engine in the network without TLS has everybody be."""
    found = installation()
    found = evolve(found, engine=evolve(found.engine, host=host), security=SecurityFacts(socket_mode=mode))
    assert told(check_socket(found)) == ({"security.socket": status} if status else {})


def test_a_proxy_of_the_socket_is_no_engine_in_the_network() -> None:
    """In the launcher's container, by a name of its own network."""
    found = installation()
    found = evolve(
        found,
        engine=evolve(found.engine, host="tcp://socket-proxy:2375"),
        host=evolve(found.host, contained=True),
    )
    assert told(check_socket(found)) == {"security.socket": "ok"}


def test_what_containers_may_have() -> None:
    """What was allowed on purpose is told again."""
    assert told(check_containers_rights(installation())) == {"security.containers": "ok"}
    unsafe = DockerSettings(allow_unsafe=("privileged",), allowed_mounts=("/", "/srv/llm"))
    assert told(check_containers_rights(installation(docker=unsafe))) == {
        "security.containers": "warn",
        "security.mounts": "warn",
    }


# -- how it is known --------------------------------------------------------------------------------------


def test_files_are_looked_at_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes and times of what is there, and whether Git has it."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def git(command: Sequence[str], _: float) -> Ran:
        asked.append(command[-1])
        return Ran({".env": 1, "llmproxy.yaml": 0}.get(command[-1], 128))

    assert gather_security(None, "", "tcp://x:2376", git) == SecurityFacts()
    (tmp_path / ".env").write_text("A=1")
    (tmp_path / "llmproxy.yaml").write_text("{}")
    (tmp_path / "socket").touch()
    (tmp_path / "state").mkdir(mode=0o700)
    os.chmod(tmp_path / ".env", 0o640)
    os.chmod(tmp_path / "socket", 0o666)
    found = gather_security(None, str(tmp_path / "state"), f"unix://{tmp_path}/socket", git)
    assert [(each.name, each.tracked) for each in found.files] == [(".env", False), ("llmproxy.yaml", True)]
    assert found.files[0].mode == 0o640
    assert (found.state_mode, found.socket_mode) == (0o700, 0o666)
    other = tmp_path / "other.yaml"
    other.write_text("{}")
    (tmp_path / "folder").mkdir()
    folder = gather_security(str(tmp_path / "folder"), "", "tcp://x:2376", git)
    assert [each.name for each in folder.files] == [".env"]
    named = gather_security(str(other), "", "tcp://x:2376", git)
    assert [(each.name, each.tracked) for each in named.files] == [(".env", False), (str(other), None)]


def test_settings_that_cannot_be_read_are_judged_by_nobody() -> None:
    """What is known without them is still told, and of the rest that it was not looked at."""
    found = installation()
    blind = evolve(found, settings=evolve(found.settings, config=None, error="nonsense"), security=None)
    listening = evolve(blind, engine=evolve(blind.engine, containers={}))
    for check in (check_wire, check_rates, check_admin, check_containers_rights, check_files):
        assert list(check(listening)) == []
    assert set(told(check_exposure(listening)).values()) == {"skipped"}


def test_without_keys_nobody_has_too_many_rights() -> None:
    """That there are no keys at all is told elsewhere, once."""
    assert told(check_rates(installation(keys=()))) == {}
    assert told(check_admin(installation(keys=()))) == {}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at nothing else, and goes with nothing that looks from elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    done = CliRunner().invoke(cli, ["doctor", "--security", "--demo", "--json"])
    checks = {each["check"].partition(".")[0] for each in json.loads(done.stdout)["findings"]}
    assert checks == {"settings", "security"}
    assert SECRET not in done.stdout
    wrong = CliRunner().invoke(cli, ["doctor", "--security", "--from-client", "http://x"])
    assert (wrong.exit_code, "nor --security" in wrong.output) == (2, True)
