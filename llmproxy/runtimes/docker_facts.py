"""What can be read of a backend from its container, its image or its compose service.  Pure.

Field names are those of the Docker Engine API (``ContainerInspect``, ``ImageInspect``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec
from llmproxy.engines.gpus import DeviceRequest
from llmproxy.runtimes.fingerprint import fingerprint
from llmproxy.runtimes.interface import Facts

__all__ = ["read_container", "read_devices", "read_image", "read_server", "read_service"]

Json = Mapping[str, Any]

_PLAIN_RUNTIMES = ("runc", "crun", "io.containerd.runc.v2")
"""OCI runtimes that give a container no more devices than Docker tells them to."""


def read_server(
    config: Json, args: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The command line and the environment of ``Config``.

    :param args: in place of its own command.
    """
    environment = {}
    for line in config.get("Env") or ():
        name, _, value = line.partition("=")
        environment[name] = value
    command = tuple(config.get("Cmd") or ()) if args is None else args
    return (*(config.get("Entrypoint") or ()), *command), environment


def read_container(info: Json) -> Facts:
    """Read the answer of ``GET /containers/{id}/json``."""
    config: Json = info.get("Config") or {}
    args, environment = read_server(config)
    image = str(info.get("Image") or config.get("Image") or "")
    return Facts(
        args, environment, read_devices(info.get("HostConfig") or {}), fingerprint(image, args, environment)
    )


def read_image(spec: BackendSpec, info: Json, backend_key: str | None) -> Facts:
    """What a container will have that llmproxy creates from the image.

    :param info: the answer of ``GET /images/{name}/json``; empty when the image is not there yet.
    """
    if spec.image is None:
        return Facts(spec.args, dict(spec.environment))
    args, given = read_server(info.get("Config") or {}, spec.args or None)
    environment = {**given, **spec.environment}
    devices = None
    if spec.engine == "vllm":
        if backend_key is not None and "VLLM_API_KEY" not in spec.environment:
            environment["VLLM_API_KEY"] = backend_key
        if spec.gpus is not None:
            devices = DeviceRequest(spec.gpus)
    image = str(info.get("Id") or spec.image)
    return Facts(args, environment, devices, fingerprint(image, args, environment))


def read_service(service: ComposeService) -> Facts:
    """What a container will have that Compose creates; its image may add to it."""
    args, environment = tuple(service.args), dict(service.environment)
    return Facts(args, environment, service.devices, fingerprint(service.image or "", args, environment))


def read_devices(host: Json) -> DeviceRequest | None:
    """The GPUs that ``HostConfig`` asks for; ``None`` when it leaves that open.

    It does not where Docker's own runtime starts the container with no devices at all: then there is no GPU
    in it, whatever its image says in ``NVIDIA_VISIBLE_DEVICES``.  Docker puts the name of its default runtime
    there when the container is created.
    """
    requests = [each for each in host.get("DeviceRequests") or () if isinstance(each, Mapping)]
    gpus = [each for each in requests if _is_for_gpus(each)]
    if not gpus:
        shut = not requests and not host.get("Devices") and not host.get("Privileged")
        return DeviceRequest() if shut and host.get("Runtime") in _PLAIN_RUNTIMES else None
    return DeviceRequest.of(
        (int(each.get("Count") or 0), [str(name) for name in each.get("DeviceIDs") or ()]) for each in gpus
    )


def _is_for_gpus(request: Json) -> bool:
    if request.get("Driver") in ("nvidia", "cdi"):
        return True
    return any("gpu" in names for names in request.get("Capabilities") or () if isinstance(names, list))
