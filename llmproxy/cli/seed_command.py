"""``llmproxy seed``: models' files in their caches before the first start."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llmproxy.cli.client import read_env_file
from llmproxy.cli.command import Failed, in_json, json_option, say_json
from llmproxy.cli.completing import backend_names
from llmproxy.cli.config_command import settings_of
from llmproxy.cli.progress import sees_progress
from llmproxy.cli.reading import config_option, loader_of, refusing
from llmproxy.cli.terminal import console, ending_well
from llmproxy.config.loader import Loader
from llmproxy.config.model import BackendSpec, Config, digest_of
from llmproxy.engines.redaction import redact
from llmproxy.words import duration

__all__ = ["seed"]


@click.command()
@click.argument("names", nargs=-1, metavar="[BACKEND]...", shell_complete=backend_names)
@click.option("--all", "every", is_flag=True, help="All backends that run vLLM here.")
@config_option
@json_option
@click.pass_context
def seed(
    context: click.Context, names: tuple[str, ...], every: bool, file: str | None, as_json: bool
) -> None:
    """Download models into their caches before the first start; no proxy needs to run.

    It runs in the backend's own image, with its volumes and its environment, or by the backend's own Python,
    so that the files are where vLLM looks for them. HF_TOKEN is also taken from here and from ./.env. What is
    there is not downloaded again; Ctrl-C stops it, and the next time it goes on from there.

    \b
    Examples:
      llmproxy seed coder
      llmproxy seed --all
    """
    as_json = in_json(context, as_json)
    if bool(names) == every:
        raise click.UsageError("Name backends, or say --all.")
    with refusing(as_json):
        loader = loader_of(file)
        config, _ = settings_of(loader, True)
    specs = _chosen(config, names, as_json)
    environ = {**read_env_file(Path(".env")), **os.environ}
    with ending_well():
        results = _seed_all(specs, config, loader, environ, as_json)
    if as_json:
        say_json({"backends": results})
    if any(not each["ok"] for each in results):
        context.exit(1)


def _chosen(config: Config, names: Sequence[str], as_json: bool) -> list[BackendSpec]:
    unknown = [name for name in names if name.lower() not in config.backends]
    if unknown:
        known = ", ".join(config.backends) or "none"
        raise Failed(f"there is no backend {unknown[0]!r}; backends: {known}", as_json=as_json)
    if names:
        return [config.backends[name.lower()] for name in dict.fromkeys(names)]
    return [spec for spec in config.backends.values() if spec.engine == "vllm" and spec.runtime != "url"]


def _seed_all(
    specs: Sequence[BackendSpec],
    config: Config,
    loader: Loader,
    environ: Mapping[str, str],
    as_json: bool,
) -> list[dict[str, Any]]:
    # The Docker SDK and Twisted take half a second to import, which the other commands should not cost.
    import requests
    from docker.errors import DockerException

    from llmproxy.runtimes.docker_client import make_client, unavailable
    from llmproxy.runtimes.docker_host import docker_host
    from llmproxy.runtimes.interface import RuntimeUnavailable
    from llmproxy.seeding.hearing import Hearing
    from llmproxy.seeding.seed import NotSeeded, Surroundings, seed

    compose_file = os.path.abspath(config.docker.compose_file) if config.docker.compose_file else ""
    folder = os.path.dirname(compose_file)
    project = environ.get("COMPOSE_PROJECT_NAME") or os.path.basename(folder).lower()
    around = Surroundings(environ, loader.compose, folder, project, _client_keys(environ, config))
    results: list[dict[str, Any]] = []
    for spec in specs:
        began = time.monotonic()
        with ExitStack() as stack:
            shown = stack.enter_context(_Shown(spec.route, quiet=as_json))
            hearing = Hearing(shown.heard)
            result: dict[str, Any] = {"name": spec.route, "ok": True, "error": None, "hint": None}
            try:
                client = None
                if spec.runtime == "docker":
                    client = make_client(config.docker)
                    stack.callback(client.close)
                seed(spec, around, client, hearing)
            except (NotSeeded, RuntimeUnavailable) as wrong:
                result.update(ok=False, error=_clean(str(wrong), config), hint=getattr(wrong, "hint", None))
            except (DockerException, requests.RequestException, OSError) as wrong:
                away = unavailable(docker_host(config.docker), wrong)
                result.update(ok=False, error=_clean(str(away), config))
        result["repositories"] = [
            {
                "repository": one.repository,
                "files": one.files,
                "bytes": one.bytes,
                "downloaded": one.bytes - one.had,
                "cache": one.cache,
            }
            for one in hearing.done
        ]
        result["seconds"] = round(time.monotonic() - began, 3)
        results.append(result)
        if not as_json:
            _tell(result)
    return results


def _client_keys(environ: Mapping[str, str], config: Config) -> frozenset[str]:
    """Names of variables that hold keys of clients, which a download has no need of."""
    digests = {key.digest for key in config.keys}
    return frozenset(name for name, value in environ.items() if digest_of(value) in digests)


def _clean(text: str, config: Config) -> str:
    return redact(text, config.secrets)


def _tell(result: Mapping[str, Any]) -> None:
    name = result["name"]
    if not result["ok"]:
        click.echo(f"{name}: {result['error']}", err=True)
        if result["hint"]:
            click.echo(f"hint: {result['hint']}", err=True)
        return
    files = sum(one["files"] for one in result["repositories"])
    whole = sum(one["bytes"] for one in result["repositories"])
    loaded = sum(one["downloaded"] for one in result["repositories"])
    cache = result["repositories"][-1]["cache"]
    names = ", ".join(one["repository"] for one in result["repositories"])
    took = f"{_size(loaded)} downloaded in {duration(result['seconds'])}" if loaded else "all of it was there"
    click.echo(f"{name}: {names}: {files} files, {_size(whole)}, in {cache}; {took}")


def _size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class _Shown:
    """How far the download is: a bar for who sees it, a line now and then for who does not."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._quiet = quiet
        self._had = 0
        self._last = 0.0
        self._total = 0
        self._bar: Progress | None = None
        self._task: Any = None
        if not quiet and sees_progress():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console(err=True), transient=True)

    def __enter__(self) -> _Shown:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(f"{self._name}: looking", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def heard(self, event: Mapping[str, Any]) -> None:
        """An event of the download."""
        kind = event["event"]
        if kind == "pull":
            part = event.get("part")
            what = f"{self._name}: pulling {event['image']}"
            self._show(what, round((part or 0) * 100), 100 if part else None)
        elif kind == "plan":
            self._total = int(event["bytes"])
            self._show(f"{self._name}: {event['repository']}", int(event["had"]), self._total)
        elif kind == "progress":
            self._show(None, int(event["bytes"]), self._total)

    def _show(self, what: str | None, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
            if what is not None:
                self._bar.update(self._task, description=what)
        elif not self._quiet:
            now = time.monotonic()
            # Every ten seconds, for a log.
            if what is not None or now - self._last > 10:
                self._last = now
                whole = f" {_size(done)} of {_size(total)}" if total and total != 100 else ""
                click.echo(f"{what or self._name}:{whole}".rstrip(":"), err=True)
