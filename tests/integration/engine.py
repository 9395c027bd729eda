"""Finds a Docker engine for the tests, or says why they are skipped."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_catalogue import read_labelled_containers
from llmproxy.runtimes.interface import RuntimeUnavailable

__all__ = [
    "BASE_IMAGE",
    "DEMO_IMAGE",
    "TEST_LABEL",
    "docker",
    "remove_containers",
    "require_docker",
    "skip_or_fail",
    "unique",
    "why_no_docker",
]

BASE_IMAGE = "llmproxy-test-base:1"
DEMO_IMAGE = "llmproxy-test-demo:1"
TEST_LABEL = "llmproxy.test=1"
ROOT = Path(__file__).resolve().parent.parent.parent


@cache
def _why_not() -> str | None:
    try:
        read_labelled_containers(DockerSettings(), 10)
    except RuntimeUnavailable as error:
        return str(error)
    return None


@cache
def _make_image(kind: str) -> str | None:
    made = subprocess.run(
        [str(ROOT / ".ci" / "images"), kind], capture_output=True, text=True, timeout=1500, check=False
    )
    return None if made.returncode == 0 else f"no {kind} image: {made.stderr.strip()[-600:]}"


def why_no_docker(image: str = "base") -> str | None:
    """Why no engine answers, or the image (``base`` or ``demo``) cannot be made; None when all is there."""
    return _why_not() or _make_image(image)


def require_docker(image: str = "base") -> None:
    """Skip the test when there is none, with that image; fail it where ``LLMPROXY_REQUIRE_DOCKER`` is set
    (continuous integration)."""
    skip_or_fail(why_no_docker(image))


def skip_or_fail(reason: str | None) -> None:
    """For want of an engine, if there is a reason."""
    if reason is not None:
        if os.environ.get("LLMPROXY_REQUIRE_DOCKER") or os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def unique(name: str) -> str:
    """A container name that no other test has."""
    return f"llmproxy-test-{name}-{uuid4().hex[:8]}"


def docker(*args: str, check: bool = True, timeout: float = 120) -> str:
    """Run the docker command and return its output.  Blocks the reactor: for preparations only."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()


def remove_containers(prefix: str) -> None:
    """Remove those whose names begin so."""
    names = docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name={prefix}").split()
    if names:
        docker("rm", "-f", "-v", *names, check=False)
