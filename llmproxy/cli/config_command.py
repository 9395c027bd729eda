"""``llmproxy config``: what is in force and where it came from, with no proxy running."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from llmproxy.cli.command import in_json, json_option, say_json
from llmproxy.cli.reading import config_option, loader_of, refusing
from llmproxy.cli.terminal import console
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, DockerSettings
from llmproxy.config.resolve import describe

__all__ = ["config"]

# Labels are wanted for the picture, but nobody should wait long for an engine that does not answer.
DOCKER_TIMEOUT = 5.0
# A value may be a whole command line. What is less wide than this would be no table any more.
_LEAST_VALUE = 16


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
@click.argument("place", required=False, metavar="[FILE]", type=click.Path(dir_okay=False))
@config_option
@click.option("--check", is_flag=True, help="Only say whether all is right: status 2 if it is not.")
@click.option("--changed", is_flag=True, help="Leave out what has its default.")
@click.option("--demo", is_flag=True, help="As with twistd llmproxy --demo.")
@click.option("--docker/--no-docker", default=True, help="Read the labels of containers.")
@json_option
@click.pass_context
def config(
    context: click.Context,
    place: str | None,
    file: str | None,
    check: bool,
    changed: bool,
    demo: bool,
    docker: bool,
    as_json: bool,
) -> None:
    """Show the settings in force and where each came from; no proxy needs to run.

    The environment is this one's and what ./.env adds to it, as with ``make run``. Secrets are not shown.

    \b
    Examples:
      llmproxy config --changed                   what was set, and where
      llmproxy config --check llmproxy.yaml       before it is put in place
    """
    if place and file and place != file:
        raise click.UsageError("Name one file.")
    as_json = in_json(context, as_json)
    with refusing(as_json):
        found, notes = _load(loader_of(place or file, demo=demo), docker and not demo)
    rows = [row for row in describe(found) if not changed or row[2] != "default"]
    if as_json:
        settings = {name: {"value": value, "source": source} for name, value, source in rows}
        say_json({"settings": {} if check else settings, "notes": notes, "ok": True})
        return
    if check:
        routes = ", ".join(f"/{route}" for route in found.backends) or "none"
        click.echo(f"The configuration is right. Routes: {routes}.")
    else:
        console().print(_table(rows))
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _table(rows: list[tuple[str, str, str]]) -> Table:
    """Values are whole: what is long goes on below itself."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("SETTING", overflow="fold")
    table.add_column("VALUE", overflow="fold", min_width=_LEAST_VALUE)
    table.add_column("SOURCE", overflow="fold")
    for name, value, source in rows:
        table.add_row(Text(name), Text(value), Text(source, style="dim" if source == "default" else "cyan"))
    return table
