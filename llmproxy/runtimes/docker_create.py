"""Creates containers for backends that the operator describes by an image, and has containers run."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from docker.api.client import APIClient
from docker.errors import APIError, ImageNotFound, NotFound

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.diagnosis import refusal_hint
from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.docker_guard import refusal
from llmproxy.runtimes.docker_reach import Reach, instance_port
from llmproxy.runtimes.docker_state import (
    MANAGED,
    MANAGED_ROUTE,
    MANAGED_SPEC,
    Json,
    Snapshot,
    container_name,
    spec_hash,
)
from llmproxy.runtimes.interface import StartRefused

__all__ = [
    "container_body",
    "create_container",
    "find_image",
    "has_image",
    "removal_of",
    "start_hint",
    "verb_for",
]


_USUAL = DockerSettings()


def container_body(
    spec: BackendSpec, image: Json, *, backend_key: str | None, reach: Reach, nvidia: bool
) -> dict[str, Any]:
    """The body of ``POST /containers/create``.

    :param image: ``Config`` of the image.
    :param reach: from where it is to be reached.
    :param nvidia: whether the engine has NVIDIA's runtime.
    """
    environment = dict(spec.environment)
    if spec.engine == "vllm" and backend_key is not None:
        environment.setdefault("VLLM_API_KEY", backend_key)
    port = f"{instance_port(spec, image, spec.args or None)}/tcp"
    # What a model's code may do in there is its own affair, but not to become more by a setuid program.
    host: dict[str, Any] = {
        "Init": True,
        "Binds": list(spec.volumes),
        "SecurityOpt": ["no-new-privileges:true"],
    }
    networking: dict[str, Any] = {}
    if reach.networks:
        # The engine's own "bridge" has no names for its members, but addresses are all that we use.
        own = sorted(reach.networks, key=lambda name: (name == "bridge", name))[0]
        host["NetworkMode"] = own
        networking = {"EndpointsConfig": {own: {}}}
    else:
        host["PortBindings"] = {port: [{"HostIp": _loopback_or(reach.published), "HostPort": ""}]}
    if spec.engine == "vllm":
        # Workers of one vLLM share memory; Docker's 64 MiB of /dev/shm are too little (vLLM, "Using Docker").
        host["IpcMode"] = "host"
    if spec.engine == "vllm" or spec.gpus:
        # Any other server gets the GPUs that are named, and none by itself.
        requests = _device_requests(spec, nvidia)
        if requests:
            host["DeviceRequests"] = requests
    body: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {
            MANAGED: "true",
            MANAGED_ROUTE: spec.route,
            MANAGED_SPEC: spec_hash(spec, backend_key),
        },
        "ExposedPorts": {port: {}},
        "HostConfig": host,
        "NetworkingConfig": networking,
    }
    if spec.args:
        body["Cmd"] = list(spec.args)
    return body


def _loopback_or(published: str) -> str:
    """Where to publish: for this machine only, or on the very address at which we reach a remote engine."""
    try:
        return str(ip_address(published))
    except ValueError:
        return ""


def _device_requests(spec: BackendSpec, nvidia: bool) -> list[dict[str, Any]]:
    """What ``--gpus`` means (Docker Engine API, ``DeviceRequest``)."""
    if spec.gpus is not None:
        if not spec.gpus:
            return []
        return [{"Driver": "", "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]]}]
    return [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}] if nvidia else []


def find_image(client: APIClient, image: str) -> Json | None:
    """All that is known of the image if the engine has it."""
    try:
        info: Json = client.inspect_image(image)
    except NotFound:
        return None
    return info


def has_image(client: APIClient, image: str) -> Json | None:
    """``Config`` of the image if the engine has it."""
    info = find_image(client, image)
    return None if info is None else info.get("Config") or {}


def create_container(
    client: APIClient,
    spec: BackendSpec,
    reach: Reach,
    backend_key: str | None,
    settings: DockerSettings = _USUAL,
) -> str:
    """Create the container of a backend whose image is there, and return its id.

    :raises StartRefused: the engine says no, or it would have what it must not have.
    """
    assert spec.image is not None
    image = has_image(client, spec.image)
    if image is None:
        raise StartRefused(f"image {spec.image} is not there", f"docker pull {spec.image}")
    nvidia = spec.engine == "vllm" and spec.gpus is None and "nvidia" in (client.info().get("Runtimes") or {})
    body = container_body(spec, image, backend_key=backend_key, reach=reach, nvidia=nvidia)
    # Its volumes have been looked at when the settings were read: what the file says is the operator's word.
    refused = refusal(container_name(spec), body["HostConfig"], (), settings)
    if refused is not None:
        raise refused
    try:
        return str(client.create_container_from_config(body, container_name(spec))["Id"])
    except APIError as error:
        said = describe(error)
        raise StartRefused(
            f"container {container_name(spec)!r} cannot be created: {said}", start_hint(said, error)
        ) from error


def start_hint(said: str, error: Exception | None = None) -> str | None:
    """The fix for what the engine says when it cannot create or start a container."""
    return refusal_hint("no such image" if isinstance(error, ImageNotFound) else said)


def removal_of(snapshot: Snapshot) -> Callable[[APIClient], object]:
    """Anonymous volumes go with it: only a container that llmproxy created itself is ever removed."""
    return lambda client: client.remove_container(snapshot.id, v=True, force=True)


def verb_for(snapshot: Snapshot) -> Callable[[APIClient], object]:
    """What makes a container run that does not serve."""
    if snapshot.status == "paused":
        return lambda client: client.unpause(snapshot.id)
    if snapshot.status == "restarting":
        # It waits for the next try of its restart policy, up to a minute; `start` would say "already".
        return lambda client: client.restart(snapshot.id, timeout=0)
    return lambda client: client.start(snapshot.id)
