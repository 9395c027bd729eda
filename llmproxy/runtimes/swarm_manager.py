"""A Swarm's manager, asked in threads, and its refusals as our own errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import define
from docker.api.client import APIClient
from docker.errors import APIError
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from llmproxy.runtimes.docker_client import Engine
from llmproxy.runtimes.swarm_calls import trouble

__all__ = ["Manager"]

T = TypeVar("T")


@define(eq=False)
class Manager:
    """Calls to one engine that manages a Swarm."""

    engine: Engine

    def call(self, job: Callable[[APIClient], T]) -> Deferred[T]:
        """Have ``job`` talk to it in a thread.

        :raises RuntimeUnavailable: it does not answer, or says no where that can only mean that something is
            wrong with it.
        """

        def no(reason: Failure) -> T:
            error = reason.value
            if not isinstance(error, APIError):
                reason.raiseException()
            raise trouble(self.engine.host, error) from error

        return self.engine.call(job).addErrback(no)
