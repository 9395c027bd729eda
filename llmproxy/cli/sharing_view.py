"""How the command shows what models share: GPUs, leases, plans and advice.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from llmproxy.cli.view import amount
from llmproxy.fleet.telling import duration

__all__ = ["advice_lines", "gpu_table", "lease_lines", "leases_table", "wait_lines"]


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for name in names:
        table.add_column(name)
    return table


def wait_lines(backends: Iterable[Mapping[str, Any]], now: float) -> list[str]:
    """What each backend that waits for room waits for."""
    lines = []
    for backend in backends:
        waits = backend.get("waits")
        if waits:
            since = waits.get("since")
            for_long = "" if since is None else f" for {duration(now - since)}"
            lines.append(f"{backend['name']} waits{for_long}: {waits['why']}")
    return lines


def _what(lease: Mapping[str, Any]) -> str:
    note = f" ({lease['note']})" if lease.get("note") else ""
    return f"{amount(lease['memory'])} of GPU {lease['gpu']}{note}"


def lease_lines(leases: Iterable[Mapping[str, Any]], now: float) -> list[str]:
    """Leases in words."""
    return [f"{lease['id']}: {_what(lease)}, {_how(lease, now)}" for lease in leases]


def _how(lease: Mapping[str, Any], now: float) -> str:
    left = f"{duration(lease['until'] - now)} left"
    if lease["held"]:
        return f"held, {left}"
    why = (lease.get("waits") or {}).get("why") or "for its memory"
    return f"waits {why}, {left}"


def leases_table(leases: Iterable[Mapping[str, Any]], now: float) -> Table:
    """One line for each lease.

    :param now: POSIX seconds.
    """
    table = _table("LEASE", "GPU", "MEMORY", "STATE", "LEFT", "NOTE")
    for lease in leases:
        waits = (lease.get("waits") or {}).get("why") or "waits"
        table.add_row(
            Text(lease["id"]),
            Text(lease["gpu"]),
            amount(lease["memory"]),
            Text("held") if lease["held"] else Text(waits, style="yellow"),
            duration(lease["until"] - now),
            Text(lease.get("note") or ""),
        )
    return table


def gpu_table(gpus: Iterable[Mapping[str, Any]]) -> Table:
    """One line for each GPU."""
    table = _table("GPU", "TOTAL", "RESERVE", "LENT", "CLAIMED", "UNCLAIMED", "MEASURED FREE", "BY")
    for gpu in gpus:
        measured, unit = gpu.get("measured"), gpu["unit"]
        who = [f"{claim['name']} {amount(claim['memory'], unit)}" for claim in gpu.get("claims") or ()]
        table.add_row(
            Text(gpu["gpu"]),
            *(amount(gpu[name], unit) for name in ("total", "reserve", "lent", "claimed", "unclaimed")),
            amount(measured["free"], "bytes") if measured else "",
            Text(", ".join([*who, *(gpu.get("leases") or ())])),
        )
    return table


def advice_lines(found: Mapping[str, Any]) -> list[str]:
    """Recommendations, or why there are none."""
    advice: Sequence[Mapping[str, Any]] = found.get("advice") or ()
    if not advice:
        return [str(found.get("told") or "There is no advice.")]
    return [f"{one['told']} (saves {duration(one['gain'])} of waiting a day)" for one in advice]
