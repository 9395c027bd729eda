"""What is said when Compose cannot create a container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.compose import create_service, find_compose
from llmproxy.runtimes.interface import StartRefused


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("/etc/llmproxy/docker-compose.yml", "docker compose up --no-start coder3b"),
        ("stack.yml", "docker compose -f stack.yml up --no-start coder3b"),
    ],
)
def test_no_compose(file: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no Compose the start is refused, and the hint is a command that works on the host, too, where the
    launcher's own path of the file is of no use."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartRefused) as refused:
        create_service(DockerSettings(compose_file=file), "coder3b")
    assert str(refused.value) == "service 'coder3b' has no container yet, and there is no Compose here"
    assert refused.value.hint == f"Try it by hand in the compose file's folder: {command}"


def program(folder: Path, name: str, script: str) -> Path:
    """A program that the search path has."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are looked for; there are none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_which_compose_there_is(path: Path) -> None:
    """The plugin of docker where it works, else the program of its own."""
    settings = DockerSettings(compose_file="c.yml")
    assert find_compose(settings) is None
    program(path, "docker", "exit 1")
    assert find_compose(settings) is None
    program(path, "docker-compose", "exit 0")
    assert find_compose(settings) == ("docker-compose",)
    program(path, "docker", '[ "$1 $2" = "compose version" ]')
    assert find_compose(settings) == ("docker", "compose")


def test_one_service_is_created_and_not_started(path: Path, tmp_path: Path) -> None:
    """By the engine that is configured, and nothing that it depends on."""
    program(path, "docker", f'[ "$2" = version ] || echo "$DOCKER_HOST $*" > {tmp_path}/asked')
    create_service(DockerSettings(host="unix:///x", compose_file="/etc/c.yml"), "coder3b")
    assert (tmp_path / "asked").read_text() == (
        "unix:///x compose -f /etc/c.yml up --no-start --no-deps coder3b\n"
    )


def refused(path: Path, script: str) -> str:
    program(path, "docker-compose", script)
    with pytest.raises(StartRefused) as found:
        create_service(DockerSettings(compose_file="/etc/compose.yaml"), "coder3b")
    assert str(found.value.hint).endswith("folder: docker compose up --no-start coder3b")
    return str(found.value)


def test_what_compose_says_is_told(path: Path) -> None:
    """The end of its complaint; its status where it says nothing."""
    said = refused(path, "for each in 1 2 3 4; do echo line $each >&2; done; exit 15")
    assert said == "Compose could not create service 'coder3b': line 2 line 3 line 4"
    assert refused(path, "exit 15") == "Compose could not create service 'coder3b': exit status 15"


def test_a_compose_that_cannot_be_run(path: Path) -> None:
    """It is told why, instead of failing as a fault of ours."""
    (path / "docker-compose").write_bytes(b"\x7fELF, but no program")
    (path / "docker-compose").chmod(0o755)
    with pytest.raises(StartRefused, match="Compose cannot be run: Exec format error"):
        create_service(DockerSettings(compose_file="c.yml"), "coder3b")


def test_a_compose_that_does_not_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without an end."""

    def run(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    program(path, "docker-compose", "")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(StartRefused, match="did not create service 'coder3b' within 1800 s"):
        create_service(DockerSettings(compose_file="c.yml"), "coder3b")
