"""Brings the files of one backend's models into its cache.  Blocks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from docker.api.client import APIClient

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_client import find_container
from llmproxy.runtimes.docker_create import find_image
from llmproxy.runtimes.docker_pull import Pull, pull_image
from llmproxy.runtimes.docker_state import container_name
from llmproxy.runtimes.interface import StartRefused
from llmproxy.runtimes.process_child import child_environment
from llmproxy.seeding.hearing import Hearing, reason
from llmproxy.seeding.order import Nothing, Order, read_order
from llmproxy.seeding.places import Place, of_compose, of_container, of_image
from llmproxy.seeding.running import find_python, run_in_container, run_with_python

__all__ = ["NotSeeded", "Surroundings", "seed"]

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class NotSeeded(Exception):
    """It was not downloaded.

    :ivar hint: what helps.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@frozen
class Surroundings:
    """What is known besides a backend's own settings.

    :ivar environ: the environment, and what ``.env`` adds to it.
    :ivar compose: the services of the compose file, its folder, and the project.
    :ivar keys: names of variables that hold keys of clients.
    """

    environ: Mapping[str, str]
    compose: Sequence[ComposeService]
    folder: str
    project: str
    keys: frozenset[str] = frozenset()

    def token(self, own: Mapping[str, str]) -> dict[str, str]:
        """The hub's token, where the backend itself is given none."""
        if any(own.get(name) for name in _TOKENS):
            return {}
        found = next((self.environ[name] for name in _TOKENS if self.environ.get(name)), None)
        return {} if found is None else {"HF_TOKEN": found}


def seed(spec: BackendSpec, around: Surroundings, client: APIClient | None, hearing: Hearing) -> None:
    """Download what a backend needs.

    :param client: of the Docker engine, where the backend is a container.
    :raises NotSeeded: it could not be done, or there is nothing to do it for.
    :raises llmproxy.runtimes.interface.RuntimeUnavailable: the engine does not answer.
    """
    if spec.runtime == "url":
        raise NotSeeded("it runs elsewhere, and has its files there")
    if spec.engine != "vllm":
        raise NotSeeded(
            "it is no vLLM, so that it is not known what it downloads", "Start it once: it gets it then."
        )
    try:
        if spec.runtime == "process":
            _with_python(spec, around, hearing)
        else:
            assert client is not None
            _in_container(spec, around, client, hearing)
    except StartRefused as refused:
        raise NotSeeded(str(refused), refused.hint) from refused


def _with_python(spec: BackendSpec, around: Surroundings, hearing: Hearing) -> None:
    order = _order((*spec.command, *spec.args), spec.environment)
    # The port is not used by what is run here.
    environment = child_environment(around.environ, spec, spec.port or 0, None, around.keys)
    python = find_python(spec.command, environment.get("PATH", os.defpath), spec.cwd)
    environment.update(around.token(environment))
    status = run_with_python(python, order, environment, spec.cwd, hearing)
    _judge(order, hearing, status)


def _in_container(spec: BackendSpec, around: Surroundings, client: APIClient, hearing: Hearing) -> None:
    place = _place(spec, around, client, hearing)
    order = _order(place.args, place.environment)
    if find_image(client, place.image) is None:
        _pull(client, place.image, hearing)
    added = {"HF_HUB_OFFLINE": "0", **around.token(place.environment)}
    run_in_container(client, place, order, added, hearing)
    _judge(order, hearing, None)


def _place(spec: BackendSpec, around: Surroundings, client: APIClient, hearing: Hearing) -> Place:
    name = container_name(spec)
    info = find_container(client, name)
    if info is not None:
        return of_container(info)
    service = next((one for one in around.compose if one.container_name == name and one.image), None)
    if service is not None:
        home = around.environ.get("HOME") or "/"
        return of_compose(service, around.folder, around.project, home)
    if spec.image is None:
        raise NotSeeded(
            f"there is no container {name!r}, and no compose file that has it",
            "Name the file by COMPOSE_FILE or docker.compose_file.",
        )
    image = find_image(client, spec.image)
    if image is None:
        _pull(client, spec.image, hearing)
        image = find_image(client, spec.image)
    config: Mapping[str, Any] = (image or {}).get("Config") or {}
    return of_image(spec, config.get("Entrypoint") or ())


def _pull(client: APIClient, image: str, hearing: Hearing) -> None:
    hearing.told({"event": "pull", "image": image})
    pull = Pull(lambda phase: hearing.told({"event": "pull", "image": image, "part": phase.progress}))
    client.timeout = 600
    pull_image(client, image, pull.heard)


def _order(args: Sequence[str], environment: Mapping[str, str]) -> Order:
    try:
        return read_order(args, environment)
    except Nothing as nothing:
        raise NotSeeded(str(nothing)) from None


def _judge(order: Order, hearing: Hearing, status: int | None) -> None:
    if len(hearing.done) == len(order.wanted):
        return
    # None of the names that Docker's own exit statuses have: the log tells.
    cause, hint = reason(hearing.log, status if status and status > 128 else None)
    missing = order.wanted[len(hearing.done)].repository
    raise NotSeeded(f"{missing}: {cause}", hint)
