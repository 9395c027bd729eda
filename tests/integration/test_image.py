"""What is in the launcher's image, and what is not."""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.engine import docker, require_docker
from tests.integration.stack import LAUNCHER_IMAGE
from tests.integration.world import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    """The image, made from this checkout."""
    require_docker("stack")
    return LAUNCHER_IMAGE


def inside(command: str) -> str:
    """What a shell in a fresh container says."""
    return docker("run", "--rm", "--network", "none", "--entrypoint", "sh", LAUNCHER_IMAGE, "-c", command)


def test_it_is_no_root_and_cannot_become_it() -> None:
    """It runs as user 1000, no program is setuid, and its code is not its own to change."""
    assert inside("id -u; id -g").split() == ["1000", "1000"]
    assert inside("find / -xdev -type f -perm /6000 2>/dev/null || true") == ""
    assert inside("find /opt /usr/local -writable -not -type l 2>/dev/null || true") == ""


def locked(name: str) -> dict[str, str]:
    """What a lock has for this system."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    every = re.findall(r"^([a-z0-9-]+)==(\S+)( ; [^\n]*)? \\$", text, re.MULTILINE)
    return {name: version for name, version, marker in every if "win32" not in marker}


def test_it_has_what_is_locked_and_lists_it() -> None:
    """The bill of materials has every package of the lock in its version, and nothing but llmproxy beside."""
    bill = json.loads(inside("cat /opt/llmproxy/sbom.cdx.json"))
    listed = {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in bill["components"]}
    needed = locked("runtime")
    assert {name: listed.get(name) for name in needed} == needed
    extras = {
        name: version
        for each in ("http2", "nvml", "otel", "uvloop")
        for name, version in locked(each).items()
    }
    assert {name: listed[name] for name in listed.keys() - {"llmproxy"}}.items() <= extras.items()
    label = docker("inspect", "--format", '{{index .Config.Labels "llmproxy.sbom"}}', LAUNCHER_IMAGE)
    assert label == "/opt/llmproxy/sbom.cdx.json"


def test_what_builds_it_is_not_in_it() -> None:
    """Neither pip nor setuptools, no wheels, no sources, no secrets."""
    assert (
        inside("ls /opt/llmproxy/lib/python3*/site-packages | grep -ixE 'pip|setuptools|wheel' || true") == ""
    )
    assert inside("ls -d /wheelhouse /src /build 2>/dev/null || true") == ""
    assert inside("find / -xdev -name .env -not -path '/proc/*' 2>/dev/null || true") == ""


def test_compiled_code_is_told_by_its_sources_hash() -> None:
    """No time is in it, so that it is always the same; and it is there, so that starting is quick."""
    flags = inside(
        "cd /opt/llmproxy/lib/python3*/site-packages/llmproxy/__pycache__ && "
        "for each in *.pyc; do od -An -tu4 -j4 -N4 $each; done | sort | uniq -c"
    ).split()
    # PEP 552: bit 0 says that it is told by a hash, bit 1 would have it checked at each import.
    assert flags[1:] == ["1"]
    assert int(flags[0]) > 5
