"""One backend: what it is made of, and what is known of it."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred

from llmproxy.backend.admission import Admission
from llmproxy.backend.engine import Engine
from llmproxy.backend.gate import Gate, Waiter
from llmproxy.backend.identity import Identity
from llmproxy.backend.lifecycle import Lifecycle, State
from llmproxy.backend.present import Present
from llmproxy.backend.progress import Forecast
from llmproxy.backend.startup import Startup
from llmproxy.backend.surroundings import Surroundings
from llmproxy.backend.wishes import Wishes
from llmproxy.config.model import BackendSpec
from llmproxy.engines.needs import Needs
from llmproxy.http.headers import Fields
from llmproxy.runtimes.interface import Address, Instance, IRuntime

__all__ = ["HandsOn", "Makeup"]

LATEST = 600.0
"""Seconds after which a client is to try again at most: nobody knows what will be in an hour."""


class HandsOn(Protocol):
    """How a request is told to another process of the proxy, which has it answered."""

    def head(self, request: Any, target: bytes, length: int | None, upgrade: bytes | None) -> bytes:
        """The head of the request.

        :param target: path and query for the backend.
        """

    def lines(self, fields: Fields) -> bytes:
        """What that process says of its own in the head of an answer."""


class Makeup:
    """The parts of a backend, and what they tell; :mod:`llmproxy.backend.conduct` puts them together.

    :ivar spec: what the operator asked for.
    :ivar wishes: what is wanted of it beside requests.
    :ivar hands_on: it is no backend, but stands for one that is another process's.
    """

    spec: BackendSpec
    runtime: IRuntime
    surroundings: Surroundings
    admission: Admission[Waiter]
    gate: Gate
    lifecycle: Lifecycle
    identity: Identity
    wishes: Wishes
    since: float
    hands_on: HandsOn | None = None
    _engine: Engine
    _present: Present
    _startup: Startup

    @property
    def name(self) -> str:
        """The route, which names the backend everywhere."""
        return self.spec.route

    @property
    def state(self) -> State:
        """The state that is shown."""
        return self.lifecycle.state

    @property
    def address(self) -> Address | None:
        """Where it answers while it is ready."""
        return self.gate.address

    @property
    def authorization(self) -> bytes | None:
        """The ``Authorization`` that the backend gets instead of the client's."""
        return self.identity.authorization(self.surroundings.backend_key)

    @property
    def models(self) -> tuple[str, ...]:
        """The names that it serves, as far as they are known."""
        return self.identity.models

    @property
    def needs(self) -> Needs:
        """What it needs of the machine, as far as that is known."""
        return self.identity.needs

    @property
    def fingerprint(self) -> str:
        """Tells its configuration from another one behind the same route."""
        return self.identity.fingerprint

    @property
    def instance(self) -> Instance | None:
        """The run that is known, if any."""
        return self._present.known

    @property
    def level(self) -> int:
        """Of the sleep that it is in or falls into."""
        return self._engine.level

    @property
    def half_awake(self) -> bool:
        """It sleeps, and may have all of its memory: whoever put it to sleep may have begun to wake it."""
        return self.state == "sleeping" and self._engine.doubtful

    def _may_sleep(self) -> bool:
        unknown = self.spec.engine == "vllm" and self.spec.sleep != "off" and self.spec.runtime != "url"
        return bool(self.needs.sleep) or (unknown and not self.identity.known)

    def logs(self, tail: int) -> Deferred[str]:
        """The last lines of its output, secrets removed."""
        return self.runtime.logs(self.spec, tail).addCallback(self.redacted)

    def redacted(self, text: str) -> str:
        """``text`` without secrets."""
        return self.identity.redacted(text, self.surroundings.secrets)

    # -- when it will be ready ----------------------------------------------------------------------

    def forecast(self) -> Forecast:
        """What those who wait for it wait for, and for how long."""
        if self.state in ("starting", "waking"):
            return self._startup.forecast()
        since = self.wanted_since
        if since is None or self.state == "failed":
            return Forecast()
        if self.state == "ready":
            return Forecast("queued", since=since)
        wait = self.surroundings.scheduler.room_for(self)
        reason, others = ("", 0.0) if wait is None else wait
        # Its own end comes first, if there is one; what it takes has most often begun already.
        parts = [others, self._end_left(), self._own_seconds()]
        eta = None if None in parts else sum(part for part in parts if part is not None)
        ends = wait is None and self.state not in ("absent", "sleeping")
        phase = self.state.replace("_", " ") if ends else "waiting for room"
        return Forecast(phase, since=since, eta=eta, reason=reason or None)

    @property
    def wanted_since(self) -> float | None:
        """Since when somebody waits for it, or wants it to run."""
        times = (self.admission.waiting_since, self.wishes.run_since)
        return min((time for time in times if time is not None), default=None)

    def _end_left(self) -> float | None:
        if self.state not in ("stopping", "falling_asleep", "draining"):
            return 0.0
        if self.state == "draining":
            return None
        known = self.surroundings.learned.estimate(self.name, self.fingerprint)
        usual = known.stop_seconds if self.state == "stopping" else known.sleep_seconds
        return max(0.0, self.since + usual - self.surroundings.clock.seconds())

    def _own_seconds(self) -> float | None:
        known = self.surroundings.learned.estimate(self.name, self.fingerprint, self.level)
        asleep = self.state in ("sleeping", "falling_asleep")
        measured = ("wake_seconds" if asleep else "reload_seconds") in known.measured
        return (known.wake_seconds if asleep else known.reload_seconds) if measured else None

    def retry_after(self, otherwise: float) -> float:
        """Seconds after which trying again makes sense.

        :param otherwise: what is told when nobody knows when it will be ready.
        """
        eta = self.forecast().eta
        return otherwise if eta is None else min(max(1.0, eta), LATEST)
