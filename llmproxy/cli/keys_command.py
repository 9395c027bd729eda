"""``llmproxy keys``: who may do what.  Read from the configuration; no proxy needs to run.

Further commands (``keys add``) belong into this group.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.cli.command import in_json, json_option, say_json
from llmproxy.cli.reading import config_option, loader_of, refusing
from llmproxy.cli.terminal import console, print_lines, width_of
from llmproxy.config.model import Config, Key
from llmproxy.words import duration

__all__ = ["keys"]

_LIMITS = (
    ("requests_per_minute", "requests/min"),
    ("tokens_per_minute", "tokens/min"),
    ("streams", "streams"),
)


@click.group(invoke_without_command=True)
@config_option
@json_option
@click.pass_context
def keys(context: click.Context, file: str | None, as_json: bool) -> None:
    """Show the API keys and what each may do.

    They are read from the configuration as the proxy reads it; no proxy needs to run. Secrets are not shown.

    \b
    Examples:
      llmproxy keys
      llmproxy keys --json | jq -r '.keys[] | select(.admin).name'
    """
    if context.invoked_subcommand is not None:
        return
    as_json = in_json(context, as_json)
    with refusing(as_json):
        # The keys of the running proxy: no route, and so no label of a container, has to do with them.
        found = loader_of(file).bare()
    now = time.time()
    if as_json:
        say_json({"keys": [_view(key, found, now) for key in found.keys]})
    elif not found.keys:
        click.echo(
            "No key is configured: whoever reaches the proxy may do everything, so it listens on loopback"
        )
        click.echo("only. Set VLLM_API_KEY, or keys in llmproxy.yaml (docs/configuration.md).")
    else:
        out = console()
        print_lines(out, _table(found, now, width_of(out)))


def _view(key: Key, config: Config, now: float) -> dict[str, Any]:
    """A key without its secret."""
    return {
        "name": key.name,
        "admin": key.admin,
        "client": key.client,
        "routes": None if key.routes is None else list(key.routes),
        "may_start": key.may_start,
        "may_evict": key.may_evict,
        "priority": key.priority,
        **{name: getattr(key, name) for name, _ in _LIMITS},
        "expires": key.expires,
        "expired": key.expires is not None and key.expires <= now,
        "source": config.sources.get(f"keys.{key.name}", "default"),
    }


def _table(config: Config, now: float, width: int | None) -> list[Text]:
    def cells(what: list[str]) -> list[Text]:
        return [Text(cell) for cell in what]

    keys = config.keys
    sources = [config.sources.get(f"keys.{key.name}", "default") for key in keys]
    columns = [
        Column("KEY", [Text(key.name, style="bold") for key in keys]),
        Column("RIGHTS", cells([_rights(key) for key in keys]), shorten=(4, 12)),
        Column("ROUTES", cells([_routes(key) for key in keys]), shorten=(2, 12), drop=6),
        Column("LIMITS", cells([_limits(key) for key in keys]), shorten=(1, 12), drop=5),
        Column("EXPIRES", [_expiry(key, now) for key in keys]),
        Column("SOURCE", [Text(source, style="dim") for source in sources], drop=0),
    ]
    return table(columns, width)


def _rights(key: Key) -> str:
    parts = [name for name, has in (("admin", key.admin), ("client", key.client)) if has]
    if key.client:
        parts += [told for told, may in (("no start", key.may_start), ("no evict", key.may_evict)) if not may]
    return ", ".join(parts) or "none"


def _routes(key: Key) -> str:
    if not key.client:
        return ""
    return "all" if key.routes is None else ", ".join(key.routes) or "none"


def _limits(key: Key) -> str:
    told = [f"{getattr(key, name):,} {unit}" for name, unit in _LIMITS if getattr(key, name) is not None]
    return ", ".join([*told, f"priority {key.priority}"] if key.priority else told)


def _expiry(key: Key, now: float) -> Text:
    if key.expires is None:
        return Text("never")
    day = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d")
    if key.expires <= now:
        return Text(f"expired {day}", style="red")
    left = key.expires - now
    return Text(f"{day} (in {duration(left)})", style="yellow" if left < 7 * 86400 else "")
