"""What a download tells while it goes on.  Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

from llmproxy.engines.diagnosis import diagnose
from llmproxy.seeding.fetch import NO_HUB, NO_VOLUME

__all__ = ["Done", "Hearing", "reason"]

_KEPT = 200
"""Lines of standard error that are kept."""

_HINTS = {
    NO_VOLUME: "Give the backend a volume there, such as /srv/llm/.cache:/root/.cache/huggingface.",
    NO_HUB: "vLLM's images have it; another server has its own way to get its models.",
}


@frozen
class Done:
    """A repository that is there as a whole."""

    repository: str
    files: int
    bytes: int
    had: int
    cache: str


@define
class Hearing:
    """Takes the bytes of both streams, and keeps what came of them.

    :param told: called with each event.
    :ivar done: what is there.
    """

    told: Callable[[Mapping[str, Any]], None]
    done: list[Done] = field(factory=list)
    _plan: Mapping[str, Any] = field(factory=dict)
    _rest: bytes = b""
    _errors: bytes = b""

    def out(self, data: bytes) -> None:
        """Bytes of standard output: an event a line, and what others print there."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                self._event(event)
            else:
                self.err(line + b"\n")

    def err(self, data: bytes) -> None:
        """Bytes of standard error."""
        kept = (self._errors + data).split(b"\n")[-_KEPT:]
        self._errors = b"\n".join(kept)

    @property
    def log(self) -> str:
        """The end of what it said beside the events."""
        return self._errors.decode(errors="replace").strip()

    def _event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "plan":
            self._plan = event
        elif event["event"] == "done":
            plan = self._plan
            self.done.append(
                Done(
                    str(event["repository"]),
                    int(plan.get("files", 0)),
                    int(event.get("bytes", 0)),
                    int(plan.get("had", 0)),
                    str(plan.get("cache", "")),
                )
            )
        self.told(event)


def reason(log: str, exit_code: int | None = None) -> tuple[str, str | None]:
    """Why a download failed, in one line, and what helps."""
    last = log.rpartition("\n")[2].strip()
    for sign, hint in _HINTS.items():
        if last.startswith(sign):
            return last, hint
    return diagnose(exit_code, False, log)
