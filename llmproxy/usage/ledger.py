"""Sums of what requests took, by day, backend and key, until they are written down.  Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from attrs import define, field

from llmproxy.usage.records import Entry, Open

__all__ = ["NOBODY", "Account", "Ledger", "Sums", "day_of", "shares"]

NOBODY = "-"
"""Whose GPU time it is when no request has asked for it (``prewarm``, ``llmproxy start``)."""

Account = tuple[str, str, str]
"""Day (``2026-01-31``, in UTC), backend, name of the key."""


@define
class Sums:
    """Of the requests of one account.

    :ivar completion: tokens, without those that are
    :ivar estimated: counted by events of streams that did not tell.
    :ivar held: seconds that they waited for their backend.
    :ivar gpu: seconds that the backend had a whole GPU for them; half of one counts half.
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    estimated: int = 0
    held: float = 0.0
    gpu: float = 0.0


@define(eq=False)
class Ledger:
    """Gathers what is not written yet, and knows what there was since the proxy began.

    :ivar totals: tokens since then, by backend, key and kind (``prompt``, ``completion``, ``estimated``).
    """

    totals: defaultdict[tuple[str, str, str], int] = field(factory=lambda: defaultdict(int))
    _sums: dict[Account, Sums] = field(factory=dict)
    # Since the last time that GPU time was shared out: whose requests ended, and how long they took.
    _ended: dict[str, list[tuple[str, float]]] = field(factory=dict)
    _owners: dict[str, str] = field(factory=dict)

    def count(self, entries: Iterable[Entry]) -> None:
        """Requests of backends that are over."""
        for entry in entries:
            backend, key, tokens = entry.route, entry.key, entry.tokens
            sums = self._account(day_of(entry.at), backend, key)
            sums.requests += 1
            sums.held += entry.held
            if tokens.prompt:
                sums.prompt += tokens.prompt
                self.totals[backend, key, "prompt"] += tokens.prompt
            if tokens.completion:
                kind = "estimated" if tokens.estimated else "completion"
                setattr(sums, kind, getattr(sums, kind) + tokens.completion)
                self.totals[backend, key, kind] += tokens.completion
            self._owners[backend] = key
            self._ended.setdefault(backend, []).append((key, entry.seconds))

    def occupied(
        self, backend: str, gpu_seconds: float, window: float, now: float, open_: Sequence[Open]
    ) -> None:
        """A backend had GPUs: it is charged to those whose requests it had meanwhile, else to the last one.

        :param gpu_seconds: what it had.
        :param window: seconds in which.
        :param now: their end (POSIX seconds).
        :param open_: its requests that are not over.
        """
        ended = self._ended.pop(backend, [])
        if not gpu_seconds:
            return
        if open_:
            self._owners[backend] = open_[-1].key
        weights = [*ended, *((one.key, one.age) for one in open_)]
        whom = shares(gpu_seconds, window, weights) or {self._owners.get(backend, NOBODY): gpu_seconds}
        for key, seconds in whom.items():
            self._account(day_of(now), backend, key).gpu += seconds

    def forget(self, backends: Iterable[str]) -> None:
        """Nothing is to be shared out for all but these."""
        kept = set(backends)
        for backend in [name for name in self._ended if name not in kept]:
            del self._ended[backend]

    def take(self) -> dict[Account, Sums]:
        """What is to be written; the ledger goes on without it."""
        sums, self._sums = self._sums, {}
        return sums

    def give_back(self, sums: Mapping[Account, Sums]) -> None:
        """It could not be written."""
        for account, lost in sums.items():
            mine = self._account(*account)
            mine.requests += lost.requests
            mine.prompt += lost.prompt
            mine.completion += lost.completion
            mine.estimated += lost.estimated
            mine.held += lost.held
            mine.gpu += lost.gpu

    @property
    def unshared(self) -> int:
        """Requests that are remembered until GPU time is shared out the next time."""
        return sum(map(len, self._ended.values()))

    @property
    def empty(self) -> bool:
        """There is nothing to be written."""
        return not self._sums

    def _account(self, day: str, backend: str, key: str) -> Sums:
        account = day, backend, key
        sums = self._sums.get(account)
        if sums is None:
            sums = self._sums[account] = Sums()
        return sums


def shares(amount: float, window: float, weights: Iterable[tuple[str, float]]) -> dict[str, float]:
    """An amount, shared out by how long each request took of the window; none of no requests.

    >>> shares(9.0, 10.0, [("a", 1.0), ("b", 99.0)])
    {'a': 0.8181818181818182, 'b': 8.181818181818182}
    """
    found: defaultdict[str, float] = defaultdict(float)
    for key, seconds in weights:
        # A request that took no time at all was served all the same.
        found[key] += max(min(seconds, window), 0.001)
    whole = sum(found.values())
    return {key: amount * part / whole for key, part in found.items()}


def day_of(at: float) -> str:
    """The day of a moment, in UTC."""
    return _day(int(at // 86400))


@lru_cache(maxsize=4)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86400, UTC).strftime("%Y-%m-%d")
