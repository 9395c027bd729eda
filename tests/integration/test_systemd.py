"""The units of deploy/systemd under a real systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.proxy import ADMIN
from tests.integration.systemd_world import UNITS, Machine, machine
from tests.integration.upgraded import Load, upgrade
from tests.integration.world import until

ANALYZE = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine for all tests."""
    with machine(tmp_path_factory.mktemp("machine")) as found:
        yield found


@pytest.fixture
def service(booted: Machine) -> Iterator[Machine]:
    """The service, started."""
    booted.systemctl("daemon-reload")
    booted.systemctl("start", "llmproxy.service")
    yield booted
    booted.systemctl("stop", "llmproxy.service", "llmproxy.socket")


# -- the files themselves -----------------------------------------------------------------------------


def installed(folder: Path, units: Path = UNITS) -> list[Path]:
    """Copies that systemd of this machine can look at: the programs and users that they name are not here."""
    found = []
    for unit in sorted([*units.glob("*.service"), *units.glob("*.socket")]):
        text = re.sub(r"(?m)^Exec(Start|Stop)=\S+", r"Exec\1=/bin/true", unit.read_text())
        text = re.sub(r"(?m)^(User|SupplementaryGroups)=.*\n", "", text)
        copy = folder / unit.name.replace("@.", "@chat.")
        copy.write_text(text)
        found.append(copy)
    return found


