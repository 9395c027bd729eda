"""One request, as the books have it.  Pure."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from llmproxy.http.metering import Tokens

__all__ = ["LONGEST_PATH", "Entry", "Kept", "Open", "Record", "StoreError", "record_of"]

LONGEST_PATH = 200
"""Characters of a path that are kept; clients choose it."""


class StoreError(Exception):
    """What is kept cannot be read or written now: the disk is full, or the file may not be used."""


class Kept(NamedTuple):
    """How much is kept.

    :ivar history: requests.
    :ivar days: of sums.
    """

    history: int
    days: int


class Entry(Protocol):
    """What is read of a request that is over; :class:`llmproxy.web.accesslog.Entry` has its meaning."""

    request_id: str
    client: str
    method: str
    path: str
    key: str
    route: str
    held: float
    status: int
    outcome: str
    received: int
    sent: int
    seconds: float
    first_byte: float | None
    at: float

    @property
    def tokens(self) -> Tokens:
        """What it took."""


class Open(NamedTuple):
    """A request that is not over.

    :ivar age: seconds since it came.
    """

    backend: str
    key: str
    age: float


class Record(NamedTuple):
    """One request that is over, as it is kept.

    :ivar at: when it was over (POSIX seconds).
    :ivar prompt: tokens, as ``completion`` is; None where the answer did not tell.
    """

    request_id: str
    at: float
    method: str
    path: str
    backend: str
    key: str
    client: str
    status: int
    outcome: str
    held: float
    first_byte: float | None
    seconds: float
    prompt: int | None
    completion: int | None
    estimated: bool
    received: int
    sent: int


def record_of(entry: Entry) -> Record:
    """What is kept of a request."""
    tokens = entry.tokens
    return Record(
        entry.request_id,
        entry.at,
        entry.method,
        entry.path[:LONGEST_PATH],
        entry.route,
        entry.key,
        entry.client,
        entry.status,
        entry.outcome,
        entry.held,
        entry.first_byte,
        entry.seconds,
        tokens.prompt,
        tokens.completion,
        tokens.estimated,
        entry.received,
        entry.sent,
    )
