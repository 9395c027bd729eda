"""Containers that say by their labels that they are routes."""

from __future__ import annotations

import requests
import urllib3
from docker.api.client import APIClient
from docker.errors import DockerException

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_client import make_client, unavailable
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.docker_state import ROUTE_LABEL

__all__ = ["list_labelled", "read_labelled_containers"]


_OF_A_SWARM = "com.docker.swarm.task.id"


def list_labelled(client: APIClient) -> list[LabelledContainer]:
    """All of them, by name; but for those of a Swarm's services, which are not ours to start."""
    found = client.containers(all=True, filters={"label": [ROUTE_LABEL]})
    return sorted(
        (
            # A link gives a container more names, with a slash in them; its own has none.
            LabelledContainer(
                min((name.lstrip("/") for name in each["Names"]), key=lambda name: (name.count("/"), name)),
                dict(each.get("Labels") or {}),
            )
            for each in found
            if each.get("Names") and _OF_A_SWARM not in (each.get("Labels") or {})
        ),
        key=lambda each: each.name,
    )


def read_labelled_containers(settings: DockerSettings, timeout: float) -> list[LabelledContainer]:
    """The same for the start of the process, before a reactor runs.  Blocks for ``timeout`` seconds or a
    little more.

    :raises RuntimeUnavailable: the engine does not answer.
    """
    try:
        client = make_client(settings, timeout)
        try:
            return list_labelled(client)
        finally:
            client.close()
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise unavailable(docker_host(settings), error) from error
