"""``llmproxy``: look at a running proxy and steer it.

Exit status: 0 done; 1 it could not be done (the message says why); 2 wrong usage or configuration.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from rich.markup import escape

from llmproxy import __version__
from llmproxy.cli.client import Api, ApiError, connect
from llmproxy.cli.config_command import config
from llmproxy.cli.view import backend_lines, backends_table, console, duration, event_line, failure_lines

__all__ = ["cli", "main"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HELP = """Look at a running llmproxy and steer it.

The proxy is found by LLMPROXY_URL [http://127.0.0.1:8000] and asks for the key in LLMPROXY_ADMIN_KEY, or
VLLM_API_KEY; both are also read from ./.env.
"""


class Failed(click.ClickException):
    """The command could not do what it was asked: status 1."""

    def __init__(self, message: str, hint: str | None, as_json: bool, body: dict[str, Any]) -> None:
        super().__init__(message)
        self._hint = hint
        self._as_json = as_json
        self._body = body

    def show(self, file: Any = None) -> None:
        """Tell the error: on standard error for a person, on standard output for a program."""
        if self._as_json:
            click.echo(json.dumps({"error": self._body or {"message": self.message, "hint": self._hint}}))
            return
        click.echo(f"error: {self.message}", err=True)
        if self._hint:
            click.echo(f"hint: {self._hint}", err=True)


def _command(function: _Command) -> _Command:
    """Give a command its ``--json``, and turn what the API refuses into status 1."""

    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    @click.pass_context
    @functools.wraps(function)
    def run(context: click.Context, /, *args: Any, as_json: bool, **kwargs: Any) -> Any:
        as_json = as_json or bool(context.find_root().params.get("as_json"))
        try:
            api = connect(context.find_root().params.get("url"))
            return function(api, *args, as_json=as_json, **kwargs)
        except ApiError as wrong:
            raise Failed(str(wrong), wrong.hint, as_json, wrong.body) from None

    return run  # type: ignore[return-value]


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", metavar="URL", help="Where the proxy answers [LLMPROXY_URL].")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.version_option(__version__, prog_name="llmproxy")
def cli(url: str | None, as_json: bool) -> None:
    """The options of all commands; each reads them from the root context."""


def _say_json(value: object) -> None:
    click.echo(json.dumps(value))


@cli.command()
@click.argument("names", nargs=-1, metavar="[BACKEND]...")
@_command
def status(api: Api, names: tuple[str, ...], *, as_json: bool) -> None:
    """Show all backends, or all that is known of some."""
    found = [api.backend(name) for name in names] if names else api.backends()
    if as_json:
        _say_json({"backends": found})
        return
    now = time.time()
    if names:
        for backend in found:
            for line in backend_lines(backend, now):
                click.echo(line)
        return
    if not found:
        click.echo("No backends are configured: see llmproxy.example.yaml, or label a container.")
        return
    out = console()
    out.print(backends_table(found, now))
    for backend in found:
        if backend["state"] == "failed":
            for line in failure_lines(backend["name"], backend.get("last_failure"), tail=0):
                out.print(escape(line), soft_wrap=True)


def _finish(told: Iterable[tuple[dict[str, Any], str, bool]], *, as_json: bool) -> None:
    """Say what became of each backend, as soon as it is known; status 1 if one failed."""
    backends, failed = [], False
    for backend, line, well in told:
        backends.append(backend)
        failed = failed or not well
        if not as_json:
            click.echo(line, err=not well)
            if not well:
                for more in failure_lines(backend["name"], backend.get("last_failure"))[1:]:
                    click.echo(more, err=True)
    if as_json:
        _say_json({"backends": backends})
    if failed:
        sys.exit(1)


def _started(api: Api, name: str, verb: str, wait: bool) -> tuple[dict[str, Any], str, bool]:
    began = time.monotonic()
    before = api.backend(name)["state"] if verb == "start" else None
    backend = api.act(name, verb, wait=wait)
    state = backend["state"]
    took = duration(time.monotonic() - began)
    if not wait:
        return backend, f"{name}: {state}", True
    if state == "ready":
        done = "was ready already" if before == "ready" else f"ready after {took}"
        return backend, f"{name}: {done}", True
    why = (backend.get("last_failure") or {}).get("message") or "see llmproxy logs and events"
    return backend, f"{name}: {state} after {took}: {why}", False


_names = click.argument("names", nargs=-1, required=True, metavar="BACKEND...")
_no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")


@cli.command()
@_names
@_no_wait
@_command
def start(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Start backends, and wait until they are ready."""
    _finish((_started(api, name, "start", not no_wait) for name in names), as_json=as_json)


@cli.command()
@_names
@_no_wait
@_command
def restart(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Stop backends and start them again; also ends the pause after a failed start."""
    _finish((_started(api, name, "restart", not no_wait) for name in names), as_json=as_json)


@cli.command()
@_names
@_no_wait
@click.option("--force", is_flag=True, help="Do not let running answers finish.")
@_command
def stop(api: Api, names: tuple[str, ...], no_wait: bool, force: bool, *, as_json: bool) -> None:
    """Stop backends; requests that are being answered finish first."""

    def one(name: str) -> tuple[dict[str, Any], str, bool]:
        began = time.monotonic()
        before = api.backend(name)["state"]
        backend = api.act(name, "stop", wait=not no_wait, force=force)
        state = backend["state"]
        if no_wait:
            return backend, f"{name}: was {before}, now {state}", True
        if before in ("absent", "failed"):
            return backend, f"{name}: was not running ({before})", True
        took = duration(time.monotonic() - began)
        if state in ("absent", "failed"):
            return backend, f"{name}: was {before}, stopped after {took}", True
        return backend, f"{name}: was {before}, is {state} again after {took}: something asked for it", False

    _finish((one(name) for name in names), as_json=as_json)


@cli.command()
@click.argument("name", metavar="BACKEND")
@click.option("-n", "--tail", type=click.IntRange(0), default=100, show_default=True, help="Lines at first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines that come.")
@_command
def logs(api: Api, name: str, tail: int, follow: bool, *, as_json: bool) -> None:
    """Show a backend's output; with --json one object to a line."""
    try:
        for line in api.logs(name, tail, follow=follow):
            click.echo(json.dumps({"backend": name, "line": line}) if as_json else line)
    except KeyboardInterrupt:
        return  # the way to end --follow


@cli.command()
@_command
def events(api: Api, *, as_json: bool) -> None:
    """Show every change of state as it happens, and why; ends with Ctrl-C."""
    try:
        for event in api.events():
            click.echo(json.dumps(event) if as_json else event_line(event))
    except KeyboardInterrupt:
        return  # the way to end it


cli.add_command(config)


def main() -> None:
    """The ``llmproxy`` command."""
    cli(prog_name="llmproxy")
