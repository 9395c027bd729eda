"""``llmproxy keys add``, ``rotate`` and ``revoke``: keys that the proxy gives out."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import Failed, command, in_json, json_option, say_json
from llmproxy.cli.keys_command import keys

__all__ = ["add", "keys", "revoke", "rotate"]

_ONCE = "It is shown this once, and kept nowhere: put it where it belongs now."


def _rights(**said: Any) -> dict[str, Any]:
    """What was said of a key, as the API and the configuration write it."""
    flags = {"client": not said.pop("no_client"), "may_start": not said.pop("no_start")}
    flags["may_evict"] = not said.pop("no_evict")
    told: dict[str, Any] = {"admin": True} if said.pop("admin") else {}
    told.update({name: False for name, value in flags.items() if not value})
    routes = [route.strip() for each in said.pop("routes") for route in each.split(",") if route.strip()]
    if routes:
        told["routes"] = routes
    told.update({name: value for name, value in said.items() if value is not None})
    return told


@keys.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="It may use the admin API and the dashboard.")
@click.option("--no-client", is_flag=True, help="It may use no models: for administration alone.")
@click.option(
    "--route", "routes", multiple=True, metavar="ROUTE", help="A route that it may use.  [default: all]"
)
@click.option("--no-start", is_flag=True, help="Its requests start no model.")
@click.option("--no-evict", is_flag=True, help="Its requests have no other model leave.")
@click.option("--priority", type=int, help="More waits less.")
@click.option("--requests-per-minute", type=click.IntRange(1), metavar="N")
@click.option("--tokens-per-minute", type=click.IntRange(1), metavar="N")
@click.option("--streams", type=click.IntRange(1), metavar="N", help="Streams at once.")
@click.option("--expires", metavar="WHEN", help="A day such as 2027-01-31, or a time such as 90d.")
@click.option("--offline", is_flag=True, help="Ask no proxy: print what llmproxy.yaml needs.")
@json_option
@click.pass_context
def add(context: click.Context, /, name: str, offline: bool, as_json: bool, **said: Any) -> None:
    """Give out a new key, and print its secret once.

    The proxy keeps its digest only, in its state folder, and the key counts at once. With --offline the entry
    for llmproxy.yaml is printed instead.

    \b
    Examples:
      llmproxy keys add website --route chat --no-evict --requests-per-minute 60
      llmproxy keys add laptop --expires 90d
      llmproxy keys add ci --route coder --offline
    """
    rights = _rights(**said)
    if offline:
        _offline(name, rights, as_json=in_json(context, as_json))
    else:
        context.invoke(_online, name=name, rights=rights, as_json=as_json)


@click.command()
@command
def _online(api: Api, name: str, rights: dict[str, Any], *, as_json: bool) -> None:
    given = api.add_key({"name": name, **rights})
    _told(given, as_json=as_json)


def _offline(name: str, rights: dict[str, Any], *, as_json: bool) -> None:
    import yaml

    from llmproxy.config.keys import read_key, told_hash
    from llmproxy.config.model import digest_of
    from llmproxy.config.units import duration
    from llmproxy.errors import ConfigError
    from llmproxy.keys.store import mint

    try:
        ahead = duration(rights.get("expires"))
    except ValueError:
        pass
    else:
        rights["expires"] = datetime.fromtimestamp(time.time() + ahead, UTC).strftime("%Y-%m-%d")
    secret = mint()
    entry = {"name": name, "hash": told_hash(digest_of(secret)), **rights}
    try:
        read_key("The key", entry, {})
    except ConfigError as wrong:
        raise click.UsageError(f"{wrong}.") from None
    if as_json:
        say_json({**entry, "secret": secret})
        return
    click.echo(secret)
    click.echo(f"{_ONCE} In llmproxy.yaml:", err=True)
    click.echo(yaml.safe_dump({"keys": [entry]}, sort_keys=False, width=200), err=True, nl=False)


@keys.command()
@click.argument("name")
@click.option(
    "--overlap", metavar="TIME", help="How long the old secret goes on: 24h, 7d, 0.  [default: 24h]"
)
@command
def rotate(api: Api, name: str, overlap: str | None, *, as_json: bool) -> None:
    """Give a key a new secret, and print it once; the old one goes on for a while.

    Keys of the configuration are changed there: `previous` has the old secret until a day.

    \b
    Examples:
      llmproxy keys rotate website
      llmproxy keys rotate website --overlap 0     # somebody else knows it
    """
    _told(api.rotate_key(name, overlap), as_json=as_json)


@keys.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@command
def revoke(api: Api, names: tuple[str, ...], *, as_json: bool) -> None:
    """Refuse keys from now on; answers that are on their way finish."""
    revoked = []
    for name in names:
        revoked.append(api.revoke_key(name)["name"])
        if not as_json:
            click.echo(f"{name}: revoked")
    if as_json:
        say_json({"revoked": revoked})


def _told(given: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(given)
        return
    if "secret" not in given:
        raise Failed("The proxy did not tell the secret.", "Look at its log.")
    # By itself, so that it can be piped to where it belongs.
    click.echo(given["secret"])
    click.echo(f"The key {given['name']!r} counts from now on. {_ONCE}", err=True)
    if given.get("former_until"):
        until = datetime.fromtimestamp(given["former_until"]).strftime("%Y-%m-%d %H:%M")
        click.echo(f"Its old secret goes on until {until}.", err=True)
