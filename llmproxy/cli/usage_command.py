"""``llmproxy usage``: who has used what."""

from __future__ import annotations

from typing import Any

import click

from llmproxy.cli.client import Api, ApiError
from llmproxy.cli.command import Failed, command, say_json

__all__ = ["usage"]

FIELDS = ("key", "backend", "day")


def _fields(context: click.Context, parameter: click.Parameter, said: tuple[str, ...]) -> str:
    """``--by key,day`` and ``--by key --by day`` as the API has it."""
    wanted = list(dict.fromkeys(name.strip() for each in said for name in each.split(",") if name.strip()))
    for name in wanted:
        if name not in FIELDS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(FIELDS)}.")
    if not wanted:
        raise click.BadParameter(f"it must be of {', '.join(FIELDS)}.")
    return ",".join(wanted)


@click.command()
@click.option(
    "--by",
    multiple=True,
    default=("key",),
    show_default="key",
    metavar="FIELD",
    callback=_fields,
    help="key, backend or day; several with commas between them.",
)
@click.option(
    "--since", metavar="TIME", help="From then on: 7d, 12h, 2026-11-01.  [default: 7d]", default="7d"
)
@click.option("--until", metavar="TIME", help="Until then.")
@click.option("--csv", "as_csv", is_flag=True, help="Answer in CSV.")
@command
def usage(api: Api, by: str, since: str, until: str | None, as_csv: bool, *, as_json: bool) -> None:
    """Show requests, tokens and GPU time by key, backend or day.

    GPU time is what a model claims of its GPUs times how long it has them, charged to those who use it
    meanwhile; tokens that an answer did not tell are counted as they pass, and told as estimated.

    \b
    Examples:
      llmproxy usage                                 by key, of the last 7 days
      llmproxy usage --by backend,day --since 30d
      llmproxy usage --by key --csv > usage.csv
    """
    if as_csv and as_json:
        raise click.UsageError("Say --csv or --json.")
    try:
        if as_csv:
            click.echo(api.usage_csv(by, since, until), nl=False)
            return
        found = api.usage(by, since, until)
    except ApiError as wrong:
        raise _told(wrong, as_json) from None
    if as_json:
        say_json(found)
        return
    rows: list[dict[str, Any]] = found.get("rows") or []
    if not rows:
        click.echo("Nothing was used in that time.")
        return
    from llmproxy.cli.terminal import console, print_lines, width_of
    from llmproxy.cli.usage_view import usage_table

    out = console()
    print_lines(out, usage_table(found.get("by") or by.split(","), rows, width_of(out)))


def _told(wrong: ApiError, as_json: bool) -> Exception:
    if wrong.code == "invalid_request":
        return click.UsageError(str(wrong))
    if wrong.status == 404:
        message, hint = "This llmproxy does not record usage.", "Update the proxy."
        return Failed(message, hint, as_json=as_json, body=wrong.view())
    return wrong
