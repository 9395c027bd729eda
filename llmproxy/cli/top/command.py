"""The command: what it needs before there is a screen, and what it says without one."""

from __future__ import annotations

import os
import sys

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import command, say_json
from llmproxy.cli.terminal import has_terminal
from llmproxy.cli.top.looking import look

__all__ = ["top"]


@click.command()
@click.option(
    "--every",
    type=click.FloatRange(0.2, 60.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look, beside whenever something changes.",
)
@command
def top(api: Api, every: float, *, as_json: bool) -> None:
    """Show backends, requests and GPUs on one screen, and steer them.

    The arrows select a backend: s starts it, x stops it, z puts it to sleep, w wakes it, l shows its output
    and Enter why it is as it is. q quits. With --json it shows all of it once.

    \b
    Examples:
      llmproxy top
      ssh -t gpu-box llmproxy top
    """
    # Before the screen: what is wrong now is told as by all other commands.
    first = look(api)
    if as_json:
        say_json(first.view())
        return
    if not has_terminal() or os.environ.get("TERM", "dumb") == "dumb":
        raise click.UsageError(
            "top needs a terminal (ssh -t); llmproxy top --json tells the same to a program."
        )
    from llmproxy.cli.top.app import TopApp

    app = TopApp(api, every, first)
    app.run()
    sys.exit(app.return_code or 0)
