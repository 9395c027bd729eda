"""How much each key has had, against what it may have.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from attrs import define, field

from llmproxy.config.model import Key
from llmproxy.errors import rate_limited
from llmproxy.http.metering import Tokens
from llmproxy.keys.buckets import Bucket

__all__ = ["Limiter"]

STREAM_RETRY = 5.0
"""Seconds after which trying again makes sense where a stream has to end first; nobody knows when it does."""


class Entry(Protocol):
    """What is read of a request that is over; :class:`llmproxy.web.accesslog.Entry` is one."""

    key: str
    at: float

    @property
    def tokens(self) -> Tokens:
        """What it took."""


@define(eq=False)
class _Account:
    """One key's."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    streams: int = 0


@define(eq=False)
class Limiter:
    """Counts by the name of the key, so that neither a reload nor a new secret gives anything back."""

    _accounts: dict[str, _Account] = field(factory=dict)

    def admit(self, key: Key, now: float, *, streams: bool = False) -> None:
        """A request is about to be served: it counts, unless it is refused.

        :param streams: its answer is a stream, which counts until :meth:`ended`.
        :raises llmproxy.errors.Refusal: ``rate_limited``, with the time after which there is room.
        """
        account = self._account(key, now)
        if account.requests is not None and (wait := account.requests.wait(1, now)) > 0:
            raise rate_limited(
                f"The key {key.name!r} may send {key.requests_per_minute} requests a minute.", wait
            )
        # A request whose tokens are not known yet needs something left at least.
        if account.tokens is not None and (wait := account.tokens.wait(1, now)) > 0:
            raise rate_limited(f"The key {key.name!r} may use {key.tokens_per_minute} tokens a minute.", wait)
        if streams and key.streams is not None and account.streams >= key.streams:
            raise rate_limited(f"The key {key.name!r} may have {key.streams} streams at once.", STREAM_RETRY)
        if account.requests is not None:
            account.requests.spend(1, now)
        if streams:
            account.streams += 1

    def ended(self, key: Key) -> None:
        """A stream that was admitted is over."""
        account = self._accounts.get(key.name)
        if account is not None and account.streams:
            account.streams -= 1

    def observe(self, entries: Iterable[Entry]) -> None:
        """Requests are over: their tokens are known now."""
        if not self._accounts:
            return
        for entry in entries:
            account = self._accounts.get(entry.key)
            if account is not None and account.tokens is not None:
                took = entry.tokens
                account.tokens.spend((took.prompt or 0) + (took.completion or 0), entry.at)

    def told(self, key: Key, now: float) -> Mapping[str, tuple[int, int]]:
        """What it may have in a minute, and what is left: of ``requests`` and ``tokens``, where limited."""
        account = self._account(key, now)
        return {
            name: (int(bucket.size), max(0, int(bucket.look(now))))
            for name, bucket in (("requests", account.requests), ("tokens", account.tokens))
            if bucket is not None
        }

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all but these."""
        names = {key.name for key in keys}
        for name in [name for name in self._accounts if name not in names]:
            del self._accounts[name]

    def _account(self, key: Key, now: float) -> _Account:
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = _Account()
        account.requests = _fitting(account.requests, key.requests_per_minute, now)
        account.tokens = _fitting(account.tokens, key.tokens_per_minute, now)
        return account


def _fitting(bucket: Bucket | None, size: int | None, now: float) -> Bucket | None:
    if size is None:
        return None
    if bucket is None:
        return Bucket(float(size), now)
    bucket.resize(float(size), now)
    return bucket
