"""``llmproxy config``: what is in force and where it came from, with no proxy running."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from llmproxy.cli.client import read_env_file
from llmproxy.cli.view import console
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, DockerSettings
from llmproxy.config.resolve import CommandLine, describe
from llmproxy.errors import ConfigError

__all__ = ["config"]

# Labels are wanted for the picture, but nobody should wait long for an engine that does not answer.
DOCKER_TIMEOUT = 5.0


def _containers(settings: DockerSettings) -> tuple[list[LabelledContainer], str | None]:
    """The containers with llmproxy's labels, or why they could not be seen."""
    # The Docker SDK and Twisted take half a second to import, which the other commands should not cost.
    from llmproxy.runtimes.docker_catalogue import read_labelled_containers
    from llmproxy.runtimes.interface import RuntimeUnavailable

    try:
        return read_labelled_containers(settings, DOCKER_TIMEOUT), None
    except RuntimeUnavailable as away:
        return [], f"labels of containers are left out: {away}"


def _load(loader: Loader, docker: bool) -> tuple[Config, list[str]]:
    """Everything as the proxy reads it when it starts, and remarks on it.

    :raises llmproxy.errors.ConfigError: a setting is not allowed.
    """
    containers, remark = _containers(loader.docker_settings()) if docker else ([], None)
    found = loader.load(containers)
    return found, [*found.notes, *([remark] if remark else [])]


@click.command()
@click.option("--config", "file", type=click.Path(dir_okay=False), metavar="FILE", help="llmproxy.yaml.")
@click.option("--check", is_flag=True, help="Only say whether all is right.")
@click.option("--demo", is_flag=True, help="As with twistd llmproxy --demo.")
@click.option("--docker/--no-docker", default=True, help="Read the labels of containers.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def config(
    context: click.Context, file: str | None, check: bool, demo: bool, docker: bool, as_json: bool
) -> None:
    """Show the settings in force and where each came from; no proxy needs to run.

    The environment is this one's and what ./.env adds to it, as with ``make run``. Secrets are not shown.
    """
    as_json = as_json or bool(context.find_root().params.get("as_json"))
    environment = {**read_env_file(Path(".env")), **os.environ}
    try:
        loader = Loader(environment, CommandLine(demo=demo, python=sys.executable), file)
        found, notes = _load(loader, docker and not demo)
    except ConfigError as wrong:
        if as_json:
            click.echo(json.dumps({"error": {"message": str(wrong)}}))
        else:
            click.echo(f"error: {wrong}", err=True)
        context.exit(2)
    rows = describe(found)
    if as_json:
        settings = {name: {"value": value, "source": source} for name, value, source in rows}
        click.echo(json.dumps({"settings": {} if check else settings, "notes": notes, "ok": True}))
        return
    if check:
        routes = ", ".join(f"/{route}" for route in found.backends) or "none"
        click.echo(f"The configuration is right. Routes: {routes}.")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for heading in ("SETTING", "VALUE", "SOURCE"):
            table.add_column(heading, overflow="fold")
        for name, value, source in rows:
            table.add_row(Text(name), Text(value), Text(source, style="dim" if source == "default" else ""))
        console().print(table)
    for note in notes:
        click.echo(f"note: {note}", err=True)