@ANALYZE
@pytest.mark.parametrize("whose", ["system", "user"])
def test_the_units_are_understood(tmp_path: Path, whose: str) -> None:
    """systemd has nothing to say against them."""
    units = UNITS if whose == "system" else UNITS / "user"
    done = subprocess.run(
        ["systemd-analyze", f"--{whose}", "verify", "--man=no", *map(str, installed(tmp_path, units))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "llmproxy" in line]
    assert (done.returncode, told) == (0, [])


@ANALYZE
def test_the_service_may_do_little(tmp_path: Path) -> None:
    """systemd rates its exposure below 2.5 of 10, and that without a user of its own."""
    unit = next(one for one in installed(tmp_path) if one.name == "llmproxy.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_user_s_units_are_the_same_service() -> None:
    """They listen where the machine's do, and are told of in the same way."""
    assert (UNITS / "user/llmproxy.socket").read_text().count("ListenStream=0.0.0.0:8000") == 1
    mine, all_ = ((UNITS / where / "llmproxy.service").read_text() for where in ("user", ""))
    for name in ("Type", "NotifyAccess", "ExecReload", "WatchdogSec", "Restart", "TimeoutStopSec"):
        pattern = rf"(?m)^{name}=.*$"
        assert re.findall(pattern, mine) == re.findall(pattern, all_) != []


# -- the service --------------------------------------------------------------------------------------


def test_it_serves_and_may_do_little(service: Machine) -> None:
    """It is active once it serves, as a user without any privilege, behind a filter of system calls."""
    assert service.shows("StatusText").endswith("routes: 1")
    assert service.proxy.chat("a").status == 200
    status = service.stat(service.shows("MainPID"))
    assert status["Uid"].split()[0] != "0"
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")
    assert (service.folder / "var/lib/llmproxy").stat().st_mode & 0o777 == 0o700


def test_upgrades_under_load(service: Machine) -> None:
    """systemd follows to the new process each time, restarts nothing, and nobody's request is lost."""
    proxy = service.proxy
    assert proxy.chat("a").status == 200
    with Load(proxy) as load:
        load.more("fresh", 2, lambda: load.fresh(0.02))
        load.more("kept", 2, lambda: load.kept(0.1))
        load.more("stream", 2, lambda: load.streams(30, 0.02))
        for _ in range(5):
            done = upgrade(proxy)
            assert done.status == 200, done
            inside = done.json["pid"]
            until(lambda: service.shows("MainPID") == str(inside))  # noqa: B023
    assert load.failed == []
    assert (service.shows("NRestarts"), service.shows("SubState")) == ("0", "running")
    # And it is still supervised.
    until(lambda: service.shows("StatusText").endswith("routes: 1"))


def test_restarts_refuse_nobody(service: Machine) -> None:
    """The socket stays; who comes waits, what is in flight finishes, and the model is adopted."""
    proxy = service.proxy
    assert proxy.chat("a").status == 200
    run = proxy.backend("a")["run"]
    with Load(proxy) as load:
        load.more("fresh", 2, lambda: load.fresh(0.02))
        load.more("stream", 1, lambda: load.streams(20, 0.02))
        for _ in range(3):
            service.systemctl("restart", "llmproxy.service")
    assert load.failed == []
    assert proxy.backend("a")["run"] == run


def test_a_reload_is_over_when_it_is_done(service: Machine) -> None:
    """HUP by ``systemctl reload``: afterwards the new settings count."""
    file = service.folder / "etc/llmproxy/llmproxy.yaml"
    before = file.read_text()
    try:
        file.write_text(before + "    aliases: [another]\n")
        service.systemctl("reload", "llmproxy.service")
        until(lambda: service.proxy.backend("a")["models"] and _serves(service, "another"))
    finally:
        file.write_text(before)
    assert service.shows("SubState") == "running"


def _serves(service: Machine, model: str) -> bool:
    models = service.proxy.ask("GET", "/v1/models").json["data"]
    return any(one["id"] == model for one in models)


def test_a_proxy_that_hangs_is_started_again(service: Machine) -> None:
    """Also one that has taken its place by an upgrade; the model goes on, and is adopted."""
    service.unit("llmproxy.service.d/watchdog.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n")
    try:
        service.systemctl("daemon-reload")
        service.systemctl("restart", "llmproxy.service")
        assert service.proxy.chat("a").status == 200
        run = service.proxy.backend("a")["run"]
        time.sleep(2.5)
        assert service.shows("NRestarts") == "0"
        assert upgrade(service.proxy).status == 200
        time.sleep(2.5)
        assert service.shows("NRestarts") == "0"
        service.systemctl("kill", "--signal=STOP", "--kill-whom=main", "llmproxy.service")
        until(lambda: service.shows("NRestarts") == "1" and service.shows("SubState") == "running", 15)
        assert service.proxy.chat("a").status == 200
        assert service.proxy.backend("a")["run"] == run
    finally:
        os.unlink(service.folder / "etc/systemd/system/llmproxy.service.d/watchdog.conf")
        service.systemctl("daemon-reload")


def test_stopping_lets_answers_finish(service: Machine) -> None:
    """Also those that the process before the last upgrade still gives; then nothing but the model is left."""
    proxy = service.proxy
    with proxy.streaming("a", tokens=100, delay=0.02) as old:
        assert upgrade(proxy).status == 200
        with proxy.streaming("a", tokens=100, delay=0.02) as new:
            service.systemctl("stop", "--no-block", "llmproxy.socket", "llmproxy.service")
            assert old.through(b"[DONE]")
            assert new.through(b"[DONE]")
    until(lambda: service.shows("ActiveState") == "inactive")
    assert service.shows("Result") == "success"
    with pytest.raises(ConnectionRefusedError):
        proxy.ask("GET", "/healthz", key=ADMIN)


def test_the_stack_comes_and_goes_with_its_unit(booted: Machine) -> None:
    """Starting an instance switches to its profile, stopping takes all down; the service is not beside it."""
    shutil.copy(UNITS / "llmproxy-stack@.service", booted.folder / "etc/systemd/system")
    booted.unit("llmproxy-stack@.service.d/here.conf", "[Service]\nEnvironment=STACK=/opt/llmproxy/stack\n")
    switch = booted.folder / "opt/llmproxy/stack/deploy/scripts/switch"
    switch.parent.mkdir(parents=True)
    switch.write_text('#!/bin/sh\necho "$COMPOSE_FOLDER $*" >>/var/lib/switched\n')
    switch.chmod(0o755)
    booted.systemctl("daemon-reload")
    booted.systemctl("start", "llmproxy.service")
    booted.systemctl("start", "llmproxy-stack@chat.service")
    assert booted.shows("ActiveState") in ("inactive", "deactivating")
    assert booted.systemctl("show", "llmproxy-stack@chat", "--value", "-p", "ActiveState").strip() == "active"
    booted.systemctl("start", "llmproxy-stack@none.service")
    booted.systemctl("stop", "llmproxy-stack@*")
    told = (booted.folder / "var/lib/switched").read_text().splitlines()
    assert told[:2] == ["/opt/llmproxy/stack chat", "/opt/llmproxy/stack none"]
    assert set(told[2:]) == {"/opt/llmproxy/stack stop-all"}
