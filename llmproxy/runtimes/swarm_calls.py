"""What is asked of a Swarm's manager.  All of it blocks: it is for threads.

The SDK's own ``update_service`` puts a specification together from the parts that it knows; here it goes back
as it came, so that nothing of somebody else's service is lost.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import requests
from docker import auth
from docker.api.client import APIClient
from docker.errors import APIError, NotFound, create_api_error_from_http_exception

from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.runtimes.swarm_state import (
    SwarmNode,
    SwarmService,
    SwarmTask,
    read_node,
    read_service,
    read_task,
)

__all__ = [
    "NameTaken",
    "create",
    "find",
    "get",
    "list_nodes",
    "list_services",
    "list_tasks",
    "trouble",
    "update",
]

Json = Mapping[str, Any]

TRIES = 12
"""Of an update whose service others change at the same moment."""
PAUSE = 0.05
"""Seconds between them, more or less."""
NAMES_MOST = 100
"""Names in one question; where there are more, all services are asked for."""


class NameTaken(Exception):
    """Somebody else has just created a service of that name."""


def get(client: APIClient, path: str, **params: Any) -> Any:
    """Ask, and read the answer.

    :raises docker.errors.APIError: the engine says no.
    """
    answer = client.get(_url(client, path), params=_texts(params), timeout=client.timeout)
    _raise(answer)
    return answer.json()


def _post(
    client: APIClient, path: str, body: Json, headers: Mapping[str, str | bytes] | None = None, **params: Any
) -> Any:
    answer = client.post(
        _url(client, path), json=body, headers=headers, params=_texts(params), timeout=client.timeout
    )
    _raise(answer)
    return answer.json()


def _url(client: APIClient, path: str) -> str:
    return f"{client.base_url}/v{client.api_version}/{path}"


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in params.items()
        if value is not None
    }


def _raise(answer: requests.Response) -> None:
    try:
        answer.raise_for_status()
    except requests.HTTPError as error:
        create_api_error_from_http_exception(error)


def find(client: APIClient, name: str) -> SwarmService | None:
    """The service of that name.

    :raises docker.errors.APIError: the engine says no.
    """
    try:
        found = read_service(get(client, f"services/{name}"))
    except NotFound:
        return None
    # The engine also takes the first letters of an id.
    return found if name in (found.name, found.id) else None


def list_services(client: APIClient, names: Iterable[str]) -> dict[str, SwarmService]:
    """The services of these names."""
    wanted = set(names)
    filters = {"name": sorted(wanted)} if len(wanted) <= NAMES_MOST else None
    # The engine takes names for beginnings of names.
    found = (read_service(each) for each in get(client, "services", filters=filters) or ())
    return {each.name: each for each in found if each.name in wanted}


def list_tasks(client: APIClient, services: Iterable[str]) -> dict[str, tuple[SwarmTask, ...]]:
    """The tasks of these services, by service id.

    :raises docker.errors.NotFound: one of the services is not there any more.
    """
    wanted = sorted(services)
    if not wanted:
        return {}
    found: dict[str, list[SwarmTask]] = {service: [] for service in wanted}
    # The engine looks each service up, so that many cost more than all.
    filters = {"service": wanted} if len(wanted) <= NAMES_MOST else None
    for each in get(client, "tasks", filters=filters) or ():
        task = read_task(each)
        if task.service in found:
            found[task.service].append(task)
    return {service: tuple(tasks) for service, tasks in found.items()}


def list_nodes(client: APIClient) -> dict[str, SwarmNode]:
    """All nodes, by id."""
    return {node.id: node for node in map(read_node, get(client, "nodes") or ())}


def create(client: APIClient, body: Json) -> str:
    """Create the service, and return its id.

    :raises NameTaken: there is one of that name already.
    :raises docker.errors.APIError: the engine says no.
    """
    image = body["TaskTemplate"]["ContainerSpec"]["Image"]
    registry, _ = auth.resolve_repository_name(image)
    # The nodes get the image themselves, with what `docker login` has left here.
    header = auth.get_config_header(client, registry)
    headers: dict[str, str | bytes] | None = {"X-Registry-Auth": header} if header else None
    try:
        return str(_post(client, "services/create", body, headers)["ID"])
    except APIError as error:
        if error.status_code == 409 or "name conflicts" in describe(error):
            raise NameTaken from error
        raise


def update(
    client: APIClient, service: str, change: Callable[[SwarmService], dict[str, Any] | None]
) -> SwarmService | None:
    """Change a service by what it is at this moment, again and again until nobody else has changed it
    meanwhile.

    :param change: gives the new ``Spec``; None: there is nothing to be changed.
    :return: as it was when it was changed, or not; None when there is no such service.
    :raises docker.errors.APIError: the engine says no.
    :raises RuntimeUnavailable: others change it all the time.
    """
    for _ in range(TRIES):
        found = find(client, service)
        if found is None:
            return None
        spec = change(found)
        if spec is None:
            return found
        try:
            _post(client, f"services/{found.id}/update", spec, version=str(found.version))
        except NotFound:
            return None
        except APIError as error:
            if "out of sequence" not in describe(error):
                raise
            time.sleep(PAUSE * (0.5 + random.random()))
        else:
            return found
    raise RuntimeUnavailable(
        f"service {service!r} is being changed by others all the time: its update was out of sequence"
        f" {TRIES} times"
    )


def trouble(host: str, error: APIError) -> RuntimeUnavailable:
    """Our word for an engine that says no where that can only mean that something is wrong with it."""
    said = describe(error)
    if "not a swarm manager" in said:
        return RuntimeUnavailable(
            f"the Docker engine at {host} manages no Swarm. Make it one (docker swarm init), or point"
            " docker.host (DOCKER_HOST) at one of the Swarm's managers"
        )
    return RuntimeUnavailable(f"the Swarm's manager at {host} says: {said}")
