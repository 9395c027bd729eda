"""The simulation of a Swarm: its parts, and a tiny run of the whole with llmproxy's own fleet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve

from bench.simulate_swarm import main
from bench.swarm.clock import Account, HeapClock, ProxyClock
from bench.swarm.cluster import NOTICED, Cluster, Node, Service
from bench.swarm.demand import Demand, Model, models
from bench.swarm.world import Outcome, Setting, World

TINY = Setting(nodes=8, models=40, rate=2.0, minutes=6, warm=2, idle=60.0, drift=30.0, mtbf=0.0)


def cluster(*rooms: int, **sizes: int) -> Cluster:
    """Nodes of these sizes, and services of models of those."""
    found = Cluster(HeapClock(), [Node(f"n{each}", room, room) for each, room in enumerate(rooms)], 1)
    found.add(Model(name, room) for name, room in sizes.items())
    return found


def states(service: Service) -> list[str]:
    """Of its tasks."""
    return [task.state for task in service.tasks.values()]


def placed(service: Service) -> list[str | None]:
    """Where its tasks are."""
    return [task.node.name if task.node else None for task in service.tasks.values()]


# -- the clock --------------------------------------------------------------------------------------


def test_calls_come_in_the_order_of_their_times() -> None:
    """Each at its own time, also those that others add, put off, bring forward or cancel meanwhile."""
    clock = HeapClock(100.0)
    heard: list[tuple[str, float]] = []

    def hear(name: str) -> None:
        heard.append((name, clock.seconds()))

    late = clock.callLater(5, hear, "late")
    clock.callLater(3, lambda: clock.callLater(0.5, hear, "added"))
    soon = clock.callLater(9, hear, "soon")
    off = clock.callLater(1, hear, "off")
    never = clock.callLater(2, hear, "never")
    never.cancel()
    soon.reset(1.5)
    off.delay(6)
    clock.advance(4)
    late.delay(1)
    assert sorted(call.getTime() for call in clock.getDelayedCalls()) == [106.0, 107.0]
    clock.advance(10)
    assert heard == [("soon", 101.5), ("added", 103.5), ("late", 106.0), ("off", 107.0)]
    assert clock.seconds() == 114.0
    assert clock.getDelayedCalls() == []


def test_what_the_proxy_asked_for_is_on_its_account() -> None:
    """Its timers, and nothing of what the simulation does between."""
    clock, account = HeapClock(), Account()
    turns: list[int] = []
    ProxyClock(clock, account).callLater(1, turns.append, 1)
    clock.callLater(2, turns.append, 2)
    clock.advance(3)
    assert turns == [1, 2]
    assert account.calls == Counter({"timers": 1})
    assert account.inside("news", lambda: account.switch("simulation")) == "news"
    account.clear()
    assert not account.calls


# -- demand -----------------------------------------------------------------------------------------


def test_demand_obeys_zipf() -> None:
    """The first is asked for twice as often as the second, and about as often as is said."""
    those = models(1000, 1, 320)
    demand = Demand(those, 50.0, 1.0, 1)
    assert demand.share(0) == pytest.approx(2 * demand.share(1))
    picked = Counter(demand.pick().name for _ in range(20_000))
    assert picked[demand.order[0].name] / 20_000 == pytest.approx(demand.share(0), rel=0.1)
    assert sum(demand.pause() for _ in range(20_000)) / 20_000 == pytest.approx(1 / 50, rel=0.05)
    assert 0 < demand.seconds() <= 120.0


def test_ranks_drift() -> None:
    """Models change places, and none is lost."""
    those = models(100, 1, 320)
    demand = Demand(those, 1.0, 1.0, 1)
    before = list(demand.order)
    for _ in range(20):
        demand.drift()
    assert demand.order != before
    assert sorted(one.name for one in demand.order) == sorted(one.name for one in those)


def test_no_model_is_larger_than_the_largest_node() -> None:
    """It would wait for ever."""
    assert {one.room for one in models(500, 1, 24)} == {8, 16, 24}
    assert models(50, 1, 320) == models(50, 1, 320) != models(50, 2, 320)


# -- the Swarm --------------------------------------------------------------------------------------


def test_tasks_are_spread() -> None:
    """To the node with the fewest tasks of the service, then with the fewest at all."""
    swarm = cluster(80, 80, a=20, b=20)
    swarm.scale(swarm.services["a"], 2)
    assert sorted(map(str, placed(swarm.services["a"]))) == ["n0", "n1"]
    swarm.scale(swarm.services["b"], 1)
    swarm.scale(swarm.services["a"], 3)
    assert swarm.free == 80
    assert placed(swarm.services["a"])[2] != placed(swarm.services["b"])[0]


def test_what_fits_nowhere_is_pending_until_it_does() -> None:
    """With Swarm's reason; the room of one that ends is used at once."""
    swarm = cluster(40, 40, a=30, b=30, c=30)
    for service in swarm.services.values():
        swarm.scale(service, 1)
    waiting = swarm.services["c"]
    assert states(waiting) == ["pending"]
    assert swarm.reason(waiting) == "no suitable node (insufficient resources on 2 nodes)"
    clock = swarm._clock
    clock.advance(300)
    assert states(swarm.services["a"]) == ["healthy"]
    swarm.scale(swarm.services["a"], 0)
    assert states(swarm.services["a"]) == ["stopping"]
    clock.advance(60)
    assert (states(swarm.services["a"]), states(waiting)) == ([], ["running"])
    assert swarm.reason(waiting) == ""
    clock.advance(300)
    assert states(waiting) == ["healthy"]


