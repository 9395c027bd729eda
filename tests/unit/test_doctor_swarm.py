"""What the doctor says of backends that are services of a Docker Swarm, and how it learns of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from llmproxy.config.model import BackendSpec, Replicas
from llmproxy.doctor.checks.docker import check_engine
from llmproxy.doctor.checks.swarm import check_swarm
from llmproxy.doctor.doctor_client import Finding
from llmproxy.doctor.facts import Facts, Image, SwarmFacts, SwarmNode, SwarmService
from llmproxy.doctor.gather.swarm import read_node, read_service, read_standing
from llmproxy.doctor.judge import judge
from tests.unit.test_doctor_checks import facts

IMAGE = "registry.local/vllm:v1"
SPEC = BackendSpec("many", runtime="swarm", service="llm_many", replicas=Replicas(0, 4))
MADE = BackendSpec(
    "made",
    runtime="swarm",
    service="llmproxy-made",
    image=IMAGE,
    args=("--shutdown-timeout", "20"),
    reservations={"NVIDIA-GPU": 1},
)
SERVICE = SwarmService(
    "llm_many",
    IMAGE,
    networks=("net1",),
    args=("--model", "m", "--shutdown-timeout=60"),
    grace=90.0,
)
NODES = (
    SwarmNode("n1", "box-1", manager=True),
    SwarmNode("n2", "box-2", manager=True, amounts={"NVIDIA-GPU": 2}),
    SwarmNode("n3", "box-3", manager=True, amounts={"NVIDIA-GPU": 1}),
)
SWARM = SwarmFacts(
    "manager",
    managers=3,
    nodes=NODES,
    services={"llm_many": SERVICE},
    reserves={"many": {"NVIDIA-GPU": 1}},
    overlays={"net1": "models"},
    joined=("net1",),
    pullable={IMAGE: True},
)


def seen(*specs: BackendSpec, present: bool = True, **changed: Any) -> Facts:
    """An installation whose Swarm is well, but for what is changed."""
    found = facts(*(specs or (SPEC,)))
    images = {IMAGE: Image(IMAGE, present)}
    return evolve(found, engine=evolve(found.engine, swarm=evolve(SWARM, **changed), images=images))


def found(what: Facts) -> dict[str, list[Finding]]:
    """The findings by their checks."""
    told: dict[str, list[Finding]] = {}
    for each in check_swarm(what):
        told.setdefault(each.check.removeprefix("swarm."), []).append(each)
    return told


def one(what: Facts, check: str) -> Finding:
    """The only finding of that check."""
    (finding,) = found(what)[check]
    return finding


def service(**changed: Any) -> dict[str, SwarmService]:
    """The service, with that changed."""
    return {"llm_many": evolve(SERVICE, **changed)}


def test_one_that_is_well() -> None:
    """Nothing is to be done, and each check says what it has seen."""
    told = found(seen())
    assert {each.status for several in told.values() for each in several} == {"ok"}
    assert set(told) == {"manager", "services", "resources", "images", "networks", "ends"}
    assert "3 tasks would fit" in told["resources"][0].finding
    assert "the network models" in told["networks"][0].finding
    assert any(each.check == "swarm.manager" for each in judge(seen()))


def test_no_backend_runs_there() -> None:
    """Then nothing is said of it."""
    assert list(check_swarm(facts())) == []
    assert list(check_swarm(evolve(seen(), settings=evolve(seen().settings, config=None)))) == []


def test_an_engine_that_is_away() -> None:
    """It is needed, as for containers."""
    away = evolve(seen(), engine=evolve(seen().engine, state="refused"))
    away = evolve(away, compose=evolve(away.compose, file=None))
    assert one(away, "manager").status == "skipped"
    (engine,) = check_engine(away)
    assert engine.status == "fail"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("inactive", "docker swarm init"),
        ("worker", "docker node promote"),
        ("locked", "docker swarm unlock"),
        ("error", "docker info"),
    ],
)
def test_an_engine_that_is_no_manager(state: str, words: str) -> None:
    """It cannot be used, and what has to be done depends on what it is."""
    finding = one(seen(state=state, error="x is wrong", nodes=()), "manager")
    assert (finding.status, words in str(finding.fix)) == ("fail", True)
    assert "x is wrong" in finding.finding


def test_a_manager_without_the_others() -> None:
    """Without most of them it says nothing."""
    finding = one(seen(nodes=(), error="the swarm does not have a leader"), "manager")
    assert finding.status == "fail"
    assert "does not have a leader" in finding.finding


def test_fewer_than_three_managers() -> None:
    """It works, until that one is away."""
    assert "one manager" in one(seen(managers=1), "managers").finding
    two = one(seen(managers=2, nodes=NODES[:2]), "managers")
    assert (two.status, "three machines" in str(two.fix)) == ("warn", True)


def test_a_node_that_is_down() -> None:
    """It is named."""
    nodes = (*NODES[:2], evolve(NODES[2], state="down"))
    assert "box-3" in one(seen(nodes=nodes), "nodes").finding


def test_services() -> None:
    """Missing, nearly right, of the wrong mode, or to be made."""
    gone = one(seen(services={}), "services")
    assert (gone.status, "docker stack deploy" in str(gone.fix)) == ("fail", True)
    near = one(seen(evolve(SPEC, service="many")), "services")
    assert "'llm_many'" in str(near.fix)
    everywhere = one(seen(services=service(mode="global")), "services")
    assert (everywhere.status, "global" in everywhere.finding) == ("fail", True)
    made = one(seen(MADE), "services")
    assert (made.status, "to be made" in made.finding) == ("ok", True)


def test_what_no_node_has() -> None:
    """What a task reserves has to be advertised by one node at least, and enough of it."""
    none = one(seen(reserves={"many": {"vram-gib": 24}}), "resources")
    assert (none.status, "node-generic-resources" in str(none.fix)) == ("fail", True)
    less = one(seen(reserves={"many": {"NVIDIA-GPU": 4}}), "resources")
    assert (less.status, "more than 2" in less.finding) == ("fail", True)
    drained = (NODES[0], evolve(NODES[1], availability="drain"), evolve(NODES[2], state="down"))
    assert one(seen(nodes=drained), "resources").status == "fail"


def test_constraints() -> None:
    """A node has to be one that they allow, and to take tasks; resources count there only."""
    assert "allow no node" in one(seen(placeable={"many": ()}), "nodes").finding
    away = (*NODES[:2], evolve(NODES[2], availability="drain"))
    assert "(box-3)" in one(seen(nodes=away, placeable={"many": ("n3",)}), "nodes").finding
    finding = one(seen(placeable={"many": ("n1",)}), "resources")
    assert (finding.status, "that its constraints allow" in finding.finding) == ("fail", True)


def test_images() -> None:
    """A registry has it, or each node must; one that does not answer tells nothing."""
    assert one(seen(pullable={IMAGE: False}), "images").status == "warn"
    assert one(seen(pullable={IMAGE: False}, nodes=NODES[:1]), "images").status == "ok"
    assert one(seen(pullable={IMAGE: None}), "images").status == "skipped"
    assert one(seen(pullable={IMAGE: False}, present=False), "images").status == "fail"
    assert "images" not in found(seen(pullable={}))


def test_how_tasks_are_reached() -> None:
    """By a network in common, by a port of each task's node, by any node's, or not at all."""
    apart = seen(joined=("other",))
    assert (one(apart, "networks").status, "models" in one(apart, "networks").finding) == ("fail", True)
    assert "docker network connect models" in str(one(apart, "networks").fix)
    by_host = seen(joined=None, services=service(ports=((8000, "host"), (8000, "ingress"))))
    assert one(by_host, "networks").status == "ok"
    by_mesh = one(seen(joined=None, services=service(ports=((8000, "ingress"),))), "networks")
    assert (by_mesh.status, "any task" in by_mesh.finding) == ("warn", True)
    from_host = one(seen(joined=None), "networks")
    assert (from_host.status, "models" in from_host.finding) == ("warn", True)
    assert "networks" not in found(seen(MADE))


def test_how_tasks_end() -> None:
    """vLLM finishes its answers when it is told to and has the time."""
    breaks = one(seen(services=service(args=("--model", "m"))), "ends")
    assert (breaks.status, "--shutdown-timeout" in str(breaks.fix)) == ("warn", True)
    short = one(seen(services=service(grace=10.0)), "ends")
    assert (short.status, "killed 10 s after" in short.finding) == ("warn", True)
    assert one(seen(MADE), "ends").status == "ok"
    assert one(seen(evolve(MADE, args=("--shutdown-timeout=30",))), "ends").status == "warn"
    assert "ends" not in found(seen(evolve(SPEC, engine="generic")))


def test_every_finding_has_a_fix() -> None:
    """Where something is wrong it is said what to do."""

    def all_of() -> Iterator[Finding]:
        for changed in (
            {"state": "pending", "nodes": ()},
            {"managers": 1, "joined": (), "services": {}, "pullable": {IMAGE: False}},
            {"reserves": {"many": {"x": 1}}, "services": service(args=(), mode="global")},
        ):
            yield from check_swarm(seen(**changed))

    wrong = [each for each in all_of() if each.status in ("warn", "fail")]
    assert len(wrong) > 5
    assert all(each.fix for each in wrong)


# -- what is read -------------------------------------------------------------------------------------


def test_how_an_engine_stands() -> None:
    """Manager, worker, or Docker's word for neither."""
    manager = {"LocalNodeState": "active", "ControlAvailable": True, "Managers": 3, "Error": ""}
    assert read_standing(manager) == SwarmFacts("manager", managers=3)
    assert read_standing({"LocalNodeState": "active", "ControlAvailable": False}).state == "worker"
    assert read_standing({"LocalNodeState": "error", "Error": "no\n leader"}) == SwarmFacts(
        "error", "no leader"
    )
    assert read_standing({}).state == "inactive"


