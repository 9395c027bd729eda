"""``llmproxy config``: what is in force and where it came from, with no proxy running."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import click
from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.cli.command import in_json, json_option, say_json
from llmproxy.cli.reading import config_option, loader_of, refusing
from llmproxy.cli.terminal import console, print_lines
from llmproxy.config.describe import describe
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, DockerSettings

__all__ = ["config", "settings_of"]

# Labels are wanted for the picture, but nobody should wait long for an engine that does not answer.
DOCKER_TIMEOUT = 5.0
# A value may be a whole command line. What is less wide than this would be no table any more.
_LEAST_VALUE = 16

_Row = tuple[str, str, str]


def _containers(settings: DockerSettings) -> tuple[list[LabelledContainer], str | None]:
    """The containers and services with llmproxy's labels, or why they could not be seen."""
    # The Docker SDK and Twisted take half a second to import, which the other commands should not cost.
    from llmproxy.runtimes.docker_catalogue import read_labelled_containers
    from llmproxy.runtimes.interface import RuntimeUnavailable
    from llmproxy.runtimes.swarm_later import read_service_labels

    found: list[LabelledContainer] = []
    try:
        found += read_labelled_containers(settings, DOCKER_TIMEOUT)
        found += read_service_labels(settings, DOCKER_TIMEOUT)
    except RuntimeUnavailable as away:
        return found, f"labels of containers are left out: {away}"
    return found, None


def settings_of(loader: Loader, docker: bool) -> tuple[Config, list[str]]:
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
        found, notes = settings_of(loader_of(place or file, demo=demo), docker and not demo)
    rows = [row for row in describe(found) if not changed or row[2] != "default"]
    if as_json:
        settings = {name: {"value": value, "source": source} for name, value, source in rows}
        say_json({"settings": {} if check else settings, "notes": notes, "ok": True})
        return
    if check:
        routes = ", ".join(f"/{route}" for route in found.backends) or "none"
        click.echo(f"The configuration is right. Routes: {routes}.")
    else:
        out = console()
        print_lines(out, _grouped(rows, out.width) if out.is_terminal else _flat(rows))
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _flat(rows: Sequence[_Row]) -> list[Text]:
    """A line for each setting, to be searched."""
    cells = [[Text(row[place]) for row in rows] for place in range(3)]
    titles = ("SETTING", "VALUE", "SOURCE")
    return table([Column(title, column) for title, column in zip(titles, cells, strict=True)], None)


def _grouped(rows: Sequence[_Row], width: int) -> list[Text]:
    """In groups, to be read: what is said of a backend below its name, long values below themselves."""
    shown = [(*_split(name), value, _short(source, name)) for name, value, source in rows]
    names = max((len(name) for _, name, _, _ in shown), default=0) + 2
    sources = min(max((len(source) for *_, source in shown), default=0), width // 3)
    values = max(width - names - sources - 4, _LEAST_VALUE)
    lines: list[Text] = []
    last = ""
    for group, name, value, source in shown:
        if group != last:
            lines += [Text(), Text(group, style="bold")]
            last = group
        indent = "  " if group else ""
        parts = zip_longest(_wrapped(value, values), _wrapped(source, sources), fillvalue="")
        for number, (part, where) in enumerate(parts):
            line = Text(f"{indent + name if number == 0 else '':<{names}}  {part:<{values}}  ")
            lines.append(line.append(where, "dim" if source == "default" else "cyan"))
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    # Not at hyphens: what is copied from here shall be a flag or a name as a whole.
    return wrap(text, width, break_on_hyphens=False) or [""]


def _split(name: str) -> tuple[str, str]:
    """Its group and its name there."""
    group, _, last = name.rpartition(".")
    return group, last


def _short(source: str, name: str) -> str:
    """A file where the setting stands under its own name need not say it."""
    return source.removesuffix(f" {name}")
