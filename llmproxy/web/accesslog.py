"""One structured line for each answered request."""

from __future__ import annotations

from attrs import define
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["AccessLog", "Entry"]

_FORMAT = (
    "access request_id={request_id} key={key} client={client} method={method} path={path} route={route}"
    " state={state} held={held:.3f} status={status} outcome={outcome} received={received} sent={sent}"
    " seconds={seconds:.3f}"
)

_PROBES = ("/healthz", "/readyz")
"""Asked every few seconds by whoever supervises the proxy: told only when the answer is not a good one."""


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


class AccessLog:
    """Writes entries to Twisted's log, the fields beside the line."""

    _log = Logger()

    def write(self, entry: Entry) -> None:
        """Log one request that is over."""
        if entry.path in _PROBES and entry.status == 200:
            return
        self._log.info(
            _FORMAT,
            request_id=entry.request_id,
            key=entry.key,
            client=entry.client,
            method=entry.method,
            path=_quoted(entry.path),
            route=entry.route,
            state=entry.state,
            held=entry.held,
            status=entry.status,
            outcome=entry.outcome,
            received=entry.received,
            sent=entry.sent,
            seconds=entry.seconds,
        )

    def failure(self, what: str, reason: Failure) -> None:
        """Log a fault of the proxy's own that ended a request."""
        self._log.failure("{what}", reason, what=what)


def _quoted(path: str) -> str:
    """A path that cannot break the line: no spaces, quotes, braces or control characters in it."""
    return "".join(c if "!" <= c <= "~" and c not in '"{}' else f"%{ord(c) & 0xFF:02X}" for c in path)
