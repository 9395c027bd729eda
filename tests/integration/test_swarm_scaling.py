"""A service of a real Swarm of three engines: started by the first request, scaled by its load, stopped."""

from __future__ import annotations

import json
import time

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import at_once, chat, demo
from tests.integration.swarm_proxy import services_of
from tests.integration.swarm_services import Services
from tests.integration.swarm_traffic import some_words
from tests.integration.world import until

pytestmark = pytest.mark.docker

HERE = ("--constraint", "node.labels.place==m")
"""On the node whose engine the proxy talks to."""


def counts(services: Services, route: str, since: float) -> list[int]:
    """How many tasks were wanted, one change after the other."""
    found = [each["replicas.new"] for each in services.updates(route, since) if "replicas.new" in each]
    return [int(each) for each in found]


@pytest.mark.parametrize("where", ["overlay", "outside", "node"])
def test_cold_start_and_idle_stop(front: Front, where: str) -> None:
    """A request to a service of no tasks is held until one runs, and answered; unused, it is stopped."""
    # Beside an engine only the tasks of that engine can be reached.
    options = HERE if where == "node" else ()
    proxy = front({"a": demo("--start-delay", "0.5", idle="1s", options=options)}, where=where)
    services = services_of(proxy)
    assert proxy.state("a") == "absent"
    answer = proxy.chat("a")
    assert answer.status == 200, answer
    assert proxy.state("a") == "ready"
    assert services.starts("a") == 1
    proxy.until_state("a", "absent", seconds=20)
    assert services.replicas("a") == 0
    # Swarm hears of it from the node.
    until(lambda: not services.is_running("a"), 10)


def test_many_at_once_are_one_start(front: Front) -> None:
    """A hundred cold requests at once scale the service once, and all are answered."""
    began = time.time()
    many = {"min": 0, "max": 3, "target_in_flight": 200}
    proxy = front({"a": demo("--start-delay", "0.5", replicas=many)})
    answers = at_once(100, lambda _: proxy.chat("a"))
    assert {answer.status for answer in answers} == {200}
    assert counts(services_of(proxy), "a", began) == [1]
    assert services_of(proxy).starts("a") == 1


SCALING = {"min": 0, "max": 3, "target_in_flight": 2, "out_after": "500ms", "in_after": "2s"}


def test_out_under_load_and_in_again(front: Front) -> None:
    """More tasks come under load, one after the other, and get requests; they leave again without breaking a
    stream that still runs."""
    began = time.time()
    # On this node the proxy can choose which task leaves.
    proxy = front({"a": demo(replicas=SCALING, options=HERE, idle="1s")})
    services = services_of(proxy)
    with proxy.streaming("a", delay=0.05) as first, proxy.streaming("a", delay=0.05) as second:
        short = [proxy.wire() for _ in range(4)]
        for wire in short:
            body = chat(
                "a-model",
                some_words(),
                stream=True,
                ignore_eos=True,
                max_tokens=10_000,
                demo_token_delay=0.05,
            )
            wire.post("/v1/chat/completions", json.dumps(body).encode(), "Content-Type: application/json")
        tasks = services.until_running("a", 3)
        assert counts(services, "a", began) == [1, 2, 3]
        # What comes now goes to those that are new.
        until(lambda: proxy.chat("a", words=some_words()) and all(map(services.asked, tasks)), 20)
        for wire in short:
            wire.socket.close()
        until(lambda: services.replicas("a") == 2, 30)
        for wire in (first, second):
            assert b"error" not in wire.through(b"data: ")
        second.socket.close()
        until(lambda: services.replicas("a") == 1, 30)
        services.until_running("a", 1)
        for _ in range(20):
            assert b"error" not in first.through(b"data: ")
    assert counts(services, "a", began) == [1, 2, 3, 2, 1]
    proxy.until_state("a", "absent", seconds=20)
    assert counts(services, "a", began) == [1, 2, 3, 2, 1, 0]


def test_in_only_when_nothing_is_in_flight_where_swarm_chooses(front: Front) -> None:
    """Where Swarm chooses which task ends, none ends while a stream runs, and one does when none does."""
    began = time.time()
    proxy = front({"a": demo(replicas=SCALING, options=("--constraint", "node.labels.place!=m"))})
    services = services_of(proxy)
    with proxy.streaming("a", delay=0.05) as stream:
        others = [proxy.wire() for _ in range(3)]
        for wire in others:
            body = chat(
                "a-model",
                some_words(),
                stream=True,
                ignore_eos=True,
                max_tokens=10_000,
                demo_token_delay=0.05,
            )
            wire.post("/v1/chat/completions", json.dumps(body).encode(), "Content-Type: application/json")
        services.until_running("a", 2)
        for wire in others:
            wire.socket.close()
        until(lambda: proxy.backend("a")["in_flight"] == 1)
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            assert b"error" not in stream.through(b"data: ")
        assert services.replicas("a") == 2
    until(lambda: services.replicas("a") == 1, 20)
    assert proxy.chat("a").status == 200
    assert counts(services, "a", began) == [1, 2, 1]
