"""What is said when the engine's socket may not be used."""

from __future__ import annotations

import os
from pathlib import Path

from llmproxy.runtimes.docker_client import unavailable


def test_wrong_group_is_named(tmp_path: Path) -> None:
    """A socket of another group: the message has that group, the user, and the DOCKER_GID to set."""
    socket = tmp_path / "docker.sock"
    socket.touch()
    group = socket.stat().st_gid
    said = str(unavailable(f"unix://{socket}", PermissionError(13, "Permission denied")))
    assert f"may not be used: its socket belongs to group {group}" in said
    assert f"user {os.geteuid()} (groups " in said
    assert f"DOCKER_GID={group} into .env" in said


def test_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    """Where not even the socket's group can be read, the cause is said."""
    said = str(unavailable(f"unix://{tmp_path}/none", PermissionError(13, "Permission denied")))
    assert said.endswith("may not be used: No such file or directory")


def test_nobody_listens() -> None:
    """An engine that is not there is said not to answer."""
    said = str(unavailable("unix:///s", ConnectionRefusedError(111, "Connection refused")))
    assert said == "the Docker engine at unix:///s does not answer: [Errno 111] Connection refused"
