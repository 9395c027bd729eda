"""From where containers are reached: what the engine says of the container that we run in ourselves."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest
from docker.api.client import APIClient
from docker.errors import NotFound

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes import docker_reach
from llmproxy.runtimes.docker_reach import Reach, addresses, find_reach, own_container_id
from llmproxy.runtimes.docker_state import read_snapshot
from llmproxy.runtimes.interface import Address

LOCAL = "unix:///var/run/docker.sock"


class Engine:
    """Knows one container."""

    def __init__(self, networks: dict[str, Any] | None) -> None:
        self.networks = networks
        self.asked: list[str] = []

    def inspect_container(self, container: str) -> dict[str, Any]:
        self.asked.append(container)
        if self.networks is None:
            raise NotFound("no such container")
        return {"NetworkSettings": {"Networks": self.networks}}

    def reach(self, host: str = LOCAL, address: str | None = None) -> Reach:
        return find_reach(cast(APIClient, self), host, address)


@pytest.fixture
def contained(monkeypatch: pytest.MonkeyPatch) -> None:
    """We run in a container."""
    monkeypatch.setattr(socket, "gethostname", lambda: "0123456789ab")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """We run in none."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(docker_reach, "own_container_id", lambda mountinfo, name: None)


@pytest.mark.usefixtures("bare")
def test_on_the_host_itself() -> None:
    """The engine is not asked: published ports are on this machine, or where the engine is."""
    engine = Engine({})
    assert engine.reach() == Reach("127.0.0.1", True)
    assert engine.reach("tcp://192.0.2.7:2376") == Reach("192.0.2.7", False)
    assert engine.reach("tcp://192.0.2.7:2376", "192.0.2.8") == Reach("192.0.2.8", False)
    assert engine.asked == []


@pytest.mark.usefixtures("contained")
@pytest.mark.parametrize(
    ("networks", "reach"),
    [
        # One of another engine: what is published here is all that we see of it.
        (None, Reach("127.0.0.1", True)),
        ({"host": {}}, Reach("127.0.0.1", True)),
        ({}, Reach("127.0.0.1", True)),
        # No network at all shares none.
        ({"none": {}}, Reach("127.0.0.1", True, {})),
        (
            {"models": {"NetworkID": "n1", "Gateway": "172.18.0.1"}, "other": {}},
            Reach("172.18.0.1", False, {"models": "n1", "other": ""}),
        ),
        ({"inner": {"NetworkID": "n2", "Gateway": ""}}, Reach("127.0.0.1", False, {"inner": "n2"})),
    ],
)
def test_in_a_container(networks: dict[str, Any] | None, reach: Reach) -> None:
    """Its networks are shared; what the host publishes is at the gateway of one of them."""
    engine = Engine(networks)
    assert engine.reach() == reach
    assert engine.asked == ["0123456789ab"]


@pytest.mark.usefixtures("contained")
def test_in_a_container_with_an_address_that_was_set() -> None:
    """The operator's word counts, and a remote engine's ports are not at our gateway."""
    networks = {"models": {"NetworkID": "n1", "Gateway": "172.18.0.1"}}
    assert Engine(networks).reach(LOCAL, "10.0.0.1").published == "10.0.0.1"
    assert Engine(networks).reach("tcp://192.0.2.7:2376").published == "192.0.2.7"


def test_a_mount_of_docker_that_names_no_container() -> None:
    """Only a mount from a container's own folder tells which one it is."""
    line = "600 577 8:1 /etc/hostname /etc/hostname rw - ext4 /dev/sda1 rw"
    assert own_container_id(line, "box") is None


def test_ports_that_are_not_published() -> None:
    """A binding without a port is none, and one of the host's loopback is not to be had from a container."""
    info = {
        "Id": "1" * 64,
        "Name": "/c",
        "State": {"Status": "running"},
        "Config": {},
        "NetworkSettings": {
            "Ports": {
                "8000/tcp": [
                    {"HostIp": "0.0.0.0", "HostPort": ""},
                    {"HostIp": "127.0.0.1", "HostPort": "9000"},
                    {"HostIp": "192.0.2.3", "HostPort": "9001"},
                ]
            }
        },
    }
    spec = BackendSpec("c", container="c", port=8000)
    inside = addresses(spec, read_snapshot(info), Reach("172.18.0.1", False, {"models": "n1"}))
    assert inside == (Address("192.0.2.3", 9001, "published"),)
    outside = addresses(spec, read_snapshot(info), Reach("127.0.0.1", True))
    assert outside == (Address("127.0.0.1", 9000, "published"), Address("192.0.2.3", 9001, "published"))
