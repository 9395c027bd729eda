"""What is told of a backend that runs as several tasks: by the admin API, ``why``, metrics and heartbeats."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmproxy.config.model import BackendSpec, Replicas
from llmproxy.engines.phases import Phase
from llmproxy.fleet.telling_tasks import Scaled, Tally, tell_tasks
from llmproxy.runtimes.interface import IRuntime
from llmproxy.web.metrics import Metrics
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.front import CODER, FrontCase
from tests.openapi import described
from tests.unit.test_api import Operator
from tests.unit.test_front import ADMIN, Client
from tests.unit.test_heartbeat import events

MANY = BackendSpec(
    route="many", runtime="swarm", service="m", models=("model",), replicas=Replicas(0, 4, 2, 5.0, 120.0)
)
NOWHERE = "no suitable node (insufficient resources on 3 nodes)"
ASKED = {"model": "model", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


class ToldCase(FrontCase):
    """A backend of several tasks beside a plain one."""

    swarm: FakeSwarm

    def setUp(self) -> None:
        super().setUp()
        self.build((MANY, CODER))
        self.swarm.at_once = False
        self.metrics = Metrics(self.fleet, "1")

    def runtimes(self) -> dict[str, IRuntime]:
        self.world = self.swarm = FakeSwarm()
        return {"docker": FakeReplicator(self.swarm), "swarm": FakeReplicator(self.swarm)}

    def get(self, path: str) -> Any:
        client = Operator(self.site)
        self.addCleanup(client.leave)
        status, _, body = client.get(b"/api/" + path.encode(), ADMIN).answer()
        self.assertEqual(status, 200, body)
        return json.loads(body)

    def replicas(self) -> dict[str, Any]:
        found = self.get("backends/many")["replicas"]
        assert isinstance(found, dict)
        return found

    def why(self) -> str:
        return "\n".join(self.get("backends/many/why")["why"])

    def runs(self, tasks: int = 1) -> None:
        """So many tasks run, and are healthy."""
        self.swarm.become_running("many")
        for _ in range(tasks - 1):
            self.swarm.run_task("many")
        self.swarm.say("many", replicas=tasks)
        self.servers.mode = "healthy"
        self.clock.advance(1)
        self.assertEqual(self.backend("many").state, "ready")

    def asks(self, times: int) -> list[Client]:
        return [self.client().post(b"/v1/chat/completions", ASKED) for _ in range(times)]

    def pass_time(self, seconds: int) -> None:
        for _ in range(2 * seconds):
            self.clock.advance(0.5)

    def samples(self) -> dict[tuple[str, ...], float]:
        """Those of tasks."""
        text = self.metrics.render("")[0].decode()
        return {
            (one.name.removeprefix("llmproxy_"), *one.labels.values()): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
            if family.name in ("llmproxy_tasks", "llmproxy_scalings")
        }


class ApiTests(ToldCase):
    """The admin API."""

    def test_one_that_is_off(self) -> None:
        """It has its settings and no tasks; what runs alone has neither."""
        view = self.get("backends/many")
        self.assertEqual((view["service"], view["container"], view["reason"]), ("m", None, None))
        self.assertEqual(
            view["replicas"],
            {
                "min": 0,
                "max": 4,
                "target_in_flight": 2,
                "wanted": 0,
                "ready": 0,
                "pending": None,
                "tasks": [],
            },
        )
        alone = self.get("backends/coder")
        self.assertEqual((alone["service"], alone["replicas"]), (None, None))
        self.assertEqual(len(self.get("backends")["backends"]), 2)

    def test_its_tasks(self) -> None:
        """Each with where it is, how it is, and what it answers."""
        self.runs(2)
        self.asks(1)
        self.servers.mode = "sick"
        self.swarm.run_task("many")
        self.swarm.leave_task("many", "t2")
        self.swarm.say("many", replicas=3, pending=NOWHERE)
        found = self.replicas()
        self.assertEqual((found["wanted"], found["ready"], found["pending"]), (3, 1, NOWHERE))
        self.assertEqual([task["id"] for task in found["tasks"]], ["t1", "t2", "t3"])
        self.assertEqual([task["state"] for task in found["tasks"]], ["ready", "leaving", "starting"])
        self.assertEqual([task["node"] for task in found["tasks"]], ["node1", "node2", "node3"])
        self.assertEqual(found["tasks"][2]["address"], "http://10.0.0.3:8000")
        self.assertEqual(sum(task["in_flight"] for task in found["tasks"]), 1)

    def test_the_first_is_placed(self) -> None:
        """While it starts it is told how many are wanted, and why none runs."""
        self.swarm.hold_starts = True
        self.asks(1)
        self.swarm.step("many", Phase("placing", reason=NOWHERE))
        view = self.get("backends/many")
        self.assertEqual((view["state"], view["phase"], view["reason"]), ("starting", "placing", NOWHERE))
        self.assertEqual((view["replicas"]["wanted"], view["replicas"]["pending"]), (1, NOWHERE))
        self.assertIn(f"0 of 1 tasks run; the first waits for a node: {NOWHERE}.", self.why())
        self.assertEqual(self.samples()["tasks", "many", "wanted"], 1)

    def test_secrets_in_reasons(self) -> None:
        """What an engine says is not shown with the keys that may stand in it."""
        self.runs()
        self.swarm.say("many", replicas=2, pending="exec: --api-key=0123456789abcdef: not found")
        self.assertRegex(str(self.replicas()["pending"]), "^exec: .*not found$")
        self.assertNotIn("0123456789abcdef", str(self.get("backends/many/why")))

    def test_scaling_is_an_event(self) -> None:
        """With its reason, as described."""
        self.runs()
        self.asks(5)
        self.pass_time(8)
        client = Operator(self.site)
        self.addCleanup(client.leave)
        _, _, body = client.get(b"/api/events?follow=0&backend=many", ADMIN).answer()
        told = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
        for event in told:
            described().hold_to("#/components/schemas/Event", event)
        scaled = [event for event in told if event.get("decision") == "scale out"]
        self.assertEqual(len(scaled), 1)
        self.assertIn("5 requests", scaled[0]["reason"])


class DiscoveryTests(ToldCase):
    """Where Prometheus finds the engines' own metrics."""

    def test_each_task(self) -> None:
        """Each that is healthy, by its own address; through the proxy there is one target."""
        self.runs(2)
        self.servers.mode = "sick"
        self.swarm.run_task("many")
        groups = self.get("prometheus?direct=1")
        self.assertEqual([one["targets"] for one in groups], [["10.0.0.1:8000"], ["10.0.0.2:8000"]])
        self.assertEqual([one["labels"]["task"] for one in groups], ["t1", "t2"])
        self.assertEqual(groups[1]["labels"]["node"], "node2")
        (through,) = self.get("prometheus")
        self.assertEqual(through["labels"]["__metrics_path__"], "/many/metrics")
        self.assertNotIn("task", through["labels"])


