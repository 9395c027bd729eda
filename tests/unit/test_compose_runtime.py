"""What is said when Compose cannot create a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.compose import create_service
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
