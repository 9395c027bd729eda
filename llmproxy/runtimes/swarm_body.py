"""The service that llmproxy creates for a backend with an image.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import MANAGED, MANAGED_ROUTE, MANAGED_SPEC, made_of
from llmproxy.runtimes.swarm_labels import RUN
from llmproxy.runtimes.swarm_state import SwarmService, service_name

__all__ = ["RESTART_DELAY", "is_outdated", "mount_of", "service_body", "service_hash", "with_replicas"]

Json = Mapping[str, Any]

RESTART_DELAY = 5.0
"""Seconds until Swarm puts a task in the place of one that has ended.  Within them it is seen that the last
one of a service has failed, and the service is scaled to 0."""


def service_hash(spec: BackendSpec, backend_key: str | None) -> str:
    """Of a created service; another value means that it must be made anew."""
    reserved = sorted(spec.reservations.items())
    return made_of(spec, backend_key, reserved, spec.constraints, spec.networks, spec.stop_grace)


def is_outdated(spec: BackendSpec, service: SwarmService, backend_key: str | None) -> bool:
    """Whether llmproxy created it from other settings."""
    if not service.managed or spec.image is None:
        return False
    return service.labels.get(MANAGED_SPEC) != service_hash(spec, backend_key)


def service_body(
    spec: BackendSpec, *, backend_key: str | None, networks: Sequence[str], port: int | None
) -> dict[str, Any]:
    """The body of ``POST /services/create``, with no task.

    :param networks: that it is joined to.
    :param port: that each node publishes for each of its tasks, as nothing else leads to them.
    """
    environment = dict(spec.environment)
    mounts = [mount_of(volume) for volume in spec.volumes]
    if spec.engine == "vllm":
        if backend_key is not None:
            environment.setdefault("VLLM_API_KEY", backend_key)
        if not any(mount["Target"] == "/dev/shm" for mount in mounts):
            # Workers of one vLLM share memory; Docker's 64 MiB of /dev/shm are too little, and a service has
            # neither an IPC mode nor a size for it.
            mounts.append({"Type": "tmpfs", "Target": "/dev/shm"})
    container: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Init": True,
        "Mounts": mounts,
        "StopGracePeriod": round(spec.stop_grace * 1e9),
        # Of engines that know it; a model's code shall not become more by a setuid program.
        "Privileges": {"NoNewPrivileges": True},
    }
    if spec.args:
        container["Args"] = list(spec.args)
    resources = [
        {"DiscreteResourceSpec": {"Kind": kind, "Value": amount}}
        for kind, amount in spec.reservations.items()
    ]
    # Not the virtual address: each task is used for itself.
    endpoint: dict[str, Any] = {"Mode": "dnsrr"}
    if port is not None:
        endpoint["Ports"] = [{"Protocol": "tcp", "TargetPort": port, "PublishMode": "host"}]
    return {
        "Name": service_name(spec),
        "Labels": {
            MANAGED: "true",
            MANAGED_ROUTE: spec.route,
            MANAGED_SPEC: service_hash(spec, backend_key),
        },
        "TaskTemplate": {
            "ContainerSpec": container,
            "Resources": {"Reservations": {"GenericResources": resources}},
            "RestartPolicy": {"Condition": "any", "Delay": round(RESTART_DELAY * 1e9)},
            "Placement": {"Constraints": list(spec.constraints)},
            "Networks": [{"Target": network} for network in networks],
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "EndpointSpec": endpoint,
    }


def mount_of(volume: str) -> dict[str, Any]:
    """``source:target[:options]`` as a mount of the API; a path alone is a volume without a name."""
    source, _, rest = volume.partition(":")
    target, _, options = rest.partition(":")
    if not target:
        return {"Type": "volume", "Target": source}
    kind = "bind" if source.startswith(("/", "~", ".")) else "volume"
    mount: dict[str, Any] = {"Type": kind, "Source": source, "Target": target}
    if "ro" in options.split(","):
        mount["ReadOnly"] = True
    return mount


def with_replicas(
    spec: Json, replicas: int, labels: Mapping[str, str | None] | None = None, *, run: str | None = None
) -> dict[str, Any]:
    """A service's ``Spec`` with so many tasks, and all else as it is.

    :param labels: to be set besides, or taken away where they are None.
    :param run: names the run that begins; empty: none goes on; None: as it is.
    """
    changed = dict(spec)
    changed["Mode"] = {"Replicated": {**(spec["Mode"].get("Replicated") or {}), "Replicas": replicas}}
    own = {**(spec.get("Labels") or {}), **(labels or {})}
    own = {label: text for label, text in own.items() if text is not None}
    if run:
        own[RUN] = run
    elif run is not None:
        own.pop(RUN, None)
    changed["Labels"] = own
    return changed