class WhyTests(ToldCase):
    """``why``."""

    def test_scaled_out_and_pending(self) -> None:
        """How many run, why the next one does not, and when it was decided that it shall."""
        self.runs(2)
        self.asks(9)
        self.pass_time(8)
        self.swarm.say("many", pending=NOWHERE)
        told = self.why()
        self.assertIn(f"2 of 3 tasks run; the third waits for a node: {NOWHERE}.", told)
        self.assertIn("There may be 1 to 4 tasks, one for each 2 requests (replicas).", told)
        self.assertIn("It was last scaled out ", told)
        self.assertIn("9 requests for 2 ", told)

    def test_one_that_is_off(self) -> None:
        """How many there may be, and nothing of tasks that there are not."""
        told = self.why()
        self.assertIn("There may be 1 to 4 tasks", told)
        self.assertNotIn("0 tasks", told)


class MetricsTests(ToldCase):
    """Prometheus."""

    def test_tasks(self) -> None:
        """By state, only of what runs as tasks; and how often it was scaled."""
        nothing = {"wanted": 0, "ready": 0, "starting": 0, "resting": 0, "leaving": 0}
        self.assertEqual(self.samples(), {("tasks", "many", name): 0 for name in nothing})
        self.runs(2)
        self.asks(9)
        self.pass_time(8)
        found = self.samples()
        expected = {**nothing, "wanted": 3, "ready": 2}
        self.assertEqual({name: found["tasks", "many", name] for name in expected}, expected)
        self.assertEqual(found["scalings_total", "many", "out"], 1)
        self.assertNotIn(("scalings_total", "many", "in"), found)


