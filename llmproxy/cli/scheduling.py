"""The commands about models that share GPUs: ``why``, ``plan``, ``lease`` and their like."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from llmproxy.cli.client import Api, ApiError
from llmproxy.cli.command import command, say_json
from llmproxy.cli.completing import backend_names, lease_names
from llmproxy.cli.sharing_view import (
    advice_lines,
    away_lines,
    gpu_table,
    hosts_table,
    lease_lines,
    leases_table,
)
from llmproxy.cli.terminal import console, print_lines, width_of

__all__ = ["advise", "gpus", "hosts", "lease", "leases", "plan", "release", "why"]


@click.command()
@click.argument("name", metavar="BACKEND", shell_complete=backend_names)
@command
def why(api: Api, name: str, *, as_json: bool) -> None:
    """Tell why a backend runs, waits, or has left.

    And for whom, when it will leave, what it needs and where that was read, and how long its start takes.

    \b
    Example: llmproxy why coder
    """
    found = api.why(name)
    if as_json:
        say_json(found)
        return
    print_lines(console(), found.get("why") or ())


@click.command()
@click.argument("name", metavar="[BACKEND]", required=False, shell_complete=backend_names)
@command
def plan(api: Api, name: str | None, *, as_json: bool) -> None:
    """Tell what is to be done now, or what a request would do.

    With a backend: a request for it. Nothing of it is done.

    \b
    Example: llmproxy plan chat
    """
    found = api.plan(name)
    if as_json:
        say_json(found)
        return
    print_lines(console(), found.get("told") or ())


@click.command()
@command
def gpus(api: Api, *, as_json: bool) -> None:
    """Show who has the memory of each GPU.

    CLAIMED is what the models that run have of it, LENT what leases have. What is really free is measured by
    NVML, where that is there.

    \b
    Example: llmproxy gpus
    """
    found = api.gpus()
    if as_json:
        say_json(found)
        return
    if not found.get("gpus"):
        click.echo("No backend needs GPU memory.")
        return
    out = console()
    print_lines(out, gpu_table(found["gpus"], width_of(out)))
    if found.get("not_measured"):
        print_lines(out, [f"Free memory is not measured: {found['not_measured']}."])


@click.command()
@command
def hosts(api: Api, *, as_json: bool) -> None:
    """Show the machines that backends run on, and which are away.

    \b
    Example: llmproxy hosts
    """
    found = api.hosts()
    if as_json:
        say_json({"hosts": found})
        return
    if not found:
        click.echo("There is this machine alone: `hosts` in llmproxy.yaml names others.")
        return
    out = console()
    print_lines(out, [*hosts_table(found, width_of(out)), *away_lines(found)])


@click.command()
@command
def advise(api: Api, *, as_json: bool) -> None:
    """Tell which settings would have spared starts, by what has happened.

    It looks at what was recorded of the last 30 days, and takes about a second.

    \b
    Example: llmproxy advise
    """
    found = api.advice()
    if as_json:
        say_json(found)
        return
    print_lines(console(), advice_lines(found))


@click.command()
@click.option("--gpu", default="0", show_default=True, metavar="GPU", help="Which GPU.")
@click.option("--memory", required=True, metavar="SIZE", help="16GiB, or a part of the GPU: 0.5, 50%.")
@click.option("--for", "seconds", required=True, metavar="TIME", help="How long: 40m, 2h; 7d at most.")
@click.option("--note", default="", metavar="TEXT", help="What it is for.")
@click.option("--wait", is_flag=True, help="Wait until the memory is free; Ctrl-C gives it up.")
@command
def lease(api: Api, gpu: str, memory: str, seconds: str, note: str, wait: bool, *, as_json: bool) -> None:
    """Lend GPU memory to something else: a game, ComfyUI, training.

    Models make room for it, idle ones at once and busy ones when they have drained; until it ends they do not
    get that memory.

    \b
    Example: llmproxy lease --memory 16GiB --for 40m --note ComfyUI --wait
    """
    try:
        found = api.lease({"gpu": gpu, "memory": memory, "seconds": seconds, "note": note})
    except ApiError as wrong:
        if wrong.code == "invalid_request":
            raise click.UsageError(str(wrong)) from None
        raise
    if wait and not found["held"]:
        if not as_json:
            click.echo(lease_lines([found], time.time())[0], err=True)
        found = _wait_for(api, found["id"])
    if as_json:
        say_json(found)
        return
    for line in lease_lines([found], time.time()):
        click.echo(line)
    if found.get("remark"):
        click.echo(f"note: {found['remark']}", err=True)


def _wait_for(api: Api, name: str) -> dict[str, Any]:
    try:
        return api.lease_held(name)
    except KeyboardInterrupt:
        api.release(name)
        click.echo(f"{name}: given up", err=True)
        sys.exit(1)


@click.command()
@command
def leases(api: Api, *, as_json: bool) -> None:
    """Show the GPU memory that is lent.

    \b
    Example: llmproxy leases
    """
    found = api.leases()
    if as_json:
        say_json({"leases": found})
    elif not found:
        click.echo("No GPU memory is lent.")
    else:
        out = console()
        print_lines(out, leases_table(found, time.time(), width_of(out)))


@click.command()
@click.argument("names", nargs=-1, metavar="[LEASE]...", shell_complete=lease_names)
@click.option("--all", "every", is_flag=True, help="All of them.")
@command
def release(api: Api, names: tuple[str, ...], every: bool, *, as_json: bool) -> None:
    """Give lent GPU memory back to the models.

    \b
    Example: llmproxy release lease-1
    """
    if bool(names) == every:
        raise click.UsageError("Name the leases (llmproxy leases shows them), or say --all.")
    ended: list[dict[str, Any]] = []
    for name in [found["id"] for found in api.leases()] if every else names:
        try:
            ended.append(api.release(name))
        except ApiError as wrong:
            # One that has just ended by itself is as good.
            if not every or wrong.code != "route_not_found":
                raise
    if as_json:
        say_json({"leases": ended})
        return
    for found in ended:
        click.echo(f"{found['id']}: released")
    if not ended:
        click.echo("No GPU memory is lent.")
