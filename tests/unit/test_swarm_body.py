"""The service that llmproxy creates, and what it changes of those of others."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.swarm_body import is_outdated, mount_of, service_body, service_hash, with_replicas
from llmproxy.runtimes.swarm_labels import RUN
from llmproxy.runtimes.swarm_state import read_service

SPEC = BackendSpec(
    "m",
    runtime="swarm",
    image="vllm/vllm-openai:v1",
    args=("--model", "x"),
    environment={"HF_TOKEN": "secret"},
    volumes=("/srv/llm:/models:ro",),
    reservations={"NVIDIA-GPU": 2},
    constraints=("node.labels.gpu == a100",),
    stop_grace=45.0,
)


def body(spec: BackendSpec = SPEC, **more: Any) -> dict[str, Any]:
    """What is asked of the manager."""
    return service_body(spec, **{"backend_key": "k", "networks": ("models",), "port": None, **more})


def test_what_is_created() -> None:
    """No task at first; each has its resources, its time to end, and memory that its workers share."""
    made = body()
    template, container = made["TaskTemplate"], made["TaskTemplate"]["ContainerSpec"]
    assert made["Name"] == "llmproxy-m"
    assert made["Mode"] == {"Replicated": {"Replicas": 0}}
    assert made["EndpointSpec"] == {"Mode": "dnsrr"}
    assert set(container["Env"]) == {"HF_TOKEN=secret", "VLLM_API_KEY=k"}
    assert container["StopGracePeriod"] == 45_000_000_000
    assert container["Mounts"] == [
        {"Type": "bind", "Source": "/srv/llm", "Target": "/models", "ReadOnly": True},
        {"Type": "tmpfs", "Target": "/dev/shm"},
    ]
    assert template["Resources"]["Reservations"]["GenericResources"] == [
        {"DiscreteResourceSpec": {"Kind": "NVIDIA-GPU", "Value": 2}}
    ]
    assert template["Networks"] == [{"Target": "models"}]
    assert template["RestartPolicy"]["Condition"] == "any"
    assert "secret" not in str(made["Labels"])


def test_where_no_network_leads_to_it() -> None:
    """Each node publishes a port of its own choice for each of its tasks."""
    ports = body(networks=(), port=8000)["EndpointSpec"]["Ports"]
    assert ports == [{"Protocol": "tcp", "TargetPort": 8000, "PublishMode": "host"}]


def test_other_engines_get_no_key() -> None:
    """Nor memory that only vLLM shares."""
    made = body(evolve(SPEC, engine="generic"))["TaskTemplate"]["ContainerSpec"]
    assert made["Env"] == ["HF_TOKEN=secret"]
    assert len(made["Mounts"]) == 1
    own = body(evolve(SPEC, environment={"VLLM_API_KEY": "own"}))["TaskTemplate"]["ContainerSpec"]
    assert own["Env"] == ["VLLM_API_KEY=own"]


def test_what_makes_it_outdated() -> None:
    """Everything that it is made of, and nothing else; never a service that somebody else has created."""
    made = read_service({"ID": "s", "Spec": body()})
    assert not is_outdated(SPEC, made, "k")
    assert not is_outdated(evolve(SPEC, idle=1.0, priority=3), made, "k")
    changes: list[dict[str, Any]] = [
        {"args": ("--model", "y")},
        {"environment": {}},
        {"reservations": {"NVIDIA-GPU": 1}},
        {"constraints": ()},
        {"networks": ("other",)},
        {"image": "vllm/vllm-openai:v2"},
    ]
    for change in changes:
        assert is_outdated(evolve(SPEC, **change), made, "k"), change
    assert is_outdated(SPEC, made, "other key")
    theirs = body()
    del theirs["Labels"]["llmproxy.managed"]
    assert not is_outdated(evolve(SPEC, args=()), read_service({"ID": "s", "Spec": theirs}), "k")
    assert len(service_hash(SPEC, "k")) == 32


@pytest.mark.parametrize(
    ("volume", "mount"),
    [
        ("/srv:/data", {"Type": "bind", "Source": "/srv", "Target": "/data"}),
        ("/srv:/data:ro", {"Type": "bind", "Source": "/srv", "Target": "/data", "ReadOnly": True}),
        ("cache:/root/.cache", {"Type": "volume", "Source": "cache", "Target": "/root/.cache"}),
        ("/data", {"Type": "volume", "Target": "/data"}),
    ],
)
def test_mounts(volume: str, mount: dict[str, Any]) -> None:
    """Written as for a container."""
    assert mount_of(volume) == mount


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text(max_size=12), JSON, max_size=5),
    st.dictionaries(st.text(max_size=12), st.text(max_size=5), max_size=3),
    st.integers(0, 100),
)
def test_nothing_else_is_changed(rest: dict[str, Any], labels: dict[str, str], replicas: int) -> None:
    """Of whatever a service says only the count changes and llmproxy's own labels do."""
    spec = {**rest, "Labels": labels, "Mode": {"Replicated": {"Replicas": 1, "Later": "kept"}}}
    before = repr(spec)
    begun = with_replicas(spec, replicas, {"llmproxy.used.me": "1@2"}, run="r")
    assert begun["Mode"] == {"Replicated": {"Replicas": replicas, "Later": "kept"}}
    assert begun["Labels"] == {**labels, "llmproxy.used.me": "1@2", RUN: "r"}
    ended = with_replicas(begun, 0, {"llmproxy.used.me": None}, run="")
    assert ended["Labels"] == {label: text for label, text in labels.items() if label != RUN}
    for changed in (begun, ended):
        others = {name: value for name, value in changed.items() if name not in ("Labels", "Mode")}
        assert others == {name: value for name, value in rest.items() if name not in ("Labels", "Mode")}
    assert repr(spec) == before
