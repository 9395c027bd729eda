"""``llmproxy``: look at a running proxy and steer it.

Exit status: 0 done; 1 it could not be done (the message says why); 2 wrong usage or configuration.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import click
from rich.markup import escape

from llmproxy import __version__
from llmproxy.cli.client import Api
from llmproxy.cli.command import command, say_json
from llmproxy.cli.config_command import config
from llmproxy.cli.scheduling import COMMANDS
from llmproxy.cli.sharing_view import lease_lines, wait_lines
from llmproxy.cli.view import backend_lines, backends_table, console, duration, event_line, failure_lines

__all__ = ["cli", "main"]

_HELP = """Look at a running llmproxy and steer it.

The proxy is found by LLMPROXY_URL [http://127.0.0.1:8000] and asks for the key in LLMPROXY_ADMIN_KEY, or
VLLM_API_KEY; both are also read from ./.env.
"""


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", metavar="URL", help="Where the proxy answers [LLMPROXY_URL].")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.version_option(__version__, prog_name="llmproxy")
def cli(url: str | None, as_json: bool) -> None:
    """The options of all commands; each reads them from the root context."""


@cli.command()
@click.argument("names", nargs=-1, metavar="[BACKEND]...")
@command
def status(api: Api, names: tuple[str, ...], *, as_json: bool) -> None:
    """Show all backends and leases, or all that is known of some backends."""
    found = [api.backend(name) for name in names] if names else api.backends()
    leases = [] if names else api.leases()
    if as_json:
        say_json({"backends": found} if names else {"backends": found, "leases": leases})
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
    for line in (*wait_lines(found, now), *lease_lines(leases, now)):
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
        say_json({"backends": backends})
    if failed:
        sys.exit(1)


def _started(api: Api, name: str, verb: str, wait: bool) -> tuple[dict[str, Any], str, bool]:
    began = time.monotonic()
    before = api.backend(name)["state"] if verb in ("start", "wake") else None
    backend = api.act(name, verb, wait=wait)
    state = backend["state"]
    took = duration(time.monotonic() - began)
    if not wait:
        waits = (backend.get("waits") or {}).get("why")
        return backend, f"{name}: {state}, waits: {waits}" if waits else f"{name}: {state}", True
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
@command
def start(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Start backends, and wait until they are ready."""
    _finish((_started(api, name, "start", not no_wait) for name in names), as_json=as_json)


@cli.command()
@_names
@_no_wait
@command
def restart(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Stop backends and start them again; also ends the pause after a failed start."""
    _finish((_started(api, name, "restart", not no_wait) for name in names), as_json=as_json)


@cli.command()
@_names
@_no_wait
@click.option("--force", is_flag=True, help="Do not let running answers finish.")
@command
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
@_names
@_no_wait
@command
def sleep(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Put backends to sleep: their GPU memory is free, and they wake in seconds.

    Requests that are being answered finish first. It takes vLLM with --enable-sleep-mode, and
    VLLM_SERVER_DEV_MODE=1 in its environment.

    \b
    Example: llmproxy sleep coder
    """
    _finish((_slept(api, name, not no_wait) for name in names), as_json=as_json)


def _slept(api: Api, name: str, wait: bool) -> tuple[dict[str, Any], str, bool]:
    began = time.monotonic()
    before = api.backend(name)["state"]
    backend = api.act(name, "sleep", wait=wait)
    state = backend["state"]
    if not wait:
        return backend, f"{name}: was {before}, now {state}", True
    if before == state == "sleeping":
        return backend, f"{name}: was asleep already", True
    took = duration(time.monotonic() - began)
    if state == "sleeping":
        return backend, f"{name}: was {before}, asleep at level {backend.get('level')} after {took}", True
    return backend, f"{name}: does not sleep, is {state} after {took}: see llmproxy why {name}", False


@cli.command()
@_names
@_no_wait
@command
def wake(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Wake sleeping backends, and wait until they are ready.

    \b
    Example: llmproxy wake coder
    """
    _finish((_started(api, name, "wake", not no_wait) for name in names), as_json=as_json)


@cli.command()
@click.argument("name", metavar="BACKEND")
@click.option("-n", "--tail", type=click.IntRange(0), default=100, show_default=True, help="Lines at first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines that come.")
@command
def logs(api: Api, name: str, tail: int, follow: bool, *, as_json: bool) -> None:
    """Show a backend's output; with --json one object to a line."""
    try:
        for line in api.logs(name, tail, follow=follow):
            click.echo(json.dumps({"backend": name, "line": line}) if as_json else line)
    except KeyboardInterrupt:
        return  # the way to end --follow


@cli.command()
@command
def events(api: Api, *, as_json: bool) -> None:
    """Show every change of state and every decision as it happens, and why; ends with Ctrl-C."""
    try:
        for event in api.events():
            click.echo(json.dumps(event) if as_json else event_line(event))
    except KeyboardInterrupt:
        return  # the way to end it


cli.add_command(config)
for _one in COMMANDS:
    cli.add_command(_one)


def main() -> None:
    """The ``llmproxy`` command."""
    cli(prog_name="llmproxy")
