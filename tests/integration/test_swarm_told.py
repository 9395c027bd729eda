"""What an operator is told of a service of a real Swarm: its tasks, one without a node, and by the doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import ADMIN, Proxy, demo
from tests.integration.swarm_proxy import services_of
from tests.integration.swarm_world import SwarmWorld
from tests.integration.test_doctor import by_check, doctor
from tests.integration.world import until
from tests.openapi import described

pytestmark = pytest.mark.docker

FULL = "no suitable node (max replicas per node limit exceed)"


def held(proxy: Proxy, path: str) -> Any:
    """An answer of the admin API that is as described."""
    found = proxy.ask("GET", f"/api/{path}", key=ADMIN)
    fields = {name.lower(): value for name, value in found.headers}
    described().hold("GET", f"/api/{path}", found.status, fields, found.body)
    return found.json


def test_tasks_and_one_that_finds_no_node(front: Front) -> None:
    """Each task with its node and address; in the Swarm's words why the fourth does not run."""
    settings = {"replicas": {"min": 4, "max": 4}, "options": ("--replicas-max-per-node", "1")}
    proxy = front({"a": demo(idle="0s", **settings)})
    proxy.act("a", "start")

    def three() -> bool:
        replicas = held(proxy, "backends/a")["replicas"]
        return replicas["ready"] == 3 and replicas["pending"] is not None

    until(three, 40, 0.2)
    replicas = held(proxy, "backends/a")["replicas"]
    assert (replicas["wanted"], replicas["pending"]) == (4, FULL)
    swarm = services_of(proxy).swarm
    assert {task["id"] for task in replicas["tasks"]} == {one.id for one in services_of(proxy).running("a")}
    assert {task["state"] for task in replicas["tasks"]} == {"ready"}
    assert len({task["address"] for task in replicas["tasks"]}) == len(swarm.nodes)
    told = held(proxy, "backends/a/why")["why"]
    assert f"3 of 4 tasks run; the fourth waits for a node: {FULL}." in told
    metrics = proxy.ask("GET", "/metrics", key=None).body.decode()
    assert 'llmproxy_tasks{backend="a",state="wanted"} 4.0' in metrics
    assert 'llmproxy_tasks{backend="a",state="ready"} 3.0' in metrics


def test_the_first_task_finds_no_node(front: Front) -> None:
    """While it is looked for, what waits is told so in the Swarm's words."""
    proxy = front({"a": demo(options=("--constraint", "node.labels.place==nowhere"))})
    proxy.act("a", "start", "?wait=0")
    until(lambda: held(proxy, "backends/a")["replicas"]["pending"], 20, 0.2)
    view = held(proxy, "backends/a")
    assert view["state"] == "starting"
    assert view["reason"] == view["replicas"]["pending"]
    assert view["reason"].startswith("no suitable node (scheduling constraints not satisfied")
    assert (
        f"0 of 1 tasks run; the first waits for a node: {view['reason']}."
        in held(proxy, "backends/a/why")["why"]
    )


def test_the_doctor(swarm: SwarmWorld, front: Front, tmp_path: Path) -> None:
    """From beside the manager: what is well there, and what is not."""
    well = demo(engine="vllm")
    greedy = demo(options=("--generic-resource", "NVIDIA-GPU=2"))
    nowhere = demo(options=("--constraint", "node.labels.place==nowhere"))
    proxy = front({"well": well, "greedy": greedy, "nowhere": nowhere})
    environment = {
        **proxy.environ(),
        "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}",
        "PATH": os.environ["PATH"],
    }
    done = doctor(proxy.folder, environment, "--config", str(proxy.file), "--json")
    found = by_check(done.stdout)
    assert found["swarm.manager"][0]["status"] == "ok"
    assert "3 nodes" in found["swarm.manager"][0]["finding"]
    assert "one manager" in found["swarm.managers"][0]["finding"]
    assert all(one["status"] == "ok" for one in found["swarm.services"])
    (resources,) = found["swarm.resources"]
    assert (resources["status"], "advertises any" in resources["finding"]) == ("fail", True)
    (nodes,) = found["swarm.nodes"]
    assert "Route nowhere: its constraints allow no node." in nodes["finding"]
    # The image is built here, and on each node; no registry has it.
    assert {one["status"] for one in found["swarm.images"]} <= {"warn", "skipped"}
    # As seen from the host; a proxy in a container may be on the network of the services.
    assert {one["status"] for one in found["swarm.networks"]} == {"warn"}
    assert swarm.network in found["swarm.networks"][0]["finding"]
    assert "--shutdown-timeout" in found["swarm.ends"][0]["fix"]
