"""deploy/scripts/switch, with the real Compose and the real engine: one model up, the others down."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.engine import require_docker
from tests.integration.stack import MODELS, Stack
from tests.integration.world import ROOT, until

# Making the images takes a minute or two when they are not there yet.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One project for the whole module."""
    require_docker("stack")
    found = Stack.prepare(tmp_path_factory.mktemp("stack"))
    (found.folder / "deploy" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "scripts" / "switch", found.folder / "deploy" / "scripts")
    try:
        yield found
    finally:
        found.remove()


def switch(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as its owner does, in the stack's folder."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    return subprocess.run(
        ["deploy/scripts/switch", *arguments],
        cwd=stack.folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def running(stack: Stack) -> set[str]:
    """The services whose containers run."""
    return {name for name, state in stack.containers().items() if state == "running"}


def test_one_model_at_a_time(stack: Stack) -> None:
    """Each switch has the launcher and the one model run; by profile, service or route; twice is as once."""
    done = switch(stack, "coder3b")
    assert done.returncode == 0, done.stderr
    stack.wait_until_ready()
    until(lambda: stack.state("coder") == "ready")
    assert running(stack) == {"launcher", "coder3b"}
    launcher = stack.inspect("launcher", ".State.StartedAt")
    done = switch(stack, "chat")
    assert done.returncode == 0, done.stderr
    assert "stopping coder3b" in done.stderr
    until(lambda: stack.state("chat") == "ready")
    assert stack.state("coder") == "absent"
    assert running(stack) == {"launcher", MODELS["chat"]}
    done = switch(stack, "/chat")
    assert done.returncode == 0, done.stderr
    assert "stopping" not in done.stderr
    stack.started(MODELS["chat"], 1)
    done = switch(stack, "qwen7b-bnb4")
    assert done.returncode == 0, done.stderr
    assert running(stack) == {"launcher", "qwen7b-bnb4"}
    # The launcher has gone on all the time.
    assert stack.inspect("launcher", ".State.StartedAt") == launcher
    listed = switch(stack).stdout
    assert [line.split() for line in listed.splitlines()[1:]] == [
        ["coder3b", "coder3b", "/coder", "exited"],
        ["sitechat", "chat", "/chat", "exited"],
        ["qwen7b-bnb4", "qwen7b", "/qwen7b", "running"],
    ]


def test_waiting(stack: Stack) -> None:
    """``--wait`` ends when the model answers."""
    done = switch(stack, "--wait", "coder")
    assert done.returncode == 0, done.stderr
    assert stack.state("coder") == "ready"


def test_none(stack: Stack) -> None:
    """``none`` stops the models; ``stop-all`` stops the launcher, too, and removes nothing."""
    assert switch(stack, "coder").returncode == 0
    assert switch(stack, "none").returncode == 0
    assert running(stack) == {"launcher"}
    there = stack.containers().keys()
    assert switch(stack, "stop-all").returncode == 0
    assert running(stack) == set()
    assert stack.containers().keys() == there


def test_a_typing_error(stack: Stack) -> None:
    """What is no model is refused with what there is, and nothing is stopped."""
    before = stack.containers()
    done = switch(stack, "codr")
    assert done.returncode == 2
    assert "there is no model 'codr'" in done.stderr
    assert all(route in done.stderr for route in MODELS)
    assert stack.containers() == before
    assert switch(stack, "a", "b").returncode == 2
