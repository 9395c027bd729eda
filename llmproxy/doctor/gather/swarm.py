"""Asks a Swarm's manager."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.doctor.facts import Engine, Image, SwarmFacts, SwarmNode, SwarmService

if TYPE_CHECKING:
    from docker.api.client import APIClient

__all__ = ["gather_swarm", "labelled_services", "read_node", "read_service", "read_standing"]

Json = Mapping[str, Any]

_PROCESSORS_AND_MEMORY = ("NanoCPUs", "MemoryBytes")
_GRACE = 10.0
"""Docker's, for a service that says nothing."""
_MOST_IMAGES = 8
"""Registries are asked for so many at most; each may take seconds to say no."""


def read_standing(told: Json) -> SwarmFacts:
    """What the engine says of itself: ``Swarm`` of ``GET /info``."""
    local = str(told.get("LocalNodeState") or "inactive")
    state = local
    if local == "active":
        state = "manager" if told.get("ControlAvailable") else "worker"
    return SwarmFacts(state, " ".join(str(told.get("Error") or "").split()), int(told.get("Managers") or 0))


def read_node(info: Json) -> SwarmNode:
    """One of ``GET /nodes``."""
    from llmproxy.runtimes.swarm_room import resources

    spec, description = info.get("Spec") or {}, info.get("Description") or {}
    return SwarmNode(
        str(info["ID"]),
        str(description.get("Hostname") or info["ID"]),
        str((info.get("Status") or {}).get("State") or "unknown"),
        str(spec.get("Availability") or "active"),
        spec.get("Role") == "manager",
        _generic(resources(description.get("Resources") or {})),
    )


def read_service(info: Json) -> SwarmService:
    """One of ``GET /services``."""
    spec = info.get("Spec") or {}
    template = spec.get("TaskTemplate") or {}
    container = template.get("ContainerSpec") or {}
    grace = container.get("StopGracePeriod")
    environment = (str(each).partition("=") for each in container.get("Env") or ())
    # Old clients write them beside the template.
    networks = template.get("Networks") or spec.get("Networks") or ()
    ports = (spec.get("EndpointSpec") or {}).get("Ports") or ()
    return SwarmService(
        str(spec.get("Name") or ""),
        str(container.get("Image") or ""),
        next(iter(spec.get("Mode") or ()), "Replicated").lower(),
        tuple(str(each["Target"]) for each in networks if each.get("Target")),
        tuple(
            (int(each["TargetPort"]), str(each.get("PublishMode") or "ingress"))
            for each in ports
            if each.get("TargetPort") and each.get("Protocol", "tcp") == "tcp"
        ),
        tuple(str(each) for each in (*(container.get("Command") or ()), *(container.get("Args") or ()))),
        {name: value for name, _, value in environment},
        _GRACE if grace is None else float(grace) / 1e9,
    )


def _generic(amounts: Mapping[str, int]) -> dict[str, int]:
    return {kind: amount for kind, amount in amounts.items() if kind not in _PROCESSORS_AND_MEMORY}


def labelled_services(settings: DockerSettings, timeout: float) -> Sequence[LabelledContainer]:
    """Services that say by their labels that they are routes; none where the manager does not answer."""
    import requests
    import urllib3
    from docker.errors import DockerException

    from llmproxy.runtimes.docker_client import make_client
    from llmproxy.runtimes.swarm_catalogue import list_labelled

    try:
        client = make_client(settings, timeout)
        try:
            return list_labelled(client)
        finally:
            client.close()
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        return ()


def gather_swarm(
    settings: DockerSettings, engine: Engine, specs: Iterable[BackendSpec], timeout: float
) -> Engine:
    """The same, with what is to be known of these backends' services, as far as any is one."""
    wanted = [spec for spec in specs if spec.runtime == "swarm"]
    if not wanted or not engine.answers or engine.swarm.state != "manager":
        return engine
    import requests
    import urllib3
    from docker.errors import DockerException

    from llmproxy.runtimes.docker_client import describe, make_client

    try:
        client = make_client(settings, timeout)
        try:
            engine = evolve(engine, swarm=_ask(client, engine.swarm, wanted))
            images = [_image_of(spec, engine.swarm) for spec in wanted]
            for image in list(dict.fromkeys(filter(None, images)))[:_MOST_IMAGES]:
                engine = _look_for(client, engine, image)
        finally:
            client.close()
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as wrong:
        # What is known so far is told.
        return evolve(engine, swarm=evolve(engine.swarm, error=engine.swarm.error or describe(wrong)))
    return engine


def _image_of(spec: BackendSpec, swarm: SwarmFacts) -> str | None:
    service = swarm.services.get(spec.service or "")
    return (service.image if service is not None else None) or spec.image


def _ask(client: APIClient, standing: SwarmFacts, specs: Sequence[BackendSpec]) -> SwarmFacts:
    from llmproxy.runtimes.docker_reach import find_reach
    from llmproxy.runtimes.swarm_room import allowed_nodes, reserved

    nodes, told = client.nodes(), client.services()
    services = {str((each.get("Spec") or {}).get("Name")): each for each in told}
    networks = client.networks(filters={"driver": "overlay"})
    joined = find_reach(client, "unix://").networks
    reserves, placeable = {}, {}
    for spec in specs:
        info = services.get(spec.service or "") or _planned(spec)
        reserves[spec.route] = _generic(reserved(info))
        allowed = allowed_nodes(info, nodes)
        if allowed is not None:
            placeable[spec.route] = tuple(sorted(allowed))
    return evolve(
        standing,
        nodes=tuple(map(read_node, nodes)),
        services={name: read_service(each) for name, each in services.items()},
        reserves=reserves,
        placeable=placeable,
        overlays={str(each["Id"]): str(each["Name"]) for each in networks if not each.get("Ingress")},
        joined=None if joined is None else tuple(joined.values()),
    )


def _planned(spec: BackendSpec) -> Json:
    """What its service will reserve and ask for, in Docker's words."""
    kinds = [
        {"DiscreteResourceSpec": {"Kind": kind, "Value": value}} for kind, value in spec.reservations.items()
    ]
    template = {
        "Resources": {"Reservations": {"GenericResources": kinds}},
        "Placement": {"Constraints": list(spec.constraints)},
    }
    return {"Spec": {"TaskTemplate": template}}


def _look_for(client: APIClient, engine: Engine, image: str) -> Engine:
    """Whether this engine has the image, and whether its registry does."""
    import requests
    import urllib3
    from docker.errors import APIError, NotFound

    try:
        client.inspect_image(image)
        here = True
    except NotFound:
        here = False
    pullable: bool | None = True
    try:
        client.inspect_distribution(image)
    except APIError as wrong:
        # It says 401 and 403 of what is private or is not there, and 500 of a registry that is away.
        pullable = False if wrong.status_code in (401, 403, 404) else None
    except (requests.RequestException, urllib3.exceptions.HTTPError):
        pullable = None
    known = {**engine.images, image: engine.images.get(image) or Image(image, here)}
    found = evolve(engine.swarm, pullable={**engine.swarm.pullable, image: pullable})
    return evolve(engine, images=known, swarm=found)