def test_a_node() -> None:
    """Its generic resources by kind, named ones counted."""
    info = {
        "ID": "n1",
        "Spec": {"Role": "manager", "Availability": "drain"},
        "Status": {"State": "ready"},
        "Description": {
            "Hostname": "box",
            "Resources": {
                "NanoCPUs": 2000000000,
                "MemoryBytes": 8_000_000_000,
                "GenericResources": [
                    {"NamedResourceSpec": {"Kind": "NVIDIA-GPU", "Value": "GPU-1"}},
                    {"NamedResourceSpec": {"Kind": "NVIDIA-GPU", "Value": "GPU-2"}},
                    {"DiscreteResourceSpec": {"Kind": "vram-gib", "Value": 48}},
                ],
            },
        },
    }
    node = read_node(info)
    assert node == SwarmNode("n1", "box", "ready", "drain", True, {"NVIDIA-GPU": 2, "vram-gib": 48})
    assert not node.usable
    assert read_node({"ID": "n2"}).name == "n2"


def test_a_service() -> None:
    """Where its tasks are reached, what they run, and how long they have to end."""
    info = {
        "ID": "s",
        "Spec": {
            "Name": "llm_many",
            "Mode": {"Replicated": {"Replicas": 0}},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "vllm:1@sha256:0",
                    "Command": ["vllm", "serve"],
                    "Args": ["--port=8001"],
                    "Env": ["A=b=c", "EMPTY"],
                    "StopGracePeriod": 90_000_000_000,
                },
                "Networks": [{"Target": "net1"}],
            },
            "EndpointSpec": {
                "Ports": [
                    {"Protocol": "tcp", "TargetPort": 8001, "PublishMode": "host"},
                    {"TargetPort": 8002},
                    {"Protocol": "udp", "TargetPort": 53},
                ]
            },
        },
    }
    assert read_service(info) == SwarmService(
        "llm_many",
        "vllm:1@sha256:0",
        "replicated",
        ("net1",),
        ((8001, "host"), (8002, "ingress")),
        ("vllm", "serve", "--port=8001"),
        {"A": "b=c", "EMPTY": ""},
        90.0,
    )
    assert read_service({"Spec": {"Mode": {"Global": {}}}}).mode == "global"
