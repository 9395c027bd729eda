"""``llmproxy upgrade``: the code that is installed by now takes over, and no request is lost."""

from __future__ import annotations

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import command, say_json
from llmproxy.words import duration

__all__ = ["upgrade"]


@click.command()
@command
def upgrade(api: Api, *, as_json: bool) -> None:
    """Have the proxy start anew, with the code and the settings that are there by now, and lose no request.

    A new process takes the sockets over and adopts the models. Who waits for a model goes on waiting, and
    running answers finish in the old process, for as long as `drain` says. When the new one does not come up
    the old one goes on as if nothing had happened. docs/operations.md tells what happens to whom.

    \b
    Example: pip install --upgrade llmproxy && llmproxy upgrade
    """
    done = api.upgrade()
    if as_json:
        say_json(done)
        return
    former = done["former"]
    count = former["in_flight"]
    finishes = f", and finishes {count} {'request' if count == 1 else 'requests'}" if count else ""
    click.echo(f"llmproxy {done['version']} serves (process {done['pid']}) after {duration(done['seconds'])}")
    click.echo(f"before it was {former['version']} (process {former['pid']}){finishes}")
