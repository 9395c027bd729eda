"""What a Swarm's manager says of services, tasks and nodes."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Exit
from llmproxy.runtimes.swarm_state import read_node, read_service, read_task, service_name
from tests.unit.swarm_cases import picture, service, stamp, task

# As an engine of 20.10 tells it, but for what is not read.
RUNNING: dict[str, Any] = {
    "ID": "hq2oagt35t9nb78ravt6gp6ju",
    "Version": {"Index": 40},
    "CreatedAt": "2026-11-26T20:32:57.316730382Z",
    "Spec": {"ContainerSpec": {"Image": "i"}, "ForceUpdate": 0},
    "ServiceID": "9imdvc1no0rhy2w23iuit2no4",
    "Slot": 2,
    "NodeID": "ogo6szpghdmncxexx6qz017oo",
    "Status": {
        "Timestamp": "2026-11-26T20:32:58.47431384Z",
        "State": "running",
        "Message": "started",
        "ContainerStatus": {"ContainerID": "2f524cc53eb6", "PID": 32323, "ExitCode": 0},
        "PortStatus": {
            "Ports": [
                {"Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 32768, "PublishMode": "host"},
                {"Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 32768, "PublishMode": "host"},
                {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 32769, "PublishMode": "host"},
                {"Protocol": "tcp", "TargetPort": 9000, "PublishedPort": 9000, "PublishMode": "ingress"},
            ]
        },
    },
    "DesiredState": "running",
    "NetworksAttachments": [
        {"Network": {"ID": "n1", "Spec": {"Name": "ov"}}, "Addresses": ["10.0.1.3/24"]},
        {"Network": {"ID": "n0", "Spec": {"Name": "ingress", "Ingress": True}}, "Addresses": ["10.0.0.9/24"]},
        {"Network": {"ID": "n2", "Spec": {"Name": "host"}}},
    ],
}


def test_a_running_task() -> None:
    """Its node, its container, the ports that are its own, and its addresses are read."""
    found = read_task(RUNNING)
    assert (found.slot, found.container, found.code) == (2, "2f524cc53eb6", 0)
    assert found.ports == ((8000, 32768),)
    assert [(each.id, each.address, each.ingress) for each in found.attachments] == [
        ("n1", "10.0.1.3", False),
        ("n0", "10.0.0.9", True),
    ]
    assert found.on_host
    assert (found.over, found.wanted, found.unplaced, found.runs) == (False, True, False, True)
    assert found.changed_ns - found.created_ns == 1_157_583_458


@pytest.mark.parametrize(
    ("state", "desired", "error", "code", "by_itself", "ran", "exit"),
    [
        ("failed", "shutdown", "task: non-zero exit (3)", 3, True, True, Exit(3)),
        ("failed", "shutdown", "task: unhealthy container", 143, True, True, Exit(143)),
        ("failed", "shutdown", "starting container failed: no such file", 127, True, False, Exit(127)),
        ("complete", "shutdown", "", 0, True, True, Exit(0)),
        ("rejected", "shutdown", "No such image: i:1", None, True, False, Exit()),
        ("shutdown", "shutdown", "", 143, False, False, Exit(143)),
        ("shutdown", "remove", "", 0, False, False, Exit()),
        ("orphaned", "shutdown", "", 0, False, False, Exit()),
    ],
)
def test_ends(
    state: str, desired: str, error: str, code: int | None, by_itself: bool, ran: bool, exit: Exit
) -> None:
    """An end by itself is told from one that Swarm wished, and one that ran from one that never did."""
    more: dict[str, Any] = {"ran": False} if code is None else {"code": code}
    found = task("t", state, desired, error=error, **more)
    assert found.over
    assert found.told_over
    assert not found.wanted
    assert (found.ended_by_itself, found.ran, found.exit) == (by_itself, ran, exit)


def test_told_by_our_own_engine() -> None:
    """A container that has ended is over before Swarm says so; it is Swarm's doing where it was unwanted."""
    died = evolve(task("t"), died=Exit(137, True))
    assert (died.over, died.told_over, died.runs, died.ended_by_itself) == (True, False, False, True)
    assert died.exit == Exit(137, True)
    assert not evolve(died, desired="shutdown").ended_by_itself
    assert picture(died).running == ()
    assert evolve(task("t", "failed", "shutdown", code=137), oom=True).exit == Exit(137, True)


