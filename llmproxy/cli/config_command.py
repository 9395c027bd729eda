"""``llmproxy config``: what is in force and where it came from, with no proxy running."""

from __future__ import annotations

import click

__all__ = ["config"]


@click.command()
@click.option(
    "--config", "file", type=click.Path(dir_okay=False), metavar="FILE", help="The llmproxy.yaml to read."
)
@click.option("--check", is_flag=True, help="Only say whether it is right.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def config(context: click.Context, file: str | None, check: bool, as_json: bool) -> None:
    """Show the effective settings and where each came from."""
