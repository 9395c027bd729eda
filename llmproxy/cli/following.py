"""``llmproxy logs`` and ``llmproxy events``."""

from __future__ import annotations

import json
import time

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import command
from llmproxy.cli.completing import backend_names

__all__ = ["events", "logs"]


@click.command()
@click.argument("name", metavar="BACKEND", shell_complete=backend_names)
@click.option("-n", "--tail", type=click.IntRange(0), default=100, show_default=True, help="Lines at first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines that come; Ctrl-C ends it.")
@command
def logs(api: Api, name: str, tail: int, follow: bool, *, as_json: bool) -> None:
    """Show a backend's output; with --json one object to a line.

    \b
    Examples:
      llmproxy logs coder                the last 100 lines
      llmproxy logs -f -n 0 coder        only what comes, until it ends
    """
    said = False
    try:
        for line in api.logs(name, tail, follow=follow):
            said = True
            click.echo(json.dumps({"backend": name, "line": line}) if as_json else line)
    except KeyboardInterrupt:
        return  # the way to end --follow
    if not said and tail and not as_json:
        click.echo(f"There is no output of {name}: llmproxy status {name} tells whether it runs.", err=True)


@click.command()
@click.option("-n", "--tail", type=click.IntRange(0), help="At most so many of those that are remembered.")
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come; Ctrl-C ends it.")
@click.option(
    "-b",
    "--backend",
    metavar="BACKEND",
    shell_complete=backend_names,
    help="Only what is about that backend, or was decided for it.",
)
@command
def events(api: Api, tail: int | None, follow: bool, backend: str | None, *, as_json: bool) -> None:
    """Show each change of state and each decision, and why; with --json one object to a line.

    The proxy remembers the last 1000 since it was started.

    \b
    Examples:
      llmproxy events -n 20              the last 20
      llmproxy events -f                 all, and what comes
      llmproxy events -b coder           what happened to one backend, and for it
    """
    from llmproxy.cli.terminal import console
    from llmproxy.cli.view import event_line

    out, said = console(), False
    try:
        for event in api.events(tail=tail, follow=follow, backend=backend):
            said = True
            if as_json:
                click.echo(json.dumps(event))
            else:
                out.print(event_line(event, time.strftime("%Y-%m-%d")), soft_wrap=True)
    except KeyboardInterrupt:
        return  # the way to end --follow
    if not said and not as_json:
        click.echo("Nothing is remembered.", err=True)
