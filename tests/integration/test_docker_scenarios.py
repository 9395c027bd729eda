"""Those scenarios of the contract's sections 3 and 5 that differ by runtime, over containers.

They are the very tests that run over child processes; here the backends live in Docker.
"""

from __future__ import annotations

import pytest

from tests.integration.engine import require_docker
from tests.integration.test_cold_start import (
    test_a_start_is_explained,
    test_all_hang_up,
    test_failure_after_heartbeats,
    test_health_does_not_come,
    test_many_at_once,
    test_start_fails,
)
from tests.integration.test_idle_stop_adopt import (
    test_backend_that_ended_while_the_proxy_was_away,
    test_idle_reap,
    test_killed_while_asked,
    test_reload,
    test_request_while_stopping,
    test_stop_drains,
    test_term,
)

__all__ = [
    "test_a_start_is_explained",
    "test_all_hang_up",
    "test_backend_that_ended_while_the_proxy_was_away",
    "test_failure_after_heartbeats",
    "test_health_does_not_come",
    "test_idle_reap",
    "test_killed_while_asked",
    "test_many_at_once",
    "test_reload",
    "test_request_while_stopping",
    "test_start_fails",
    "test_stop_drains",
    "test_term",
]

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def kind() -> str:
    """Where the backends live."""
    require_docker("demo")
    return "docker"
