"""The configuration as the commands read it that need no running proxy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from llmproxy.cli.client import read_env_file
from llmproxy.cli.command import Misconfigured
from llmproxy.config.loader import Loader
from llmproxy.config.resolve import CommandLine
from llmproxy.engines.redaction import redact, secret_values
from llmproxy.errors import ConfigError

__all__ = ["config_option", "loader_of", "refusing"]

config_option = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="llmproxy.yaml; else LLMPROXY_CONFIG, ./llmproxy.yaml, /etc/llmproxy/llmproxy.yaml.",
)


def loader_of(file: str | None, *, demo: bool = False) -> Loader:
    """What reads it: the environment is this one's and what ./.env adds to it, as with ``make run``."""
    environment = {**read_env_file(Path(".env")), **os.environ}
    return Loader(environment, CommandLine(demo=demo, python=sys.executable), file)


@contextmanager
def refusing(as_json: bool) -> Iterator[None]:
    """Tell of a setting that is not allowed in one line, with status 2."""
    try:
        yield
    except ConfigError as wrong:
        # The value that is not allowed may have come from a variable that holds a secret.
        hidden = redact(str(wrong), secret_values({**read_env_file(Path(".env")), **os.environ}))
        raise Misconfigured(hidden, as_json=as_json) from None
