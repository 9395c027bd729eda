"""How the command shows what models share: GPUs, leases, plans and advice.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.cli.view import amount
from llmproxy.words import duration

__all__ = [
    "advice_lines",
    "away_lines",
    "gpu_table",
    "hosts_table",
    "lease_lines",
    "leases_table",
    "wait_lines",
]


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


def _cells(what: Iterable[str], style: str = "") -> list[Text]:
    return [Text(each, style=style) for each in what]


def leases_table(leases: Sequence[Mapping[str, Any]], now: float, width: int | None) -> list[Text]:
    """A line for each lease.

    :param now: POSIX seconds.
    :param width: how wide it may be; None: as wide as it is.
    """
    waits = [
        Text("held") if lease["held"] else Text((lease.get("waits") or {}).get("why") or "waits", "yellow")
        for lease in leases
    ]
    return table(
        [
            Column("LEASE", _cells((lease["id"] for lease in leases), "bold")),
            Column("GPU", _cells(lease["gpu"] for lease in leases)),
            Column("MEMORY", _cells(amount(lease["memory"]) for lease in leases), right=True),
            Column("STATE", waits, shorten=(2, 20)),
            Column("LEFT", _cells(duration(lease["until"] - now) for lease in leases)),
            Column("NOTE", _cells(lease.get("note") or "" for lease in leases), shorten=(0, 12), drop=1),
        ],
        width,
    )


_SUMS = ("total", "reserve", "lent", "claimed", "unclaimed")


def gpu_table(gpus: Sequence[Mapping[str, Any]], width: int | None) -> list[Text]:
    """A line for each GPU."""
    sums = {
        name: _cells(amount(gpu[name], gpu["unit"]) if gpu[name] is not None else "" for gpu in gpus)
        for name in _SUMS
    }
    free = _cells(amount(gpu["measured"]["free"], "bytes") if gpu.get("measured") else "" for gpu in gpus)
    who = [
        ", ".join(
            [
                *(
                    f"{claim['name']} {amount(claim['memory'], gpu['unit'])}"
                    for claim in gpu.get("claims") or ()
                ),
                *(gpu.get("leases") or ()),
            ]
        )
        for gpu in gpus
    ]
    return table(
        [
            Column("GPU", _cells((gpu["gpu"] for gpu in gpus), "bold")),
            Column("TOTAL", sums["total"], right=True, drop=5),
            Column("RESERVE", sums["reserve"], right=True, drop=2),
            Column("LENT", sums["lent"], right=True, drop=3),
            Column("CLAIMED", sums["claimed"], right=True, drop=4),
            Column("UNCLAIMED", sums["unclaimed"], right=True, brief=(0, "LEFT")),
            Column("MEASURED FREE", free, right=True, brief=(0, "MEASURED"), drop=1),
            Column("BY", _cells(who), shorten=(6, 12)),
        ],
        width,
    )


def away_lines(hosts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which hosts are away, and why."""
    return [
        f"host {host['name']} is away: {host['away']}" for host in hosts if host["away"] and host["expected"]
    ]


def hosts_table(hosts: Sequence[Mapping[str, Any]], width: int | None) -> list[Text]:
    """A line for each host."""

    def state(host: Mapping[str, Any]) -> Text:
        if not host["away"]:
            return Text("there", style="green")
        return Text("away" if host["expected"] else "not used", style="red" if host["expected"] else "dim")

    return table(
        [
            Column("HOST", _cells((host["name"] for host in hosts), "bold")),
            Column("STATE", [state(host) for host in hosts]),
            Column("ENGINE", _cells(host["engine"] for host in hosts), drop=1),
            Column("GPUS", _cells(", ".join(host["gpus"]) for host in hosts), drop=2),
            Column("BACKENDS", _cells(", ".join(host["backends"]) for host in hosts), shorten=(0, 12)),
        ],
        width,
    )


def advice_lines(found: Mapping[str, Any]) -> list[str]:
    """Recommendations, or why there are none."""
    advice: Sequence[Mapping[str, Any]] = found.get("advice") or ()
    if not advice:
        return [str(found.get("told") or "There is no advice.")]
    return [f"{one['told']} (saves {duration(one['gain'])} of waiting a day)" for one in advice]
