"""What llmproxy writes into a service's labels, for itself and for other proxies.  Pure.

Labels of the service, never of its tasks: changing those would start the tasks anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import frozen

__all__ = ["FORGOTTEN", "NOTE_EVERY", "RUN", "USED", "Use", "needed_at", "note", "others", "used_at"]

USED = "llmproxy.used."
"""With the name of a proxy behind it: ``COUNT@TIME``, the POSIX time at which that one last said that the
service is used, and how many tasks it needed then.  Each proxy has its own, as one tells nothing of
another."""
RUN = "llmproxy.run"
"""Names the present run, from the start by a proxy to the stop by one."""

NOTE_EVERY = 30.0
"""Seconds between the notes of one proxy at least."""
FORGOTTEN = 3600.0
"""Seconds after which a note is taken away, whoever wrote it: that proxy may have ended for good."""

_SAID = re.compile(r"(\d{1,6})@(\d{1,12}(?:\.\d{1,6})?)")


@frozen
class Use:
    """What one proxy has said.

    :ivar at: POSIX time.
    """

    proxy: str
    replicas: int
    at: float


def _uses(labels: Mapping[str, str]) -> Iterator[Use]:
    for label, text in labels.items():
        match = _SAID.fullmatch(text) if label.startswith(USED) else None
        if match:
            yield Use(label.removeprefix(USED), int(match[1]), float(match[2]))


def others(labels: Mapping[str, str], me: str) -> list[Use]:
    """What proxies but this one have said."""
    return [use for use in _uses(labels) if use.proxy != me]


def used_at(uses: list[Use]) -> float | None:
    """When one of them last used it."""
    return max((use.at for use in uses), default=None)


def needed_at(uses: list[Use], replicas: int) -> float | None:
    """When one of them last needed so many tasks."""
    return max((use.at for use in uses if use.replicas >= replicas), default=None)


def note(labels: Mapping[str, str], me: str, now: float, replicas: int) -> dict[str, str | None]:
    """What changes of the labels when this proxy says that it uses it and needs so many tasks.

    :param now: POSIX time.
    :return: by label; None: it is taken away.
    """
    changed: dict[str, str | None] = {
        USED + use.proxy: None for use in _uses(labels) if now - use.at > FORGOTTEN and use.proxy != me
    }
    changed[USED + me] = f"{replicas}@{now:.0f}"
    return changed
