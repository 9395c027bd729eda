"""How keys are shown.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.words import duration

__all__ = ["NO_KEYS", "keys_table"]

NO_KEYS = (
    "No key is configured: whoever reaches the proxy may do everything, so it listens on loopback only. Set "
    "VLLM_API_KEY, or keys in llmproxy.yaml (docs/configuration.md)."
)

_LIMITS = (
    ("requests_per_minute", "requests/min"),
    ("tokens_per_minute", "tokens/min"),
    ("streams", "streams"),
)
# An end that is nearer than this should be seen.
_SOON = 7 * 86400


def keys_table(keys: Sequence[Mapping[str, Any]], now: float, width: int | None) -> list[Text]:
    """A line for each key.

    :param now: POSIX seconds.
    :param width: how wide it may be; None: as wide as it is.
    """

    def cells(what: Iterable[str], style: str = "") -> list[Text]:
        return [Text(cell, style) for cell in what]

    columns = [
        Column("KEY", cells((str(key["name"]) for key in keys), "bold")),
        Column("RIGHTS", cells(map(_rights, keys)), shorten=(4, 12)),
        Column("ROUTES", cells(map(_routes, keys)), shorten=(2, 12), drop=6),
        Column("LIMITS", cells(map(_limits, keys)), shorten=(1, 12), drop=5),
        Column("EXPIRES", [_expiry(key, now) for key in keys]),
        Column("SOURCE", cells((str(key.get("source") or "") for key in keys), "dim"), drop=0),
    ]
    return table(columns, width)


def _rights(key: Mapping[str, Any]) -> str:
    parts = [name for name in ("admin", "client") if key.get(name)]
    if key.get("client"):
        parts += [f"no {right}" for right in ("start", "evict") if not key.get(f"may_{right}", True)]
    return ", ".join(parts) or "none"


def _routes(key: Mapping[str, Any]) -> str:
    if not key.get("client"):
        return ""
    routes = key.get("routes")
    return "all" if routes is None else ", ".join(routes) or "none"


def _limits(key: Mapping[str, Any]) -> str:
    left: Mapping[str, Any] = key.get("left") or {}
    told = []
    for name, unit in _LIMITS:
        if key.get(name) is not None:
            rest = f" ({left[name]:,} left)" if left.get(name) is not None else ""
            told.append(f"{key[name]:,} {unit}{rest}")
    return ", ".join([*told, f"priority {key['priority']}"] if key.get("priority") else told)


def _expiry(key: Mapping[str, Any], now: float) -> Text:
    expires = key.get("expires")
    if expires is None:
        return Text("never")
    day = datetime.fromtimestamp(float(expires), UTC).strftime("%Y-%m-%d")
    if expires <= now:
        return Text(f"expired {day}", "red")
    left = float(expires) - now
    return Text(f"{day} (in {duration(left)})", "yellow" if left < _SOON else "")
