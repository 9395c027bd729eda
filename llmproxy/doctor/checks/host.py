"""WSL, the clock and versions.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.doctor.doctor_client import judge_clock
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn
from llmproxy.doctor.numbers import GIB, size, size_of, version_of

__all__ = ["check_clock", "check_versions", "check_wsl"]

LITTLE = 8 * GIB
"""Host memory: a model is read through it, and one that sleeps at level 1 stays in it."""
APART = 5.0
"""Seconds that two clocks of one machine may be apart; starting PowerShell takes one or two."""
DAY = 86400.0


def check_wsl(facts: Facts) -> Iterator[Finding]:
    """The subsystem's own settings."""
    wsl = facts.host.wsl
    if wsl is None:
        return
    if wsl.version == 1:
        text = "This is WSL 1, in which neither Docker nor a GPU can be used."
        yield fail(
            "wsl.version",
            text,
            f"wsl --set-version {wsl.distribution or '<distribution>'} 2 (in PowerShell).",
        )
        return
    yield ok("wsl.version", f"WSL 2{f', {wsl.distribution}' if wsl.distribution else ''}.")
    limit = (wsl.config or {}).get("memory", "")
    told = f" (memory={limit} in .wslconfig)" if limit else ""
    if limit and size_of(limit) is None:
        text = f"memory={limit} in .wslconfig is no size, and is ignored."
        yield warn("wsl.memory", text, "Write memory=16GB, say; then wsl --shutdown.")
    elif facts.host.memory is None:
        yield skipped("wsl.memory", "How much memory WSL has is not known.")
    elif facts.host.memory < LITTLE:
        fix = (
            "More in .wslconfig: [wsl2] memory=16GB (without it WSL has half of what Windows"
            " has); wsl --shutdown."
        )
        yield warn(
            "wsl.memory",
            f"WSL has {size(facts.host.memory)} of memory{told}: little for loading models.",
            fix,
        )
    else:
        yield ok("wsl.memory", f"WSL has {size(facts.host.memory)} of memory{told}.")
    if wsl.systemd:
        yield ok("wsl.systemd", "systemd runs.")
    elif facts.engine.desktop or wsl.desktop != "absent":
        yield skipped("wsl.systemd", "systemd does not run, and Docker Desktop needs none.")
    else:
        yield warn(
            "wsl.systemd",
            "systemd does not run: neither Docker nor llmproxy start by themselves.",
            "In /etc/wsl.conf: [boot] systemd=true; then wsl --shutdown.",
        )


def check_clock(facts: Facts) -> Iterator[Finding]:
    """The clock, beside whatever has one, too: keys expire by it, and certificates are judged by it."""
    clock, wsl = facts.clock, facts.host.wsl
    found = []
    fix = "sudo timedatectl set-ntp true (or sudo chronyc makestep)."
    if wsl is not None:
        fix = "sudo hwclock -s, or wsl --shutdown; it happens when the machine has slept."
    if clock.built is not None and clock.now < clock.built - DAY:
        found.append(fail("clock.plausible", "The clock is wrong: llmproxy was installed after now.", fix))
    windows = wsl.windows.apart if wsl is not None and wsl.windows is not None else None
    for name, other, apart in (
        ("clock.windows", "Windows", windows),
        ("clock.docker", "the Docker engine", facts.engine.apart),
    ):
        if apart is not None and abs(apart) > APART:
            text = (
                f"The clock of {other} is {abs(apart):.0f} s"
                f" {'ahead of' if apart > 0 else 'behind'} this one."
            )
            found.append(warn(name, text, fix))
    proxy = judge_clock(facts.proxy.health) if facts.proxy.answers else None
    if proxy is not None and proxy.fix is not None:
        found.append(proxy._replace(check="clock.proxy"))
    if clock.synchronized is False and wsl is None and not facts.host.contained:
        found.append(warn("clock.synchronized", "Nothing keeps the clock right.", fix))
    yield from found
    if not found:
        beside = [
            name
            for name, known in (
                ("Windows", windows),
                ("the Docker engine", facts.engine.apart),
                ("the proxy", proxy),
            )
            if known is not None
        ]
        told = f", and agrees with that of {', '.join(beside)}" if beside else ""
        yield ok("clock.plausible", f"The clock is plausible{told}.")


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Python, and the packages that llmproxy needs."""
    python = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        yield fail(
            "versions.python",
            f"Python {python} is too old.",
            "Install Python 3.11 or newer; make run finds it.",
        )
    else:
        twisted = next((each.installed for each in facts.packages if each.name.lower() == "twisted"), None)
        told = f", Twisted {twisted}" if twisted else ""
        yield ok("versions.python", f"llmproxy {facts.version}, Python {python}{told}.")
    for each in facts.packages:
        if each.installed is None:
            text = f"The package {each.name} is not installed."
        elif version_of(each.installed) < version_of(each.least):
            text = f"{each.name} {each.installed} is too old: {each.least} is needed."
        else:
            continue
        yield fail(
            "versions.packages",
            text,
            "Install what is needed again: make run does, or pip install -U llmproxy.",
        )
