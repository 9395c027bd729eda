"""``llmproxy start``, ``stop``, ``sleep``, ``wake`` and ``restart``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from llmproxy.cli.client import Api
from llmproxy.cli.command import Failed, command, say_json
from llmproxy.cli.completing import backend_names
from llmproxy.cli.together import Done, together
from llmproxy.words import duration

__all__ = ["restart", "sleep", "start", "stop", "wake"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_names = click.argument("names", nargs=-1, required=True, metavar="BACKEND...", shell_complete=backend_names)
_no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")


@click.command()
@_names
@_no_wait
@command
def start(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Start backends, and wait until they are ready.

    Several are started at once; those that do not fit on a GPU together wait for each other.

    \b
    Examples:
      llmproxy start coder
      llmproxy start coder chat          both, as far as there is room
      llmproxy start --no-wait coder     only say that it is to run
    """
    _steer(api, names, lambda name: _started(api, name, "start", not no_wait), as_json=as_json)


@click.command()
@_names
@_no_wait
@command
def restart(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Stop backends and start them again; also ends the pause after a failed start.

    \b
    Example: llmproxy restart coder
    """
    _steer(api, names, lambda name: _started(api, name, "restart", not no_wait), as_json=as_json)


@click.command()
@_names
@_no_wait
@click.option("--force", is_flag=True, help="Do not let running answers finish.")
@command
def stop(api: Api, names: tuple[str, ...], no_wait: bool, force: bool, *, as_json: bool) -> None:
    """Stop backends; requests that are being answered finish first.

    \b
    Examples:
      llmproxy stop coder
      llmproxy stop --force coder        break running answers off
    """
    _steer(api, names, lambda name: _stopped(api, name, not no_wait, force), as_json=as_json)


@click.command()
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
    _steer(api, names, lambda name: _slept(api, name, not no_wait), as_json=as_json)


@click.command()
@_names
@_no_wait
@command
def wake(api: Api, names: tuple[str, ...], no_wait: bool, *, as_json: bool) -> None:
    """Wake sleeping backends, and wait until they are ready.

    \b
    Example: llmproxy wake coder
    """
    _steer(api, names, lambda name: _started(api, name, "wake", not no_wait), as_json=as_json)


# -- one backend ------------------------------------------------------------------------------------


def _started(api: Api, name: str, verb: str, wait: bool) -> Done:
    began = time.monotonic()
    before = api.backend(name)["state"] if verb in ("start", "wake") else None
    backend = api.act(name, verb, wait=wait)
    state = backend["state"]
    took = duration(time.monotonic() - began)
    if not wait:
        waits = (backend.get("waits") or {}).get("why")
        return Done(
            name, backend, f"{name}: {state}, waits: {waits}" if waits else f"{name}: {state}", well=True
        )
    if state == "ready":
        done = "was ready already" if before == "ready" else f"ready after {took}"
        return Done(name, backend, f"{name}: {done}", well=True)
    why = (backend.get("last_failure") or {}).get("message") or "see llmproxy logs and events"
    return Done(name, backend, f"{name}: {state} after {took}: {why}", well=False)


def _stopped(api: Api, name: str, wait: bool, force: bool) -> Done:
    began = time.monotonic()
    before = api.backend(name)["state"]
    backend = api.act(name, "stop", wait=wait, force=force)
    state, cut = backend["state"], _cut(backend)
    if not wait:
        return Done(name, backend, f"{name}: was {before}, now {state}{cut}", well=True)
    if before in ("absent", "failed"):
        return Done(name, backend, f"{name}: was not running ({before})", well=True)
    took = duration(time.monotonic() - began)
    if state in ("absent", "failed"):
        return Done(name, backend, f"{name}: was {before}, stopped after {took}{cut}", well=True)
    again = f"{name}: was {before}, is {state} again after {took}: something asked for it{cut}"
    return Done(name, backend, again, well=False)


def _cut(backend: Mapping[str, Any]) -> str:
    """What has become of the requests that it was answering, if they did not end."""
    cut = backend.get("cut", 0)
    return f"; {cut} {'request was' if cut == 1 else 'requests were'} broken off" if cut else ""


def _slept(api: Api, name: str, wait: bool) -> Done:
    began = time.monotonic()
    before = api.backend(name)["state"]
    backend = api.act(name, "sleep", wait=wait)
    state = backend["state"]
    if not wait:
        return Done(name, backend, f"{name}: was {before}, now {state}", well=True)
    if before == state == "sleeping":
        return Done(name, backend, f"{name}: was asleep already", well=True)
    took = duration(time.monotonic() - began)
    if state == "sleeping":
        level = backend.get("level")
        return Done(name, backend, f"{name}: was {before}, asleep at level {level} after {took}", well=True)
    awake = f"{name}: does not sleep, is {state} after {took}: see llmproxy why {name}"
    return Done(name, backend, awake, well=False)


# -- all of them ------------------------------------------------------------------------------------


def _steer(api: Api, names: Sequence[str], one: Callable[[str], Done], *, as_json: bool) -> None:
    """Do it to all, and say what has become of each; status 1 if one failed."""
    names = list(dict.fromkeys(names))
    try:
        done = _carried_out(api, names, one, as_json=as_json)
        told = list(done if as_json else _say(done, alone=len(names) == 1))
    except KeyboardInterrupt:
        left = ", ".join(names)
        raise Failed(
            f"Given up waiting for {left}; the proxy goes on.",
            "llmproxy status shows how far it is.",
            as_json=as_json,
        ) from None
    refused = [done.error for done in told if done.error is not None]
    if len(told) == len(refused) == 1:
        # As of all other commands.
        raise refused[0]
    if as_json:
        answer: dict[str, Any] = {"backends": [done.backend for done in told if done.backend is not None]}
        if refused:
            answer["errors"] = [{"backend": done.name, **done.error.view()} for done in told if done.error]
        say_json(answer)
    if not all(done.well for done in told):
        sys.exit(1)


def _carried_out(
    api: Api, names: Sequence[str], one: Callable[[str], Done], *, as_json: bool
) -> Iterable[Done]:
    if as_json or not sys.stderr.isatty():
        return together(api, names, one, None)
    from llmproxy.cli.progress import sees_progress

    return _in_sight(api, names, one) if sees_progress() else together(api, names, one, None)


def _in_sight(api: Api, names: Sequence[str], one: Callable[[str], Done]) -> Iterator[Done]:
    """With progress on the terminal; what has become of them is told when that is gone."""
    from llmproxy.cli.progress import Progress
    from llmproxy.cli.terminal import ending_well

    with ending_well(), Progress(names) as progress:
        found = {done.name: done for done in together(api, names, one, progress.show)}
    for name in names:
        yield found[name]


def _say(told: Iterable[Done], *, alone: bool) -> Iterator[Done]:
    """Say what has become of each, as soon as it is known.

    :param alone: there is but one: what it was refused for is told as by all other commands.
    """
    for done in told:
        if done.error is None or not alone:
            click.echo(done.line, err=not done.well)
        if done.error is not None and done.error.hint and not alone:
            click.echo(f"  hint: {done.error.hint}", err=True)
        if not done.well and done.backend is not None:
            from llmproxy.cli.view import failure_lines

            for more in failure_lines(done.name, done.backend.get("last_failure"))[1:]:
                click.echo(more, err=True)
        yield done