def test_a_task_that_runs_answers_when_it_has_loaded() -> None:
    """Not before, and at once from then on; weights are fetched once for each node."""
    swarm = cluster(40, a=30)
    service = swarm.services["a"]
    told: list[str] = []
    swarm.changed = lambda _: told.append(states(service)[0] if service.tasks else "ended")
    swarm.scale(service, 1)
    clock = swarm._clock
    while not swarm.hosts:
        clock.advance(1)
    task = next(iter(swarm.hosts.values()))
    swarm.answered(task, lambda: told.append("first"))
    assert told == ["running"]
    clock.advance(300)
    swarm.answered(task, lambda: told.append("second"))
    assert told == ["running", "first", "second"]
    swarm.scale(service, 0)
    clock.advance(60)
    swarm.scale(service, 1)
    clock.advance(300)
    assert (swarm.counts["starts"], swarm.counts["fetches"]) == (2, 1)
    assert told[3:5] == ["stopping", "ended"]


def test_the_tasks_of_a_lost_node_run_elsewhere_when_that_is_noticed() -> None:
    """Until then nobody says so; the node is used again when it is back."""
    swarm = cluster(40, 40, a=30, b=30)
    clock = swarm._clock
    for service in swarm.services.values():
        swarm.scale(service, 1)
    clock.advance(300)
    lost = swarm.services["a"]
    node = next(iter(lost.tasks.values())).node
    assert node is not None
    swarm.fail(node, 100.0)
    clock.advance(NOTICED[0] - 1)
    assert states(lost) == ["healthy"]
    assert not next(iter(lost.tasks.values())).reachable
    clock.advance(NOTICED[1])
    assert states(lost) == ["pending"]
    assert swarm.counts["tasks lost"] == 1
    clock.advance(300)
    assert (states(lost), placed(lost)) == (["healthy"], [node.name])


def test_nothing_is_reserved_twice() -> None:
    """Whatever starts, stops and fails in whatever order, a node's tasks are what it counts."""
    swarm = cluster(80, 80, 160, **{f"m{each}": 10 + 7 * each for each in range(10)})
    dice = Random(3)
    for _ in range(300):
        swarm.scale(dice.choice(list(swarm.services.values())), dice.randint(0, 3))
        if dice.random() < 0.05 and (up := [node for node in swarm.nodes if node.up]):
            swarm.fail(dice.choice(up), 50.0)
        swarm._clock.advance(dice.uniform(0.0, 20.0))
        for node in swarm.nodes:
            there = [one for one in swarm._tasks() if one.node is node]
            assert node.free == node.room - sum(one.service.model.room for one in there) >= 0
            assert node.tasks == len(there) == node.services.total()
        assert all(task.state == "pending" for task in swarm.pending.values())


# -- all of it --------------------------------------------------------------------------------------


def _run(**settings: Any) -> Outcome:
    return World(evolve(TINY, **settings)).run()


def test_a_run_accounts_for_every_request() -> None:
    """Each is answered, cut, refused or gives up; the proxy's share of the processor is known."""
    outcome = _run()
    assert sum(outcome.ends.values()) == outcome.requests
    assert outcome.requests == pytest.approx(2 * 6 * 60, rel=0.15)
    assert 0 < outcome.cold < 1
    assert 0 < outcome.busy <= outcome.used <= 1
    assert outcome.hold_p50 <= outcome.hold_p95 <= outcome.hold_p99
    assert {"requests", "scheduler", "timers", "news"} <= outcome.cpu.keys()
    assert len(outcome.tasks) == 6


def test_the_same_setting_gives_the_same_figures() -> None:
    """But for those of the processor and the memory."""
    one, other = _run(), _run()
    measured = ("cpu", "fleet_bytes", "peak_bytes")
    assert {**one.document(), **dict.fromkeys(measured)} == {**other.document(), **dict.fromkeys(measured)}


def test_making_room_spares_waiting() -> None:
    """Where more is wanted than there is room for, fewer wait and give up when idle ones leave for them, and
    fewer have to leave where only those do that are on the right node."""
    crowd = {"rate": 1.0, "idle": 900.0, "minutes": 8}
    without, blind, ours = (_run(rule=rule, **crowd) for rule in ("none", "longest", "llmproxy"))
    assert without.pending > 0
    assert without.per_hour["evicted"] == 0
    for one in (blind, ours):
        assert one.per_hour["evicted"] > 0
        assert one.pending < without.pending
        assert one.ends["answered"] > without.ends["answered"]
    assert ours.per_hour["starts"] < blind.per_hour["starts"]


def test_nodes_that_fail_cost_what_was_there() -> None:
    """Streams there are cut, and the models come back elsewhere."""
    outcome = _run(mtbf=0.01, rate=4.0, idle=600.0)
    assert outcome.per_hour["nodes lost"] > 0
    assert outcome.per_hour["tasks lost"] > 0
    assert outcome.ends["answered"] > 0.8 * outcome.requests


def test_the_command_shows_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of what came of it, one of what it took, and the same for programs."""
    arguments = ["--nodes", "6", "--models", "30", "--rate", "1", "--minutes", "5", "--warm", "0"]
    file = tmp_path / "out.json"
    assert main([*arguments, "--rules", "none,llmproxy:60", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "6 nodes, 30 models, 1 requests/s" in shown
    assert "llmproxy, idle 60 s" in shown
    written = json.loads(file.read_text())
    assert [run["setting"]["rule"] for run in written["runs"]] == ["none", "llmproxy"]
    assert [run["setting"]["idle"] for run in written["runs"]] == [600.0, 60.0]


@pytest.mark.parametrize("arguments", [["--rules", "magic"], ["--rules", "idle:x"], ["--nodes", "0"]])
def test_the_command_says_what_is_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And ends with argparse's status."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "simulate_swarm: error: argument --" in capsys.readouterr().err
