"""Where tasks of a Swarm are reached."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_reach import Reach
from llmproxy.runtimes.interface import Address
from llmproxy.runtimes.swarm_reach import Here, config_of, task_addresses, task_port
from llmproxy.runtimes.swarm_state import read_service
from tests.unit.swarm_cases import FAR, picture, service, task

SPEC = BackendSpec("m", runtime="swarm", service="m", port=8000)
OVERLAY = [
    {"Network": {"ID": "n0", "Spec": {"Name": "ingress", "Ingress": True}}, "Addresses": ["10.0.0.9/24"]},
    {"Network": {"ID": "n1", "Spec": {"Name": "ov"}}, "Addresses": ["10.0.1.3/24"]},
]
INSIDE = Here(Reach("172.18.0.1", False, {"ov": "n1", "ingress": "n0"}), "a")
ON_HOST = Here(Reach("127.0.0.1", True), "a", {"c-t": ("172.18.0.7",)})


def reached(here: Here, **more: Any) -> list[tuple[str, str, int]]:
    """Where a task is, as seen from there."""
    found = picture(task("t", **more))
    return [(each.via, each.host, each.port) for each in task_addresses(SPEC, found, found.tasks[0], here)]


def test_on_a_network_that_we_share() -> None:
    """Its own address there, and not that of the routing mesh; a port of its node comes after it."""
    assert reached(INSIDE, networks=OVERLAY) == [("network", "10.0.1.3", 8000)]
    assert reached(INSIDE, networks=OVERLAY, port=32768) == [
        ("network", "10.0.1.3", 8000),
        ("published", "10.1.0.2", 32768),
    ]


def test_by_a_port_of_its_node() -> None:
    """That of the node which it is on; of our own engine's node where we reach its ports."""
    assert reached(FAR, networks=OVERLAY, port=32768) == [("published", "10.1.0.2", 32768)]
    assert reached(FAR, port=32768, node="a") == [("published", "192.0.2.1", 32768)]
    assert reached(ON_HOST, port=32768, node="a") == [("published", "10.1.0.1", 32768)]
    assert reached(INSIDE, port=32768, node="a") == [("published", "172.18.0.1", 32768)]
    as_a_task = Here(Reach("127.0.0.1", False, {"ov": "n1"}), "a")
    assert reached(as_a_task, port=32768, node="a") == [("published", "10.1.0.1", 32768)]
    assert reached(FAR, networks=[{"Network": {"ID": "h", "Spec": {"Name": "host"}}}]) == [
        ("published", "10.1.0.2", 8000)
    ]


def test_by_its_container_on_this_host() -> None:
    """Only of the node that we are on, and only where nothing else leads to it."""
    assert reached(ON_HOST, networks=OVERLAY, node="a") == [("bridge", "172.18.0.7", 8000)]
    assert reached(ON_HOST, networks=OVERLAY, node="b") == []
    assert reached(evolve(ON_HOST, reach=Reach("192.0.2.1", False)), networks=OVERLAY, node="a") == []


def test_by_the_routing_mesh_at_last() -> None:
    """A port that any task may answer is used when there is no other way."""
    info = service()
    port = {"Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 30000, "PublishMode": "ingress"}
    info["Endpoint"] = {"Ports": [port]}
    found = evolve(picture(task("t", networks=OVERLAY)), service=read_service(info))
    assert task_addresses(SPEC, found, found.tasks[0], FAR) == (Address("10.1.0.2", 30000, "published"),)
    assert [each.via for each in task_addresses(SPEC, found, found.tasks[0], INSIDE)] == ["network"]


@pytest.mark.parametrize(
    ("container", "targets", "port", "expected"),
    [
        ({"Args": ["--port", "8123"]}, [], None, 8123),
        ({"Args": ["--port", "8123"]}, [9000], None, 8123),
        ({"Args": ["--model", "m"]}, [9000], None, 9000),
        ({"Args": ["--model", "m"]}, [9000, 9001], None, 8000),
        ({"Args": ["--port", "8123"]}, [9000], 7000, 7000),
        ({}, [], None, 8000),
    ],
)
def test_ports(container: dict[str, Any], targets: list[int], port: int | None, expected: int) -> None:
    """That of the settings, else of the command line, else the one that is published, else vLLM's own."""
    ports = [{"Protocol": "tcp", "TargetPort": target, "PublishMode": "host"} for target in targets]
    found = read_service(service(container=container, EndpointSpec={"Ports": ports}))
    assert task_port(evolve(SPEC, port=port), found) == expected


def test_its_command() -> None:
    """What the service does not say is the image's; whoever gives the entrypoint gives the whole command."""
    image = {"Entrypoint": ["serve"], "Cmd": ["default"], "Env": ["A=1"], "ExposedPorts": {"9/tcp": {}}}

    def command(container: dict[str, Any]) -> list[str]:
        config = config_of(read_service(service(container=container)), image)
        return [*config["Entrypoint"], *config["Cmd"]]

    assert command({}) == ["serve", "default"]
    assert command({"Args": ["x"]}) == ["serve", "x"]
    assert command({"Command": ["sh"]}) == ["sh"]
    assert command({"Command": ["sh"], "Args": ["-c", "y"]}) == ["sh", "-c", "y"]
    config = config_of(read_service(service(container={"Env": ["A=2"]})), image)
    assert config["Env"] == ["A=1", "A=2"]
    assert config["ExposedPorts"] == {"9/tcp": {}}
