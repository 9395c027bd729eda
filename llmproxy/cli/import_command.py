"""``llmproxy import``: another program's configuration as ``llmproxy.yaml``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llmproxy.cli.command import Failed, Misconfigured, in_json, json_option, say_json
from llmproxy.cli.terminal import console, print_lines
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError
from llmproxy.importing.llama_swap import Conversion, convert_llama_swap
from llmproxy.importing.writing import config_text

__all__ = ["import_group"]


@click.group(name="import")
def import_group() -> None:
    """Make llmproxy.yaml from another program's configuration.

    The launcher that llmproxy replaces needs none: its environment is understood as it is
    (docs/migration.md). Each takes --json.

    \b
    Example:
      llmproxy import llama-swap config.yaml -o llmproxy.yaml
    """


@import_group.command("llama-swap")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write there [standard output].")
@click.option("--force", is_flag=True, help="Take the place of a file that is there.")
@json_option
@click.pass_context
def llama_swap(context: click.Context, file: str, output: str | None, force: bool, as_json: bool) -> None:
    """Convert llama-swap's config.yaml.

    What has no counterpart, is not quite the same or should be looked at is told on standard error, and in
    the new file. ${env.NAME} stays a variable, and keys become digests: no secret is written.

    \b
    Examples:
      llmproxy import llama-swap config.yaml -o llmproxy.yaml
      llmproxy config --check llmproxy.yaml
    """
    as_json = in_json(context, as_json)
    try:
        found = convert_llama_swap(_text(file, as_json), file)
        text = config_text(found.document, os.path.basename(file), found.remarks)
        _prove(text, found)
    except ConfigError as wrong:
        raise Misconfigured(str(wrong), as_json=as_json) from None
    if output is not None:
        _write(output, text, force, as_json)
    missing = [name for name in found.variables if name not in os.environ]
    if as_json:
        say_json(_view(found, missing, output))
        return
    if output is None:
        sys.stdout.write(text)
    _tell(found, missing, output)


def _text(file: str, as_json: bool) -> str:
    try:
        with click.open_file(file, encoding="utf-8") as source:
            return str(source.read())
    except UnicodeDecodeError:
        raise Misconfigured(f"{file}: it is not UTF-8 text", as_json=as_json) from None
    except OSError as cause:
        raise Misconfigured(
            f"{file}: it cannot be read: {os.strerror(cause.errno or 0)}", as_json=as_json
        ) from None


def _prove(text: str, found: Conversion) -> None:
    """Read what was made as the proxy will, whatever the environment has then.

    :raises ConfigError: the proxy would refuse it.
    """
    environ = {**dict.fromkeys(found.variables, "set-later"), **os.environ, "HOME": os.path.expanduser("~")}
    # Two keys of one file may not have the same secret.
    environ.update({name: f"set-later-{name}" for name in found.variables})
    own = {
        name: value for name, value in environ.items() if not name.upper().startswith(("MAP__", "PREWARM"))
    }
    read_sources(Sources(own, text, "what was made"))


def _write(output: str, text: str, force: bool, as_json: bool) -> None:
    try:
        with open(output, "w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise Failed(
            f"{output} is there already", "Name another file, or say --force.", as_json=as_json
        ) from None
    except OSError as cause:
        raise Failed(
            f"{output} cannot be written: {os.strerror(cause.errno or 0)}", as_json=as_json
        ) from None


def _view(found: Conversion, missing: Sequence[str], output: str | None) -> dict[str, Any]:
    return {
        "config": found.document,
        "written": output,
        "remarks": [
            {"kind": one.kind, "where": one.where, "line": one.line, "why": one.why} for one in found.remarks
        ],
        "variables": list(found.variables),
        "missing_variables": list(missing),
    }


def _tell(found: Conversion, missing: Sequence[str], output: str | None) -> None:
    out = console(err=True)
    print_lines(out, [str(remark) for remark in found.remarks])
    if missing:
        print_lines(
            out, [f"check: the environment has no {', '.join(missing)} yet; llmproxy needs it to start"]
        )
    if output is not None:
        count = len(found.document["backends"])
        same = "nothing is lost" if not found.remarks else f"{len(found.remarks)} remarks, in the file too"
        check = f"llmproxy config --check {Path(output)}"
        print_lines(out, [f"{output}: {count} backend{'' if count == 1 else 's'}; {same}. Next: {check}"])