class HeartbeatTests(ToldCase):
    """Who waits for a stream."""

    def beat(self, key: bytes) -> dict[str, Any]:
        client = Client(self.site)
        self.addCleanup(client.leave)
        client.post(b"/v1/chat/completions", ASKED, b"x-api-key: %b\r\n" % key)
        self.swarm.step("many", Phase("placing", reason=NOWHERE))
        self.pass_time(9)
        body = client.take().partition(b"\r\n\r\n")[2]
        told = json.loads(events(body)[-1].removeprefix(b": llmproxy "))
        assert isinstance(told, dict)
        return told

    def test_the_reason_is_told(self) -> None:
        """While a node is looked for, to a key that may use everything."""
        self.swarm.hold_starts = True
        told = self.beat(b"client")
        self.assertEqual((told["phase"], told["reason"]), ("placing", NOWHERE))


def tally(wanted: int, *states: str, pending: str = "", settings: Replicas = MANY.replicas) -> list[str]:
    """What is told of so many."""
    return tell_tasks(Tally(settings, wanted, states, pending), 100.0)


@pytest.mark.parametrize(
    ("told", "first"),
    [
        (tally(1, "ready"), "1 task runs, which is all that are wanted."),
        (tally(3, "ready", "ready", "ready"), "3 tasks run."),
        (tally(2, "ready", "ready", "leaving"), "3 tasks run, and 2 are wanted."),
        (tally(3, "ready", "ready"), "2 of 3 tasks run; the third is on its way."),
        (tally(3, "ready"), "1 of 3 tasks runs; 2 more are on their way."),
        (
            tally(2, "ready", pending="no such image: x"),
            "1 of 2 tasks runs; the second does not run: no such image: x.",
        ),
        (
            tally(4, "ready", pending="no suitable node."),
            "1 of 4 tasks runs; 3 more wait for a node: no suitable node.",
        ),
        (
            tally(12, *["ready"] * 11, pending="no suitable node"),
            "11 of 12 tasks run; 1 more waits for a node: no suitable node.",
        ),
    ],
)
def test_how_many_run(told: list[str], first: str) -> None:
    """The first sentence, whatever the numbers."""
    assert told[0] == first


def test_how_each_is() -> None:
    """Those that get no requests are told, with why."""
    told = tally(4, "ready", "starting", "resting", "resting", "leaving")
    assert "1 of them is not healthy yet." in told
    assert "2 of them are given nothing new: about to leave, or silent." in told
    assert "1 of them is leaving." in told


def test_how_many_there_may_be() -> None:
    """By the settings."""
    assert tally(0, settings=Replicas())[-1] == "There may be 1 task (replicas)."
    assert tally(0, settings=Replicas(3, 3))[-1] == "There are to be 3 tasks (replicas)."
    assert tally(0, settings=Replicas(2, 3, 1))[-1] == (
        "There may be 2 to 3 tasks, one for each request (replicas)."
    )


def test_when_it_was_scaled() -> None:
    """Which way, how long ago, and why."""
    scaled = Scaled(40.0, "in", "fewer than 1 x 8 requests for a while: 1 tasks")
    assert tell_tasks(Tally(MANY.replicas, 1, ("ready",), "", scaled), 100.0)[-1] == (
        "It was last scaled in 1 m 0 s ago: fewer than 1 x 8 requests for a while: 1 tasks."
    )