def test_a_service() -> None:
    """Its count, its labels, what it publishes, and what its tasks are made of are read."""
    ports = [
        {"Protocol": "tcp", "TargetPort": 8000, "PublishedPort": 30000, "PublishMode": "ingress"},
        {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53},
        {"Protocol": "tcp", "TargetPort": 9000, "PublishMode": "host"},
    ]
    info = service(3, {"llmproxy.managed": "true"}, EndpointSpec={"Ports": ports})
    info["Endpoint"] = {"Ports": ports}
    found = read_service(info)
    assert (found.id, found.name, found.version, found.replicas, found.managed) == ("s1", "m", 7, 3, True)
    assert found.ports == ((8000, 30000),)
    assert found.targets == (8000, 9000)
    again = read_service({**info, "Version": {"Index": 8}})
    assert again.template == found.template
    assert read_service(service(3, container={"Image": "other"})).template != found.template
    assert read_service(service(None)).replicas is None
    assert read_service(service(None)).mode == "Global"
    bare = service()
    bare["Spec"]["Mode"] = {"Replicated": {}}
    assert read_service(bare).replicas == 1


@pytest.mark.parametrize(
    ("status", "manager", "address", "down"),
    [
        ({"State": "ready", "Addr": "10.0.0.4"}, None, "10.0.0.4", False),
        ({"State": "down", "Addr": "10.0.0.4"}, None, "10.0.0.4", True),
        ({"State": "ready", "Addr": "0.0.0.0"}, "10.0.0.5:2377", "10.0.0.5", False),
        ({"State": "ready", "Addr": "127.0.0.1"}, None, "127.0.0.1", False),
        ({"State": "ready", "Addr": "0.0.0.0"}, None, "", False),
        ({"State": "ready", "Addr": ""}, "[fd00::5]:2377", "fd00::5", False),
        ({"State": "unknown"}, None, "", False),
    ],
)
def test_a_node(status: dict[str, str], manager: str | None, address: str, down: bool) -> None:
    """Its address is the one that other machines have; only a node that is down is lost."""
    found = read_node(
        {
            "ID": "n",
            "Description": {"Hostname": "h"},
            "Status": status,
            **({"ManagerStatus": {"Addr": manager}} if manager else {}),
        }
    )
    assert (found.name, found.address, found.down) == ("h", address, down)


def test_names() -> None:
    """The service is the one that is named, else one that is called after the route."""
    assert service_name(BackendSpec("a", runtime="swarm", service="stack_a")) == "stack_a"
    assert service_name(BackendSpec("a", runtime="swarm", image="i")) == "llmproxy-a"


def test_why_it_waits() -> None:
    """The newest task's own words are the reason; in a failed one's place, those of that one."""
    room = "no suitable node (insufficient resources on 3 nodes)"
    assert picture(task("a"), task("b", "pending", error=room, ran=False), replicas=2).pending == room
    failed = task("a", "rejected", "shutdown", error="No such image: i:1", ran=False)
    assert picture(failed, task("b", "pending", "ready", 2, ran=False)).pending == "No such image: i:1"
    assert picture(failed, task("b", "preparing", second=2, ran=False)).pending == ""
    assert picture(task("a")).pending == ""
    assert picture(task("a", "running", "remove"), replicas=0).pending == ""


STATES = [
    *("new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"),
    *("complete", "shutdown", "failed", "rejected", "orphaned"),
]
TASKS = st.lists(
    st.builds(
        lambda state, desired, second, node, slot: (state, desired, second, node, slot),
        st.sampled_from(STATES),
        st.sampled_from(["ready", "running", "shutdown", "remove"]),
        st.integers(0, 59),
        st.sampled_from("abc"),
        st.integers(1, 3),
    ),
    max_size=6,
)


@given(TASKS, st.integers(0, 4), st.sampled_from(["", "a", "abc"]))
def test_pictures(those: list[Any], replicas: int, down: str) -> None:
    """What runs is alive, nothing on a lost node is, and who is settled waits for nothing."""
    tasks = [
        task(f"t{number}", state, desired, second, node=node, slot=slot)
        for number, (state, desired, second, node, slot) in enumerate(those)
    ]
    found = picture(*tasks, replicas=replicas, down=down)
    assert set(found.running) <= set(found.alive)
    assert not any(each.over or each.node in down for each in found.alive)
    assert list(found.running) == sorted(found.running, key=lambda each: (each.created_ns, each.id))
    if found.settled:
        assert found.pending == ""
        assert len(found.running) == len(found.alive) == replicas


def test_stamps() -> None:
    """The cases themselves are right."""
    assert stamp(1.5) == "2026-11-26T20:33:01.500000000Z"
