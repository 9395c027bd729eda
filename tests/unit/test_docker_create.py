"""Containers that llmproxy creates, and what it says when the engine does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from attrs import evolve
from docker.api.client import APIClient
from docker.errors import ImageNotFound

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker_census import Containers, list_containers
from llmproxy.runtimes.docker_create import container_body, create_container, verb_for
from llmproxy.runtimes.docker_reach import Reach
from llmproxy.runtimes.docker_state import read_snapshot
from llmproxy.runtimes.interface import StartRefused
from tests.engine_words import said

SPEC = BackendSpec("chat", image="vllm:1", args=("--model", "m"))
HERE = Reach("127.0.0.1", True)


class Engine:
    """Has one image, or none, and creates containers or complains."""

    def __init__(self, image: bool = True, complaint: str = "", runtimes: tuple[str, ...] = ()) -> None:
        self.image, self.complaint, self.runtimes = image, complaint, runtimes
        self.created: list[tuple[dict[str, Any], str]] = []
        self.done: list[tuple[Any, ...]] = []

    def inspect_image(self, image: str) -> dict[str, Any]:
        if not self.image:
            raise ImageNotFound("no such image")
        return {"Config": {"ExposedPorts": {"8000/tcp": {}}}}

    def info(self) -> dict[str, Any]:
        return {"Runtimes": {name: {} for name in self.runtimes}}

    def create_container_from_config(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        if self.complaint:
            raise said(409, self.complaint)
        self.created.append((body, name))
        return {"Id": "new"}

    def containers(self, **how: Any) -> list[dict[str, Any]]:
        self.done.append(("containers", how))
        return [{"Id": "1" * 64, "Names": ["/a", "/b/c"]}, {"Id": "2" * 64, "Names": None}]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words, **more: self.done.append((name, *words, more))

    @property
    def client(self) -> APIClient:
        return cast(APIClient, self)


def create(engine: Engine, spec: BackendSpec = SPEC) -> str:
    return create_container(engine.client, spec, HERE, "k", DockerSettings())


def test_it_is_created() -> None:
    """By its name, with the GPUs of the engine where that has any."""
    engine = Engine(runtimes=("runc", "nvidia"))
    assert create(engine) == "new"
    ((body, name),) = engine.created
    assert (name, body["Image"], body["Cmd"]) == ("llmproxy-chat", "vllm:1", ["--model", "m"])
    assert body["HostConfig"]["DeviceRequests"][0]["Count"] == -1
    plain = Engine()
    create(plain)
    assert "DeviceRequests" not in plain.created[0][0]["HostConfig"]


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        (("1", "2"), [{"Driver": "", "DeviceIDs": ["1", "2"], "Capabilities": [["gpu"]]}]),
        ((), None),
    ],
)
def test_its_gpus(gpus: tuple[str, ...], wanted: list[dict[str, Any]] | None) -> None:
    """Those that are named; none where it is said that it has none."""
    engine = Engine(runtimes=("nvidia",))
    create(engine, evolve(SPEC, gpus=gpus))
    assert engine.created[0][0]["HostConfig"].get("DeviceRequests") == wanted


@pytest.mark.parametrize(
    ("published", "bound"), [("127.0.0.1", "127.0.0.1"), ("192.0.2.7", "192.0.2.7"), ("gpu.example", "")]
)
def test_where_its_port_is_published(published: str, bound: str) -> None:
    """On the address at which the engine is reached; everywhere where that is a name."""
    body = container_body(SPEC, {}, backend_key=None, reach=Reach(published, False), nvidia=False)
    assert body["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": bound, "HostPort": ""}]}


def test_an_image_that_is_not_there() -> None:
    """The start is refused with the command that fetches it, and nothing is created."""
    engine = Engine(image=False)
    with pytest.raises(StartRefused, match="image vllm:1 is not there") as refused:
        create(engine)
    assert refused.value.hint == "docker pull vllm:1"
    assert engine.created == []


def test_an_engine_that_says_no() -> None:
    """Its own words are told."""
    with pytest.raises(StartRefused, match=r"'llmproxy-chat' cannot be created: .*name is already in use"):
        create(Engine(complaint="the name is already in use"))


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ("paused", ("unpause", "1" * 64, {})),
        ("restarting", ("restart", "1" * 64, {"timeout": 0})),
        ("exited", ("start", "1" * 64, {})),
        ("created", ("start", "1" * 64, {})),
    ],
)
def test_what_has_it_run(status: str, done: tuple[Any, ...]) -> None:
    """One that is paused goes on; one that waits for its restart policy does not wait any longer."""
    engine = Engine()
    snapshot = read_snapshot({"Id": "1" * 64, "Name": "/c", "State": {"Status": status}, "Config": {}})
    verb_for(snapshot)(engine.client)
    assert engine.done == [done]


def test_which_containers_there_are() -> None:
    """All of them, running or not, by all of their names."""
    engine = Engine()
    assert list_containers(engine.client) == Containers(("1" * 64, "2" * 64), frozenset({"a", "b/c"}))
    assert engine.done == [("containers", {"all": True})]
