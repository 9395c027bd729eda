"""What the screen looks like, as lines.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, shorten, table
from llmproxy.cli.top.looking import Seen
from llmproxy.cli.view import amount
from llmproxy.words import duration

__all__ = ["gpu_lines", "request_lines", "summary"]

_Part = tuple[str, str]

_BAR = 24
_OUTCOMES = {"ok": "dim", "client_gone": "dim", "refused": "yellow", "backend_died": "red", "error": "red"}


def summary(seen: Seen, base: str, clock: str, width: int) -> Text:
    """The first line: where, when, and how much of everything."""
    backends = seen.backends
    ready = sum(backend["state"] == "ready" for backend in backends)
    flying, waiting = (sum(int(b.get(name) or 0) for b in backends) for name in ("in_flight", "waiting"))
    speed = sum(float(backend.get("tokens_per_second") or 0) for backend in backends)
    counts: list[_Part] = [
        (f"  {ready} of {len(backends)} ready", ""),
        (f"  {flying} in flight", "green" if flying else "dim"),
        (f"  {waiting} waiting", "yellow" if waiting else "dim"),
    ]
    if any(backend.get("tokens_per_second") is not None for backend in backends):
        counts.append((f"  {speed:.0f} tokens/s", "green" if speed else "dim"))
    name: _Part = ("llmproxy", "bold")
    # Where and when are known best: they are left out first.
    for more in ((name, (f" {base}", ""), (f"  {clock}", "dim")), (name, (f"  {clock}", "dim")), (name,)):
        line = Text.assemble(*more, *counts)
        if line.cell_len <= width:
            break
    return shorten(line, width)


def gpu_lines(seen: Seen, width: int) -> list[Text]:
    """A line for each GPU: how much of it is claimed, and by whom; then what is lent."""
    lines = [shorten(_gpu(gpu), width) for gpu in seen.gpus]
    for lease in seen.leases:
        note = f" ({lease['note']})" if lease.get("note") else ""
        state = f"{duration(lease['until'] - seen.at)} left" if lease["held"] else "waits for its memory"
        told = f"{lease['id']}: {amount(lease['memory'])} of GPU {lease['gpu']}{note}, {state}"
        lines.append(shorten(Text(told, "cyan"), width))
    return lines


def _gpu(gpu: Mapping[str, Any]) -> Text:
    unit, room = gpu["unit"], max(gpu["total"] - (gpu.get("reserve") or 0), 0)
    claimed, lent = gpu.get("claimed") or 0, gpu.get("lent") or 0
    ours = min(round(_BAR * claimed / room), _BAR) if room else 0
    theirs = min(round(_BAR * lent / room), _BAR - ours) if room else 0
    whole = amount(room, unit)
    line = Text.assemble(
        (f"GPU {gpu['gpu']} ", "bold"),
        ("\u2501" * ours, "green"),
        ("\u2501" * theirs, "cyan"),
        ("\u2501" * (_BAR - ours - theirs), "bright_black"),
        f" {amount(claimed + lent, unit)} of {whole}",
    )
    who = [f"{claim['name']} {amount(claim['memory'], unit)}" for claim in gpu.get("claims") or ()]
    if gpu.get("measured"):
        who.append(f"measured free {amount(gpu['measured']['free'], 'bytes')}")
    return line.append(f"  {', '.join(who)}", "dim") if who else line


def request_lines(seen: Seen, width: int) -> list[Text]:
    """Requests that are open, the newest first, and then those that are over, below a line of headings."""
    if seen.requests is None:
        return [Text("This proxy does not tell of requests.", "dim")]
    opened = list(seen.requests.get("open") or ())
    finished = list(seen.requests.get("finished") or ())
    if not opened and not finished:
        return [Text("No requests yet.", "dim")]
    rows = [*map(_open, opened), *map(_finished, finished)]
    columns = [
        Column("REQUEST", _cells(rows, "state"), shorten=(9, 8)),
        Column("BACKEND", _cells(rows, "backend"), drop=10),
        Column("PATH", _cells(rows, "path"), shorten=(4, 14), drop=7),
        Column("KEY", _cells(rows, "key"), drop=5),
        Column("CLIENT", _cells(rows, "client"), drop=0),
        Column("HELD", _cells(rows, "held"), right=True, drop=2),
        Column("1ST BYTE", _cells(rows, "first_byte"), right=True, drop=3),
        Column("TIME", _cells(rows, "time"), right=True, drop=8),
        Column("TOKENS", _cells(rows, "tokens"), right=True, drop=6),
        Column("TOK/S", _cells(rows, "speed"), right=True, drop=1),
    ]
    return table(columns, width, wide=2)


def _cells(rows: Sequence[Mapping[str, Text]], name: str) -> list[Text]:
    return [row[name] for row in rows]


def _seconds(value: Any) -> str:
    return "" if value is None else duration(float(value))


def _row(request: Mapping[str, Any], state: Text, time: Any, style: str) -> dict[str, Text]:
    tokens = request.get("completion_tokens", request.get("tokens"))
    speed = request.get("tokens_per_second")
    told = {
        "backend": str(request.get("backend") or "-"),
        "path": str(request.get("path") or ""),
        "key": str(request.get("key") or "-"),
        "client": str(request.get("client") or ""),
        "held": _seconds(request.get("held")),
        "first_byte": _seconds(request.get("first_byte")),
        "time": _seconds(time),
        "tokens": "" if tokens is None else str(tokens),
        "speed": "" if speed is None else f"{float(speed):.1f}",
    }
    return {"state": state, **{name: Text(value, style) for name, value in told.items()}}


def _open(request: Mapping[str, Any]) -> dict[str, Text]:
    waits = request.get("state") == "waiting"
    state = Text("waiting", "yellow") if waits else Text("in flight", "green")
    return _row(request, state, request.get("age"), "")


def _finished(request: Mapping[str, Any]) -> dict[str, Text]:
    outcome = str(request.get("outcome") or "")
    state = Text(f"{request.get('status')} {outcome}", _OUTCOMES.get(outcome, "dim"))
    return _row(request, state, request.get("seconds"), "dim")
