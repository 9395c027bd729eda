"""One structured line for each request that is over."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

from attrs import define, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.engines.redaction import redact_known
from llmproxy.http.metering import NO_TOKENS, DocumentMeter, EventMeter, Tokens

__all__ = ["AccessLog", "Entry"]

_FORMAT = (
    "access at=%s request_id=%s key=%s client=%s method=%s path=%s route=%s state=%s held=%.3f status=%d"
    " outcome=%s received=%d sent=%d seconds=%.3f"
)

_PROBES = frozenset(("/healthz", "/readyz"))
"""Asked every few seconds by whoever supervises the proxy: told only when the answer is not a good one."""

_UNSAFE = re.compile(r'[^!-~]|["{}]')

GATHER = 0.2
"""Seconds that a line may wait for others.  An event of Twisted's log costs more than the whole relaying of a
small request, and a write to the log file as much again (docs/benchmarks.md)."""

MOST = 256
"""Lines that wait at most."""


@define
class Entry:
    """What is told of one request.

    :ivar path: its path, without the query, which may hold what is nobody's business.
    :ivar state: state of the backend when the request came.
    :ivar held: seconds that it waited for the backend.
    :ivar outcome: ``ok``, ``refused``, ``client_gone``, ``backend_died`` or ``error``.
    :ivar received: bytes of its body.
    :ivar sent: bytes of the answer's body.
    :ivar seconds: from the whole request to the end of the answer.
    :ivar first_byte: seconds from the whole request to the backend's first byte; None when none came.
    :ivar at: when it was over (POSIX seconds).
    :ivar error: code of the refusal that it was answered with; empty: none.
    :ivar trace_id: the trace that it is a part of, where that is known; 32 hexadecimal digits.
    :ivar handed: it was handed over to its backend.
    :ivar meter: reads of its answer what it took; None: of none.
    """

    request_id: str
    client: str
    method: str
    path: str
    key: str = "-"
    route: str = "-"
    state: str = "-"
    held: float = 0.0
    status: int = 0
    outcome: str = "ok"
    received: int = 0
    sent: int = 0
    seconds: float = 0.0
    first_byte: float | None = None
    at: float = 0.0
    error: str = ""
    trace_id: str = ""
    handed: bool = False
    meter: DocumentMeter | EventMeter | None = None
    _tokens: Tokens = NO_TOKENS

    @property
    def tokens(self) -> Tokens:
        """What the request took; read once it is over."""
        if self.meter is not None:
            self._tokens = self.meter.tokens()
            self.meter = None
        return self._tokens


class AccessLog:
    """Gathers entries, and writes them to Twisted's log: one event for some, a line for each.

    :param clock: for :data:`GATHER`.
    :param observe: is told of the same entries, together with all those that the log leaves out.
    :param secrets: what is told to nobody; a client may have put its key into a path.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        observe: Callable[[Sequence[Entry]], None] = lambda entries: None,
        secrets: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._clock = clock
        self._observe = observe
        self._secrets = secrets
        self._entries: list[Entry] = []
        self._due: IDelayedCall | None = None

    def write(self, entry: Entry) -> None:
        """A request is over."""
        self._entries.append(entry)
        if self._due is None:
            self._due = self._clock.callLater(GATHER, self.flush)
        elif len(self._entries) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Tell now of all that was written; once more when the proxy ends."""
        due, self._due = self._due, None
        if due is not None and due.active():
            due.cancel()
        entries, self._entries = self._entries, []
        if not entries:
            return
        self._hide_secrets(entries)
        self._observe(entries)
        told = [entry for entry in entries if entry.path not in _PROBES or entry.status != 200]
        if told:
            self._log.info("{lines}", lines=_Lines(told), entries=told)

    def _hide_secrets(self, entries: Sequence[Entry]) -> None:
        secrets = self._secrets()
        # Hardly ever is one there: all are looked at together, however many keys there are.
        text = "\n".join(word for entry in entries for word in (entry.path, entry.request_id))
        if redact_known(text, secrets) != text:
            for entry in entries:
                entry.path = redact_known(entry.path, secrets)
                entry.request_id = redact_known(entry.request_id, secrets)

    def failure(self, what: str, reason: Failure) -> None:
        """Log a fault of the proxy's own that ended a request."""
        self._log.failure("{what}", reason, what=what)


@frozen
class _Lines:
    """The lines of some entries, made when somebody writes them: not every form of the log has them."""

    entries: Sequence[Entry]

    def __str__(self) -> str:
        return "\n".join(map(_line, self.entries))


def _line(entry: Entry) -> str:
    return _FORMAT % (
        _timestamp(entry.at),
        entry.request_id,
        entry.key,
        entry.client,
        entry.method,
        _quoted(entry.path),
        entry.route,
        entry.state,
        entry.held,
        entry.status,
        entry.outcome,
        entry.received,
        entry.sent,
        entry.seconds,
    )


def _timestamp(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _quoted(path: str) -> str:
    """A path that cannot break the line: no spaces, quotes, braces or control characters in it."""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path) if _UNSAFE.search(path) else path
