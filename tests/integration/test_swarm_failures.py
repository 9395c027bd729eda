"""Nodes of a real Swarm are lost, drained, cut off and restarted, and tasks killed, under requests."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import Proxy, demo
from tests.integration.swarm_proxy import ContainedProxy, services_of
from tests.integration.swarm_services import TaskView
from tests.integration.swarm_traffic import Stream, Traffic, some_words
from tests.integration.swarm_world import HEARTBEAT, SwarmWorld
from tests.integration.world import until

pytestmark = pytest.mark.docker

MISSED = 10 * HEARTBEAT
"""Seconds within which a node that is lost has been missed, and others answer what it has not; less than half
of that where the machine has nothing else to do."""
TWO = {"min": 2, "max": 2, "target_in_flight": 100}
ON_WORKERS = ("--constraint", "node.labels.place!=m")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as found:
        yield found


def two_tasks(proxy: Proxy) -> list[TaskView]:
    """One on each worker, and both are used."""
    services = services_of(proxy)
    assert proxy.chat("a").status == 200
    tasks = services.until_running("a", 2)
    assert {task.node for task in tasks} == {"w1", "w2"}
    until(lambda: proxy.chat("a", words=some_words()) and all(map(services.asked, tasks)), 20)
    return tasks


def ready(proxy: Proxy) -> dict[str, str]:
    """Tasks that requests are handed to, and their addresses."""
    tasks = proxy.backend("a")["replicas"]["tasks"]
    return {task["id"]: urlsplit(task["address"]).hostname for task in tasks if task["state"] == "ready"}


def until_left(proxy: Proxy, task: TaskView, seconds: float) -> None:
    """Wait until the proxy knows that it has ended."""
    until(lambda: task.id not in ready(proxy), seconds)


@pytest.mark.parametrize("silent", [True, False], ids=["power", "engine"])
def test_a_node_is_lost(front: Front, swarm: SwarmWorld, stack: ExitStack, silent: bool) -> None:
    """Streams at a lost node end with an error, those elsewhere go on, and other requests are answered."""
    proxy = front({"a": demo(replicas=TWO, options=ON_WORKERS)})
    two_tasks(proxy)
    streams = Stream.open(stack, proxy, "a", 4)
    lost = swarm.node("w2")
    lost.kill(silent=silent)
    began = time.monotonic()
    for _ in range(3):
        assert proxy.chat("a", words=some_words()).status == 200
    assert time.monotonic() - began < (MISSED if silent else 5)
    until(lambda: any(stream.broke for stream in streams), MISSED if silent else 5)
    until(lambda: all(stream.broke or stream.lives for stream in streams), 5)
    here = [stream for stream in streams if stream.lives]
    assert 0 < len(here) < 4
    # The other worker has both tasks in the end.
    until(lambda: swarm.status(lost)[0] == "down", 30)
    services = services_of(proxy)
    until(lambda: [task.node for task in services.running("a")] == ["w1", "w1"], 30)
    assert proxy.chat("a").status == 200
    assert all(stream.lives for stream in here)


def test_the_only_task_is_lost_with_its_node(front: Front, swarm: SwarmWorld, stack: ExitStack) -> None:
    """A stream at the only task ends with an error; the next request waits for the one that replaces it."""
    proxy = front({"a": demo(options=ON_WORKERS)})
    assert proxy.chat("a").status == 200
    (task,) = services_of(proxy).until_running("a", 1)
    (stream,) = Stream.open(stack, proxy, "a", 1)
    swarm.node(task.node).kill()
    answer = proxy.chat("a")
    assert answer.status == 200, answer
    until(lambda: stream.broke, 5)
    (other,) = services_of(proxy).until_running("a", 1)
    assert other.node != task.node


def test_a_drained_node(front: Front, swarm: SwarmWorld, stack: ExitStack) -> None:
    """Nothing new goes to a node that is drained, no request fails for it, and streams elsewhere go on."""
    proxy = front({"a": demo(replicas=TWO, options=ON_WORKERS)})
    two_tasks(proxy)
    streams = Stream.open(stack, proxy, "a", 4)
    services = services_of(proxy)
    with Traffic([proxy], "a", clients=4, delay=0) as traffic:
        swarm.make_available(swarm.node("w2"), "drain")
        until(lambda: [task.node for task in services.running("a")] == ["w1", "w1"], 30)
        time.sleep(1)
    assert [each for each in traffic.outcomes if each.kind != "complete"] == []
    assert len(traffic.outcomes) > 20
    # Swarm gives the others no time: it tells their server to end at once.
    assert 0 < sum(stream.lives for stream in streams) < 4


def test_a_partition_that_is_healed_soon(front: Front, swarm: SwarmWorld, stack: ExitStack) -> None:
    """A stream at a worker that is cut off for less than it takes to miss it goes on to its end."""
    proxy = front({"a": demo(options=ON_WORKERS)})
    assert proxy.chat("a").status == 200
    (task,) = services_of(proxy).until_running("a", 1)
    worker = swarm.node(task.node)
    stream = Stream(stack.enter_context(proxy.streaming("a", tokens=60, delay=0.1)))
    worker.cut()
    time.sleep(HEARTBEAT)
    worker.heal()
    until(lambda: stream.completed, 15)
    assert services_of(proxy).starts("a") == 1


def test_a_partition_and_its_healing(front: Front, swarm: SwarmWorld) -> None:
    """Requests go elsewhere while a worker is cut off; what ran there gets none when it is back, and no
    request fails for any of that before its first byte."""
    proxy = front({"a": demo(replicas=TWO, options=ON_WORKERS)})
    assert isinstance(proxy, ContainedProxy)
    services = services_of(proxy)
    (old,) = (task for task in two_tasks(proxy) if task.node == "w1")
    sent = proxy.sent_to(ready(proxy)[old.id])
    cut = swarm.node("w1")
    with Traffic([proxy], "a", clients=4) as traffic:
        time.sleep(1)
        cut.cut()
        until_left(proxy, old, MISSED)
        before = sent()
        until(lambda: [task.node for task in services.running("a")] == ["w2", "w2"], 30)
        while_cut_off = len(traffic.outcomes)
        time.sleep(1)
        cut.heal()
        until(lambda: swarm.status(cut)[0] == "ready", 30)
        time.sleep(3)
        assert sent() == before > 0
    assert len(traffic.outcomes) > while_cut_off + 20
    assert traffic.of("lost") == traffic.of("cut") == []
    broken = traffic.of("error")
    assert all(each.stream and each.status == 200 for each in broken), broken
    assert len(broken) <= 4
    assert max(each.seconds for each in traffic.outcomes) < MISSED


@pytest.mark.parametrize("managers", [1, 3])
def test_a_manager_is_restarted(front: Front, swarm: SwarmWorld, stack: ExitStack, managers: int) -> None:
    """While the manager that the proxy asks is away, what runs goes on and is used; then all is as before."""
    # Outside of the Swarm, as the containers of an engine that is restarted end with it.
    proxy = front({"a": demo(options=ON_WORKERS), "b": demo(options=ON_WORKERS)}, where="outside")
    swarm.make_managers(managers)
    assert proxy.chat("a").status == 200
    (stream,) = Stream.open(stack, proxy, "a", 1)
    swarm.manager.stop()
    for _ in range(5):
        assert proxy.chat("a").status == 200
        assert stream.lives
        time.sleep(0.3)
    swarm.manager.start()
    swarm.manager.until_up()
    for _ in range(20):
        assert proxy.chat("a").status == 200
        assert stream.lives
        time.sleep(0.1)
    swarm.until_ready()
    assert proxy.chat("b").status == 200
    assert stream.lives
    assert services_of(proxy).starts("a") == 1


def test_tasks_that_die_under_steady_traffic(front: Front) -> None:
    """Tasks are killed one after the other: nothing is sent to one whose end is known, and each request is
    answered whole, or had its first byte before."""
    proxy = front({"a": demo(replicas={"min": 3, "max": 3, "target_in_flight": 100})})
    assert isinstance(proxy, ContainedProxy)
    services = services_of(proxy)
    assert proxy.chat("a").status == 200
    until(lambda: len(ready(proxy)) == 3, 30)
    chance = random.Random(7)
    counts = []
    with Traffic([proxy], "a", clients=8, tokens=10) as traffic:
        for _ in range(5):
            time.sleep(0.5 + chance.random())
            at = ready(proxy)
            victim = chance.choice([task for task in services.running("a") if task.id in at])
            sent = proxy.sent_to(at[victim.id])
            services.kill_task(victim)
            until_left(proxy, victim, 6)
            counts.append((sent, sent()))
            until(lambda: len(ready(proxy)) > 1, 20)
        until(lambda: len(ready(proxy)) == 3, 20)
        time.sleep(0.5)
        assert [sent() for sent, _ in counts] == [before for _, before in counts]
        assert sum(before for _, before in counts) > 0
    assert len(traffic.outcomes) > 100
    assert traffic.of("lost") == traffic.of("cut") == []
    broken = traffic.of("error")
    assert all(each.stream and each.status == 200 for each in broken), broken
    assert len(broken) <= 5 * 4
