"""Two proxies in front of one real Swarm: they agree, and one may be killed at any time."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import Proxy, at_once, demo
from tests.integration.swarm_proxy import services_of
from tests.integration.swarm_services import Services
from tests.integration.swarm_traffic import Traffic
from tests.integration.world import until

pytestmark = pytest.mark.docker


def counts(services: Services, route: str, since: float) -> list[int]:
    """How many tasks were wanted, one change after the other."""
    found = [each["replicas.new"] for each in services.updates(route, since) if "replicas.new" in each]
    return [int(each) for each in found]


def two(front: Front, **settings: object) -> tuple[Proxy, Proxy]:
    """Two proxies with the same configuration."""
    backends = {"a": demo(**settings)}
    first = front(backends)
    return first, front(backends, beside=first)


def test_they_leave_an_idle_service_alone(front: Front) -> None:
    """Nothing is written while nothing is asked, and little while one of them is used."""
    first, second = two(
        front, replicas={"min": 0, "max": 3, "target_in_flight": 2, "out_after": "1s", "in_after": "3s"}
    )
    services = services_of(first)
    version = services.version("a")
    time.sleep(4)
    assert services.version("a") == version
    began = time.time()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(first.streaming("a", delay=0.1))
        services.until_running("a", 2)
        second.until_state("a", "ready")
        time.sleep(8)
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


def test_one_is_killed(front: Front) -> None:
    """The other one goes on as before, takes over its load, and the one that is started again joins in."""
    settings = {"min": 0, "max": 3, "target_in_flight": 2, "out_after": "1s", "in_after": "3s"}
    first, second = two(front, replicas=settings)
    services = services_of(first)
    began = time.time()
    with Traffic([second], "a", clients=2) as traffic, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(first.streaming("a", delay=0.1))
        until(lambda: services.replicas("a") >= 2, 20)
        first.kill()
        time.sleep(5)
        first.start()
        assert first.chat("a").status == 200
        time.sleep(1)
    assert [each for each in traffic.outcomes if each.kind != "complete"] == []
    wanted = counts(services, "a", began)
    assert wanted == sorted(wanted), wanted


def test_both_under_load(front: Front) -> None:
    """With changing load at both, the service grows step by step and never back and forth."""
    settings = {"min": 0, "max": 3, "target_in_flight": 2, "out_after": "1s", "in_after": "3s"}
    first, second = two(front, replicas=settings)
    services = services_of(first)
    began = time.time()
    with Traffic([first, second], "a", clients=10, tokens=10) as traffic:
        time.sleep(10)
        assert services.replicas("a") == 3
    assert [each for each in traffic.outcomes if each.kind != "complete"] == []
    assert counts(services, "a", began) == [1, 2, 3]
