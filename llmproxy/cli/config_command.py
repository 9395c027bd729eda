"""``llmproxy config``: what is in force and where it came from, with no proxy running."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from llmproxy.cli.client import read_env_file
from llmproxy.cli.view import console
from llmproxy.config.compose import ComposeService, read_compose
from llmproxy.config.model import Config, DockerSettings
from llmproxy.config.resolve import CommandLine, LabelledContainer, Sources, describe, read_sources
from llmproxy.errors import ConfigError

__all__ = ["config", "gather"]

DEFAULT_FILE = "llmproxy.yaml"
# Labels are wanted for the picture, but nobody should wait long for an engine that does not answer.
DOCKER_TIMEOUT = 5.0


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else "it is not UTF-8"
        raise ConfigError(f"{what} {path}: {reason}") from None


def _services(file: str, environment: Mapping[str, str]) -> Sequence[ComposeService]:
    return read_compose(_text(Path(file), "compose file"), file, environment)


def _containers(settings: DockerSettings) -> tuple[list[LabelledContainer], str | None]:
    """The containers with llmproxy's labels, or why they could not be seen."""
    # The Docker SDK and Twisted take half a second to import, which the other commands should not cost.
    from llmproxy.runtimes.docker_catalogue import read_labelled_containers
    from llmproxy.runtimes.interface import RuntimeUnavailable

    try:
        found = read_labelled_containers(settings, DOCKER_TIMEOUT)
    except RuntimeUnavailable as away:
        return [], f"labels of containers are left out: {away}"
    return [LabelledContainer(container.name, container.labels) for container in found], None


def gather(
    file: str | None, environment: Mapping[str, str], *, docker: bool, demo: bool = False
) -> tuple[Config, tuple[str, ...]]:
    """Read all sources as the proxy does at its start, and give remarks on what could not be read.

    :param file: llmproxy.yaml; without one, the one in this folder, if there is one.
    :param docker: ask the Docker engine for labels.
    :raises llmproxy.errors.ConfigError: a setting is not allowed.
    """
    name = file or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None)
    text = None if name is None else _text(Path(name), "configuration file")
    options = CommandLine(demo=demo, python=sys.executable)

    def read(containers: Sequence[LabelledContainer] = (), services: Sequence[ComposeService] = ()) -> Config:
        return read_sources(
            Sources(
                environ=environment,
                file=text,
                file_name=name or DEFAULT_FILE,
                containers=containers,
                compose=services,
                options=options,
            )
        )

    # Where the engine and the compose file are is itself a setting.
    found = read()
    if demo:
        return found, found.notes
    services = _services(found.docker.compose_file, environment) if found.docker.compose_file else ()
    containers, remark = _containers(found.docker) if docker else ([], None)
    found = read(containers, services)
    return found, (*found.notes, *([remark] if remark else []))


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
        found, notes = gather(file, environment, docker=docker, demo=demo)
    except ConfigError as wrong:
        if as_json:
            click.echo(json.dumps({"error": {"message": str(wrong)}}))
        else:
            click.echo(f"error: {wrong}", err=True)
        context.exit(2)
    rows = describe(found)
    if as_json:
        settings = {name: {"value": value, "source": source} for name, value, source in rows}
        click.echo(json.dumps({"settings": {} if check else settings, "notes": list(notes), "ok": True}))
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
