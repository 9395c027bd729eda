"""Findings: how they are made, put together and kept free of secrets.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from llmproxy.doctor.doctor_client import FAIL, OK, SKIPPED, WARN, Finding, hide
from llmproxy.engines.vllm import redact

__all__ = [
    "FAIL",
    "OK",
    "SECTIONS",
    "SKIPPED",
    "WARN",
    "Finding",
    "clean",
    "fail",
    "ok",
    "section",
    "skipped",
    "warn",
]

SECTIONS = {
    "settings": "Settings",
    "docker": "Docker",
    "swarm": "Docker Swarm",
    "backends": "Backends",
    "gpu": "GPU",
    "folders": "Folders",
    "disk": "Disk space",
    "network": "Network",
    "wsl": "WSL",
    "clock": "Clock",
    "versions": "Versions",
    "proxy": "The running proxy",
    "client": "From here",
    "security": "Security",
}
"""Their headings, in the order in which they are shown."""

_SHORT = 8
"""A secret with fewer characters may be a word; it is only hidden where it stands by itself."""


def ok(check: str, finding: str) -> Finding:
    """It is as it should be."""
    return Finding(check, OK, finding)


def warn(check: str, finding: str, fix: str) -> Finding:
    """It works, but not as well as it could, or not for long."""
    return Finding(check, WARN, finding, fix)


def fail(check: str, finding: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(check, FAIL, finding, fix)


def skipped(check: str, finding: str, fix: str | None = None) -> Finding:
    """It could not be told, or does not matter here."""
    return Finding(check, SKIPPED, finding, fix)


def section(found: Finding) -> str:
    """What it belongs to."""
    return found.check.partition(".")[0]


def clean(found: Finding, secrets: Iterable[str]) -> Finding:
    """The same on one line each, and without secrets, which may stand in what engines and proxies say."""
    known = list(secrets)
    long = [secret for secret in known if len(secret) >= _SHORT]
    finding = " ".join(redact(found.finding, long).split())
    fix = None if found.fix is None else " ".join(redact(found.fix, long).split())
    return hide(found._replace(finding=finding, fix=fix), (one for one in known if len(one) < _SHORT))
