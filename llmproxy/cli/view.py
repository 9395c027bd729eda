"""How the command shows things to a person.  Pure: values in, text or tables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.cli.tasks_view import pending_words, replicas_words
from llmproxy.words import duration

__all__ = [
    "VALUES_AT",
    "amount",
    "backend_lines",
    "backends_table",
    "duration",
    "event_line",
    "failure_lines",
    "state_text",
    "what_next",
]

VALUES_AT = 15
"""The column where the values stand in what is told of one backend."""

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "waking": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "falling_asleep": "yellow",
    "sleeping": "cyan",
    "failed": "red",
    "absent": "dim",
}


def what_next(backend: Mapping[str, Any]) -> str:
    """What will become of it, or how far it is."""
    if backend.get("retry_in") is not None:
        return f"retry in {duration(backend['retry_in'])}"
    if backend["state"] in ("starting", "waking") and backend.get("phase"):
        return _progress(backend)
    pending = pending_words(backend.get("replicas"))
    if pending:
        return pending
    if backend.get("waits"):
        on = ", ".join(backend["waits"].get("on") or ())
        return f"waits for {on}" if on else "waits"
    if backend.get("idle_in") is not None:
        sleeps = backend["state"] == "ready" and (backend.get("needs") or {}).get("sleep")
        return f"{'sleeps' if sleeps else 'stops'} in {duration(backend['idle_in'])}"
    return "pinned" if backend.get("pinned") and backend["state"] == "ready" else ""


def _progress(backend: Mapping[str, Any]) -> str:
    """How far a start is, and how long it will still take."""
    phase, part, eta = backend.get("phase"), backend.get("progress"), backend.get("eta")
    if not phase:
        return ""
    told = f"{phase} {part:.0%}" if part is not None else str(phase)
    if eta is not None:
        told = f"{told}, {duration(eta)} left"
    # Who waits for room is told with what is in its way.
    reason = "" if backend.get("waits") else backend.get("reason")
    return f"{told}: {reason}" if reason else told


def _state(backend: Mapping[str, Any]) -> str:
    level, replicas = backend.get("level"), backend.get("replicas")
    if replicas and backend["state"] in ("ready", "draining"):
        return f"{backend['state']} {replicas['ready']}/{replicas['wanted']}"
    return str(backend["state"]) if level is None else f"{backend['state']} (level {level})"


def _since(backend: Mapping[str, Any], now: float) -> str:
    since = backend.get("since")
    return "" if since is None else duration(now - since)


def state_text(backend: Mapping[str, Any]) -> Text:
    """Its state, in its colour."""
    return Text(_state(backend), style=_COLOURS.get(str(backend["state"]), ""))


def backends_table(backends: Sequence[Mapping[str, Any]], now: float, width: int | None) -> list[Text]:
    """A line for each backend, below a line of headings.

    :param now: POSIX seconds.
    :param width: how wide it may be; None: as wide as it is.
    """

    def cells(what: Iterable[str]) -> list[Text]:
        return [Text(each) for each in what]

    def number(name: str, style: str = "") -> list[Text]:
        # A nought says nothing: what is busy shall be seen.
        counts = [int(backend.get(name) or 0) for backend in backends]
        return [Text(str(count), style=style if count else "dim") for count in counts]

    columns = [
        Column("BACKEND", [Text(str(backend["name"]), style="bold") for backend in backends]),
        Column("STATE", [state_text(backend) for backend in backends]),
        Column("FOR", cells(_since(backend, now) for backend in backends), drop=8),
        Column("IN FLIGHT", number("in_flight"), right=True, brief=(2, "BUSY"), drop=6),
        Column("WAITING", number("waiting", "yellow"), right=True, brief=(3, "WAIT"), drop=7),
        Column("NEXT", cells(map(what_next, backends)), shorten=(5, 12), drop=9),
    ]
    if any(backend.get("tokens_per_second") for backend in backends):
        speeds = cells(_speed(backend) for backend in backends)
        columns.insert(5, Column("TOKENS/S", speeds, right=True, brief=(2, "TOK/S"), drop=4))
    models = cells(", ".join(backend.get("models") or ()) for backend in backends)
    addresses = cells(backend.get("address") or "" for backend in backends)
    columns += [
        Column("MODELS", models, shorten=(1, 16), drop=2),
        Column("ADDRESS", addresses, drop=0),
    ]
    return table(columns, width)


def _speed(backend: Mapping[str, Any]) -> str:
    """Tokens a second."""
    speed = backend.get("tokens_per_second")
    return "" if not speed else f"{speed:.1f}" if speed < 100 else f"{speed:.0f}"


def failure_lines(name: str, failure: Mapping[str, Any] | None, tail: int = 5) -> list[str]:
    """Why a backend failed, what to do, and the last lines of its log."""
    if not failure:
        return []
    lines = [f"{name}: {failure.get('message')}"]
    if failure.get("hint"):
        lines.append(f"  hint: {failure['hint']}")
    log = failure.get("log_tail") or ()
    rows: Sequence[str] = log.splitlines() if isinstance(log, str) else list(log)
    if rows and tail:
        lines.append("  its log ends with:")
        lines += [f"    {row}" for row in rows[-tail:]]
    return lines


def backend_lines(backend: Mapping[str, Any], now: float) -> list[str]:
    """All that is known of one backend."""
    replicas = backend.get("replicas")
    pending = (replicas or {}).get("pending") or ""
    # What its tasks wait for is told on a line of its own.
    alone = {**backend, "replicas": None}
    pairs = [
        ("state", f"{_state(backend)} for {_since(backend, now)}"),
        ("now" if backend.get("phase") else "next", _progress(backend) or what_next(alone)),
        ("waits", (backend.get("waits") or {}).get("why") or ""),
        ("decided", _decided(backend.get("decision"), now)),
        ("runtime", f"{backend.get('runtime')}, engine {backend.get('engine')}"),
        ("container", backend.get("container") or ""),
        ("host", backend.get("host") or ""),
        ("service", backend.get("service") or ""),
        ("tasks", "" if not replicas else replicas_words(replicas)),
        ("pending", pending if pending != backend.get("reason") else ""),
        ("address", backend.get("address") or ""),
        ("reached by", backend.get("via") or ""),
        ("models", ", ".join(backend.get("models") or ())),
        ("needs", _needs(backend.get("needs"))),
        ("in flight", str(backend.get("in_flight", 0))),
        ("waiting", str(backend.get("waiting", 0))),
    ]
    start = backend.get("last_start")
    if start:
        phases = start.get("phases") or {}
        parts = ", ".join(f"{phase} {duration(took)}" for phase, took in phases.items())
        pairs.append(("last start", f"{duration(start['seconds'])}{f' ({parts})' if parts else ''}"))
    lines = [str(backend["name"])]
    lines += [f"  {name + ':':<{VALUES_AT - 3}} {value}" for name, value in pairs if value]
    return lines + failure_lines("  last failure", backend.get("last_failure"))


def _needs(needs: Mapping[str, Any] | None) -> str:
    if not needs or not needs.get("gpus"):
        return ""
    return f"{amount(needs['memory'])} of GPU {', '.join(needs['gpus'])} ({needs.get('why')})"


def _decided(decision: Mapping[str, Any] | None, now: float) -> str:
    if not decision:
        return ""
    return f"{decision['kind']} {duration(now - decision['at'])} ago: {decision['reason']}"


def amount(memory: float | int, unit: str = "") -> str:
    """GPU memory: bytes, or a fraction of a GPU.

    >>> amount(0.6), amount(16 * 2**30), amount(0, "bytes")
    ('0.60', '16.0 GiB', '0.0 GiB')
    """
    return f"{memory / 2**30:.1f} GiB" if memory > 1 or unit == "bytes" else f"{memory:.2f}"


def event_line(event: Mapping[str, Any], today: str | None = None) -> Text:
    """One transition, or one decision.

    :param today: as ``2026-11-26``; the date of an event of that day is not told.
    """
    when = datetime.fromtimestamp(float(event.get("at") or 0))
    at = when.strftime("%H:%M:%S" if today in (None, when.strftime("%Y-%m-%d")) else "%Y-%m-%d %H:%M:%S")
    line = Text.assemble((at, "dim"), " ", (str(event.get("backend")), "bold"), " ")
    new = str(event.get("to"))
    if event.get("decision") == "phase":
        line.append(str(event.get("from")))
    elif event.get("decision"):
        whom = f" for {event['for']}" if event.get("for") else ""
        line.append(f"decided: {event['decision']}{whom}")
    else:
        line.append(f"{event.get('from')} -> ").append(new, _COLOURS.get(new, ""))
    return line.append(f": {event['reason']}" if event.get("reason") else "")
