"""``/api/requests`` and ``/api/usage``: who asks for what now, who did, and what it took."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from llmproxy.config.units import duration
from llmproxy.engines.redaction import redact_known
from llmproxy.errors import Refusal, invalid_request
from llmproxy.usage.book import Book
from llmproxy.usage.ledger import day_of
from llmproxy.usage.records import StoreError
from llmproxy.web.accesslog import Entry
from llmproxy.web.api.answers import Ask, number, text
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json
from llmproxy.web.underway import open_requests, tokens_so_far

__all__ = ["rates", "show_requests", "show_usage"]

MOST = 500
"""Requests in one answer."""

AT_ONCE = 0.1
"""Part of a request's time that its answer takes to come, below which it is taken for one that came whole."""

OUTCOMES = ("ok", "refused", "client_gone", "backend_died", "error")

BY = ("day", "backend", "key")

LONGEST = 4000 * 86400.0
"""Seconds that one may look back."""


def rates(ask: Ask) -> dict[str, float]:
    """Tokens per second of each backend that makes some."""
    site = ask.request.site
    book = site.book
    if book is None:
        return {}
    counted: defaultdict[str, float] = defaultdict(float)
    for (backend, _, kind), count in book.ledger.totals.items():
        if kind != "prompt":
            counted[backend] += count
    for backend, count in tokens_so_far(site).items():
        counted[backend] += count
    return book.rates.tell(site.clock.seconds(), counted)


def show_requests(ask: Ask) -> None:
    """Those that are open, and some of those that are over.

    :raises llmproxy.errors.Refusal: ``invalid_request``.
    """
    request = ask.request
    limit = number(request, b"limit", 50, MOST)
    before = None if text(request, b"before") is None else number(request, b"before", 0, 2**62)
    where = {name: said for name in ("backend", "key", "outcome") if (said := text(request, name.encode()))}
    if where.get("outcome", "ok") not in OUTCOMES:
        raise invalid_request(f"outcome must be one of {', '.join(OUTCOMES)}.", param="outcome")
    opened = [] if before is not None or "outcome" in where else _opened(ask, where)

    def told(found: list[dict[str, Any]]) -> None:
        more = found[-1]["id"] if found and len(found) == limit else None
        answer_json(request, 200, {"open": opened, "finished": list(map(_finished, found)), "next": more})

    _answer(request, _book(request).requests(limit, before, where), told)


def _opened(ask: Ask, where: Mapping[str, str]) -> list[dict[str, Any]]:
    now = ask.request.site.clock.seconds()
    found = [
        _open(request, entry, now, ask.fleet.secrets)
        for request, entry in open_requests(ask.request.site)
        if where.get("backend", entry.route) == entry.route
        and where.get("key", request.key.name) == request.key.name
    ]
    found.sort(key=lambda one: one["at"], reverse=True)
    return found[:MOST]


def _open(request: ProxyRequest, entry: Entry, now: float, secrets: Sequence[str]) -> dict[str, Any]:
    age = now - request.arrived
    return {
        "request_id": redact_known(entry.request_id, secrets),
        "at": request.arrived,
        "age": age,
        "method": entry.method,
        "path": redact_known(entry.path, secrets),
        "backend": entry.route,
        "key": request.key.name,
        "client": entry.client,
        "state": "in_flight" if entry.handed else "waiting",
        "held": entry.held if entry.handed else age,
        "first_byte": entry.first_byte,
        "tokens": None if entry.meter is None else entry.meter.events,
    }


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    completion = row.pop("completion")
    took = _generated_for(row)
    speed = round(completion / took, 1) if completion and took else None
    prompt = row.pop("prompt")
    return {**row, "prompt_tokens": prompt, "completion_tokens": completion, "tokens_per_second": speed}


def _generated_for(row: Mapping[str, Any]) -> float:
    """Seconds in which its tokens came; 0: not known."""
    first, whole = row["first_byte"], row["seconds"] - row["held"]
    if first is None:
        return 0.0
    streamed = row["seconds"] - first
    # An answer that comes whole begins when the last token is there.
    return float(streamed if streamed > AT_ONCE * whole else max(0.0, whole))


def show_usage(ask: Ask) -> None:
    """Sums by day, backend and key, as JSON or CSV.

    :raises llmproxy.errors.Refusal: ``invalid_request``.
    """
    request = ask.request
    said = text(request, b"by")
    by = tuple(name.strip() for name in ("backend" if said is None else said).split(",") if name.strip())
    if len(set(by)) != len(by) or not set(by) <= set(BY):
        raise invalid_request(f"by must be some of {', '.join(BY)}, each once.", param="by")
    now = request.site.clock.seconds()
    since, until = _day(request, "since", now, now - 30 * 86400), _day(request, "until", now, now)
    form = text(request, b"format") or "json"
    if form not in ("json", "csv"):
        raise invalid_request("format must be json or csv.", param="format")

    def told(found: list[dict[str, Any]]) -> None:
        rows = [_sums(row, by) for row in found]
        if form == "csv":
            request.answer(200, _csv(rows, by), [(b"Content-Type", b"text/csv; charset=utf-8")])
        else:
            answer_json(request, 200, {"by": list(by), "since": since, "until": until, "rows": rows})

    _answer(request, _book(request).usage(by, since, until), told)


def _day(request: ProxyRequest, name: str, now: float, default: float) -> str:
    """A day of the query: ``2026-01-31``, or how long ago as in ``7d``; days are those of UTC."""
    said = text(request, name.encode())
    if said is None:
        return day_of(default)
    try:
        return day_of(datetime.strptime(said, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        pass
    try:
        ago = duration(said)
        if ago <= LONGEST:
            return day_of(now - ago)
    except ValueError:
        pass
    raise invalid_request(f"{name} must be a day such as 2026-01-31, or a time such as 7d.", param=name)


_SUMS = ("requests", "prompt_tokens", "completion_tokens", "estimated_tokens", "held_seconds", "gpu_seconds")


def _sums(row: Mapping[str, Any], by: Sequence[str]) -> dict[str, Any]:
    told = (row["requests"], row["prompt"], row["completion"], row["estimated"])
    seconds = (round(row["held"], 3), round(row["gpu"], 3))
    return {**{name: row[name] for name in by}, **dict(zip(_SUMS, (*told, *seconds), strict=True))}


def _csv(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, (*by, *_SUMS))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _book(request: ProxyRequest) -> Book:
    """The books, with all in them that is over."""
    book = request.site.book
    assert book is not None, "every proxy keeps one"
    request.site.access_log.flush()
    return book


def _answer(request: ProxyRequest, asked: Deferred[Any], told: Any) -> None:
    def failed(failure: Failure) -> None:
        if failure.check(StoreError):
            refusal = Refusal(
                503,
                "error",
                f"What is kept of requests cannot be read now: {failure.getErrorMessage()}.",
                hint="Look at the disk and at the rights of state_dir.",
            )
            request.refuse(refusal)
        else:
            request.processingFailed(failure)

    asked.addCallback(told)
    asked.addErrback(failed)
