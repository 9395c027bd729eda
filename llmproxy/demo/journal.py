"""What a demo server writes down of its life, for whoever judges from outside what was done to it.

With ``LLMPROXY_DEMO_JOURNAL`` set, each event is a line of JSON at the end of that file, which servers may
share: ``life`` (one word for each process), ``at`` (the machine's monotonic clock, which no step of the time
of day moves), ``model``, ``what``, and more. ``start`` comes first; ``ready`` tells the port; ``term`` and
``end`` tell the requests that were open then, by their ``X-Request-ID``.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress

from attrs import define, field

__all__ = ["Journal"]


@define
class Journal:
    """One server's lines.

    :ivar path: nothing is written without one.
    """

    path: str | None
    model: str
    _life: str = field(factory=lambda: secrets.token_hex(4))

    @classmethod
    def of_environment(cls, model: str) -> Journal:
        """The one that the environment names, if any."""
        return cls(os.environ.get("LLMPROXY_DEMO_JOURNAL") or None, model)

    def note(self, what: str, **more: object) -> None:
        """Add a line; a server lives on where it cannot be written."""
        if self.path is None:
            return
        line = {"life": self._life, "at": time.monotonic(), "model": self.model, "what": what, **more}
        data = json.dumps(line).encode() + b"\n"
        with suppress(OSError):
            opened = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(opened, data)
            finally:
                os.close(opened)
