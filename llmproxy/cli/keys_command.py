"""``llmproxy keys``: who may do what; what is done to keys is in :mod:`llmproxy.cli.keys_given`."""

from __future__ import annotations

import time
from typing import Any

import click

from llmproxy.cli.client import ApiError, connect
from llmproxy.cli.command import Failed, in_json, json_option, say_json
from llmproxy.cli.keys_view import NO_KEYS, keys_table
from llmproxy.cli.reading import config_option, loader_of, refusing
from llmproxy.cli.terminal import console, print_lines, width_of
from llmproxy.config.keys import rights_view
from llmproxy.config.model import Config, Key

__all__ = ["keys", "keys_table"]


@click.group(invoke_without_command=True)
@config_option
@json_option
@click.pass_context
def keys(context: click.Context, file: str | None, as_json: bool) -> None:
    """Show the API keys and what each may do.

    They are those of the running proxy. With --config, or while it is away, those of the configuration, as it
    would read it. Secrets are not shown.

    \b
    Examples:
      llmproxy keys
      llmproxy keys --config llmproxy.yaml
      llmproxy keys --json | jq -r '.keys[] | select(.admin).name'
    """
    if context.invoked_subcommand is not None:
        return
    as_json = in_json(context, as_json)
    found, note = (_configured(file, as_json), "") if file else _in_force(context, as_json)
    if as_json:
        say_json({"keys": found})
        return
    out = console()
    print_lines(out, keys_table(found, time.time(), width_of(out)) if found else [NO_KEYS])
    if note:
        click.echo(f"note: {note}", err=True)


def _in_force(context: click.Context, as_json: bool) -> tuple[list[dict[str, Any]], str]:
    """The running proxy's keys, and a note when they are not."""
    try:
        return connect(context.find_root().params.get("url")).keys(), ""
    except ApiError as wrong:
        # It is away, or older than its list of keys; what else is wrong is to be told.
        if wrong.status not in (None, 404):
            raise Failed(str(wrong), wrong.hint, as_json=as_json, body=wrong.view()) from None
        return _configured(None, as_json), f"these are the keys of the configuration: {wrong}"


def _configured(file: str | None, as_json: bool) -> list[dict[str, Any]]:
    with refusing(as_json):
        # No route, and so no label of a container, has to do with them.
        found = loader_of(file).bare()
    now = time.time()
    return [_view(key, found, now) for key in found.keys]


def _view(key: Key, config: Config, now: float) -> dict[str, Any]:
    """A key without its secret, as the proxy tells of it."""
    return {
        "name": key.name,
        **rights_view(key),
        "expired": key.expires is not None and key.expires <= now,
        "source": config.sources.get(f"keys.{key.name}", "default"),
    }
