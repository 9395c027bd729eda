"""``llmproxy status``: what runs, once or as it changes."""

from __future__ import annotations

import re
import time
from textwrap import wrap
from typing import Any

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import command, say_json
from llmproxy.cli.completing import backend_names

__all__ = ["status"]

EVERY = 2.0


class _Watching(click.Command):
    """``--watch`` takes seconds or none; a backend's name behind it is a backend's name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        end = given.index("--") if "--" in given else len(given)
        for place, word in enumerate(given[:end]):
            seconds = given[place + 1] if place + 1 < end else ""
            if word in ("-w", "--watch") and not re.fullmatch(r"[0-9.]+", seconds):
                given[place] = f"--watch={EVERY:g}"
        return super().parse_args(ctx, given)


@click.command(cls=_Watching)
@click.argument("names", nargs=-1, metavar="[BACKEND]...", shell_complete=backend_names)
@click.option(
    "-w",
    "--watch",
    type=click.FloatRange(0.1, 3600.0),
    metavar="[SECONDS]",
    help=f"Show it again whenever it changes, and every so many seconds [{EVERY:g}]; Ctrl-C ends it.",
)
@command
def status(api: Api, names: tuple[str, ...], watch: float | None, *, as_json: bool) -> None:
    """Show all backends and leases, or all that is known of some backends.

    What does not fit the terminal is left out of the table: a wider one, or a pipe, shows all of it.

    \b
    Examples:
      llmproxy status                    all backends
      llmproxy status coder              all that is known of one
      llmproxy status --watch            all backends, again and again
      llmproxy status --json | jq -r '.backends[] | select(.state == "ready").name'
    """

    def look() -> dict[str, Any]:
        if names:
            return {"backends": [api.backend(name) for name in names]}
        return {"backends": api.backends(), "leases": api.leases(), "hosts": api.hosts()}

    def draw(found: dict[str, Any], width: int | None) -> list[Any]:
        return _in_full(found, width) if names else _in_brief(found, width)

    if watch is not None:
        from llmproxy.cli.watching import keep_watching

        keep_watching(api, look, None if as_json else draw, watch)
    elif as_json:
        say_json(look())
    else:
        found = look()
        from llmproxy.cli.terminal import console, print_lines, width_of

        out = console()
        print_lines(out, draw(found, width_of(out)))


def _in_full(found: dict[str, Any], width: int | None) -> list[Any]:
    """All that is known of some backends, as lines of rich's Text."""
    # rich takes a fifth of the time that the command takes; --json does without it.
    from rich.text import Text

    from llmproxy.cli.tasks_view import tasks_table
    from llmproxy.cli.view import VALUES_AT, backend_lines

    now = time.time()
    told: list[Text] = []
    for backend in found["backends"]:
        lines = backend_lines(backend, now)
        if width is not None:
            # What does not fit goes on below the values, not below their names.
            wrapped = [wrap(line, width, subsequent_indent=" " * VALUES_AT) for line in lines]
            lines = [part for parts in wrapped for part in parts]
        told += [*map(Text, lines), *tasks_table(backend.get("replicas"), width)]
    return told


def _in_brief(found: dict[str, Any], width: int | None) -> list[Any]:
    """A line for each backend, what failed or waits, and what is lent."""
    from rich.text import Text

    from llmproxy.cli.sharing_view import away_lines, lease_lines, wait_lines
    from llmproxy.cli.tasks_view import pending_lines
    from llmproxy.cli.view import backends_table, failure_lines

    now, backends = time.time(), found["backends"]
    told = [
        line
        for backend in backends
        if backend["state"] == "failed"
        for line in failure_lines(backend["name"], backend.get("last_failure"), tail=0)
    ]
    told += [
        *away_lines(found["hosts"]),
        *wait_lines(backends, now),
        *pending_lines(backends),
        *lease_lines(found["leases"], now),
    ]
    if not backends:
        told.insert(0, "No backends are configured: see llmproxy.example.yaml, or label a container.")
        return [Text(line) for line in told]
    return [*backends_table(backends, now, width), *(Text(line) for line in told)]
