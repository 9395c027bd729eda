"""How the command shows things to a person.  Pure: values in, text or tables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmproxy.fleet.telling import duration

__all__ = ["amount", "backend_lines", "backends_table", "console", "duration", "event_line", "failure_lines"]

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "waking": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "falling_asleep": "yellow",
    "sleeping": "cyan",
    "failed": "red",
}
# Wide enough that nothing is cut off when the output goes to a file or a pipe.
_PIPE_WIDTH = 240


def console() -> Console:
    """Standard output: coloured and as wide as the terminal, or plain and wide."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _next(backend: Mapping[str, Any]) -> str:
    if backend.get("retry_in") is not None:
        return f"retry in {duration(backend['retry_in'])}"
    if backend["state"] in ("starting", "waking") and backend.get("phase"):
        return _progress(backend)
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
    return told if eta is None else f"{told}, {duration(eta)} left"


def _state(backend: Mapping[str, Any]) -> str:
    level = backend.get("level")
    return str(backend["state"]) if level is None else f"{backend['state']} (level {level})"


def _since(backend: Mapping[str, Any], now: float) -> str:
    since = backend.get("since")
    return "" if since is None else duration(now - since)


def backends_table(backends: Iterable[Mapping[str, Any]], now: float) -> Table:
    """One line for each backend.

    :param now: POSIX seconds.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for name in ("BACKEND", "STATE", "FOR", "IN FLIGHT", "WAITING", "NEXT", "MODELS", "ADDRESS"):
        table.add_column(name, justify="right" if name in ("IN FLIGHT", "WAITING") else "left")
    for backend in backends:
        state = str(backend["state"])
        table.add_row(
            Text(str(backend["name"])),
            Text(_state(backend), style=_COLOURS.get(state, "")),
            Text(_since(backend, now)),
            str(backend.get("in_flight", 0)),
            str(backend.get("waiting", 0)),
            Text(_next(backend)),
            Text(", ".join(backend.get("models") or ())),
            Text(backend.get("address") or ""),
        )
    return table


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
    pairs = [
        ("state", f"{_state(backend)} for {_since(backend, now)}"),
        ("now" if backend.get("phase") else "next", _progress(backend) or _next(backend)),
        ("waits", (backend.get("waits") or {}).get("why") or ""),
        ("decided", _decided(backend.get("decision"), now)),
        ("runtime", f"{backend.get('runtime')}, engine {backend.get('engine')}"),
        ("container", backend.get("container") or ""),
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
    lines += [f"  {name + ':':<12} {value}" for name, value in pairs if value]
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


def event_line(event: Mapping[str, Any]) -> str:
    """One transition, or one decision."""
    at = datetime.fromtimestamp(float(event.get("at") or 0)).strftime("%H:%M:%S")
    reason = f": {event['reason']}" if event.get("reason") else ""
    if event.get("decision") == "phase":
        return f"{at} {event.get('backend')} {event.get('from')}{reason}"
    if event.get("decision"):
        whom = f" for {event['for']}" if event.get("for") else ""
        return f"{at} {event.get('backend')} decided: {event['decision']}{whom}{reason}"
    return f"{at} {event.get('backend')} {event.get('from')} -> {event.get('to')}{reason}"
