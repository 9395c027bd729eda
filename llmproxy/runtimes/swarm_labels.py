"""What llmproxy writes into a service's labels, for itself and for other proxies.  Pure.

Labels of the service, never of its tasks: changing those would start the tasks anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "FRESH",
    "NEEDED",
    "NOTE_EVERY",
    "RUN",
    "USED",
    "needed_of",
    "note",
    "used_at",
]

USED = "llmproxy.used"
"""POSIX time at which a proxy last said that the service is used."""
NEEDED = "llmproxy.needed"
"""``COUNT@TIME``: so many tasks were needed then."""
RUN = "llmproxy.run"
"""Names the present run, from the start by a proxy to the stop by one."""

NOTE_EVERY = 30.0
"""Seconds between notes at least."""
FRESH = 90.0
"""Seconds for which what another proxy needs counts: it says so again each half minute."""

_NEEDED = re.compile(r"(\d{1,6})@(\d{1,12}(?:\.\d{1,6})?)")


def used_at(labels: Mapping[str, str]) -> float | None:
    """When it was last said to be used."""
    text = labels.get(USED, "")
    return float(text) if re.fullmatch(r"\d{1,12}(?:\.\d{1,6})?", text) else None


def needed_of(labels: Mapping[str, str]) -> tuple[int, float] | None:
    """How many tasks were said to be needed, and when."""
    match = _NEEDED.fullmatch(labels.get(NEEDED, ""))
    return (int(match[1]), float(match[2])) if match else None


def note(labels: Mapping[str, str], now: float, replicas: int) -> dict[str, str] | None:
    """The labels that say that it is used and needs so many tasks; None: that is said already.

    The larger need of several proxies wins while it is fresh.

    :param now: POSIX time.
    """
    used, needed = used_at(labels), needed_of(labels)
    said = used is not None and now - used < NOTE_EVERY
    fresh = needed is not None and now - needed[1] < FRESH
    more = needed is None or not fresh or needed[0] < replicas
    if said and not more:
        return None
    changed = {USED: f"{max(now, used or 0.0):.0f}"}
    same = needed is not None and needed[0] == replicas
    if more or same:
        changed[NEEDED] = f"{replicas}@{now:.0f}"
    return changed
