"""Reservations on a real Swarm: what fits runs, and what fits nowhere has an idle one leave."""

from __future__ import annotations

import threading

import pytest

from tests.integration.conftest import Front
from tests.integration.proxy import ADMIN, Answer, demo
from tests.integration.swarm_node import ROOM
from tests.integration.swarm_proxy import services_of
from tests.integration.world import until

pytestmark = pytest.mark.docker

KIND, AMOUNT = ROOM


def reserving(amount: int) -> tuple[str, ...]:
    """Words for ``docker service create``: so much of the manager's own node."""
    return ("--constraint", "node.labels.place==m", "--generic-resource", f"{KIND}={amount}")


def test_one_leaves_for_another(front: Front) -> None:
    """Two that fit on a node run beside each other; a third one that does not waits, is told why, and runs
    when the one that is idle has left; the one that is busy stays."""
    half, most = AMOUNT // 2, AMOUNT // 2 + 1
    proxy = front(
        {
            "idle": demo(options=reserving(half - 1), idle="10m"),
            "busy": demo(options=reserving(2), idle="10m"),
            "late": demo(options=reserving(most + 4), idle="10m"),
        }
    )
    services = services_of(proxy)
    assert proxy.chat("idle").status == 200
    with proxy.streaming("busy", delay=0.05) as stream:
        assert (proxy.state("idle"), proxy.state("busy")) == ("ready", "ready")
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(proxy.chat("late")))
        waiting.start()
        told = until(lambda: proxy.backend("late")["reason"], 10)
        assert "insufficient resources" in told
        waiting.join(60)
        assert [answer.status for answer in answers] == [200]
        assert (services.replicas("idle"), services.replicas("busy")) == (0, 1)
        stream.through(b'"content"')
    why = "\n".join(proxy.ask("GET", "/api/backends/idle/why", key=ADMIN).json["why"])
    assert "late" in why
    assert "fits on no node" in why
