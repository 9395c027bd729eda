"""Two proxies in front of one real Swarm: they agree, and one may be killed at any time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import Proxy, at_once, chat, demo
from tests.integration.swarm_proxy import services_of
from tests.integration.swarm_services import Services
from tests.integration.swarm_traffic import Traffic, some_words
from tests.integration.world import until

pytestmark = pytest.mark.docker

SCALING = {"min": 0, "max": 3, "target_in_flight": 2, "out_after": "500ms", "in_after": "2s"}


def counts(services: Services, route: str, since: float) -> list[int]:
    """How many tasks were wanted, one change after the other."""
    found = [each["replicas.new"] for each in services.updates(route, since) if "replicas.new" in each]
    return [int(each) for each in found]


def two(front: Front, *arguments: str, **settings: object) -> tuple[Proxy, Proxy]:
    """Two proxies with the same configuration."""
    backends = {"a": demo(*arguments, **settings)}
    first = front(backends)
    return first, front(backends, beside=first)


def test_they_leave_an_idle_service_alone(front: Front) -> None:
    """Nothing is written while nothing is asked, and little while one of them is used."""
    first, second = two(front, replicas=SCALING)
    services = services_of(first)
    version = services.version("a")
    time.sleep(3)
    assert services.version("a") == version
    began = time.time()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(first.streaming("a", delay=0.1, words=some_words()))
        services.until_running("a", 2)
        second.until_state("a", "ready")
        time.sleep(5)
        # One start, one more, and a note of use for each of them at the most.
        assert counts(services, "a", began) == [1, 2]
        assert len(services.updates("a", began)) <= 4


def test_both_are_asked_at_once(front: Front) -> None:
    """Cold requests at both of them at the same moment are one start."""
    first, second = two(front, replicas={"min": 0, "max": 3, "target_in_flight": 100})
    services = services_of(first)
    began = time.time()
    answers = at_once(20, lambda number: (first, second)[number % 2].chat("a"))
    assert {answer.status for answer in answers} == {200}
    assert counts(services, "a", began) == [1]
    assert services.starts("a") == 1


def test_one_is_killed_while_it_starts_the_service(front: Front) -> None:
    """The start goes on, and the other proxy's requests are answered by it."""
    first, second = two(front, "--start-delay", "2")
    services = services_of(first)
    began = time.time()
    with ThreadPoolExecutor(1) as pool, first.wire() as wire:
        wire.post(
            "/v1/chat/completions", json.dumps(chat("a-model")).encode(), "Content-Type: application/json"
        )
        until(lambda: services.replicas("a"), 10)
        held = pool.submit(second.chat, "a")
        first.kill()
        assert wire.rest() == b""
        assert held.result().status == 200
    assert counts(services, "a", began) == [1]
    assert services.starts("a") == 1


def test_one_is_killed_under_load(front: Front) -> None:
    """The other one goes on as before, and the one that is started again joins in."""
    first, second = two(front, replicas=SCALING)
    services = services_of(first)
    began = time.time()
    with Traffic([second], "a", clients=2) as traffic, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(first.streaming("a", delay=0.1, words=some_words()))
        until(lambda: services.replicas("a") >= 2, 20)
        first.kill()
        time.sleep(4)
        first.start()
        assert first.chat("a").status == 200
        time.sleep(1)
    assert [each for each in traffic.outcomes if each.kind != "complete"] == []
    wanted = counts(services, "a", began)
    assert wanted == sorted(wanted), wanted


def test_both_under_load(front: Front) -> None:
    """With load at both, the service grows step by step and never back and forth."""
    first, second = two(front, replicas=SCALING)
    services = services_of(first)
    began = time.time()
    with Traffic([first, second], "a", clients=10, tokens=10) as traffic:
        until(lambda: services.replicas("a") == 3, 30)
        time.sleep(3)
    assert [each for each in traffic.outcomes if each.kind != "complete"] == []
    assert counts(services, "a", began) == [1, 2, 3]
