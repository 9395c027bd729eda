"""The engine that a backend runs: asks for its health, and has it sleep and wake."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.control import NoAnswer
from llmproxy.backend.knock import Knock
from llmproxy.backend.lifecycle import Lifecycle
from llmproxy.backend.power import Power
from llmproxy.backend.probe import Connect, Prober, probe_once
from llmproxy.runtimes.interface import Address

__all__ = ["Engine", "Terms"]

ASK_AGAIN = 0.25
"""Seconds after which an engine that did not say whether it sleeps is asked again."""


@frozen
class Terms:
    """How an engine is asked.

    :ivar health: its health path.
    :ivar authorization: its own key, which some of its controls ask for.
    :ivar sleeps: levels of sleep that it offers.
    :ivar may_sleep: it offers some, or nobody knows yet whether it does.
    """

    health: str
    authorization: bytes | None
    sleeps: tuple[int, ...]
    may_sleep: bool


class Engine:
    """Tells a lifecycle what comes of it.

    :param terms: asked anew each time, since they change with the settings.
    :ivar address: where it was last healthy.
    :ivar level: of the sleep that it is in or falls into.
    :ivar doubtful: it was found asleep, and may be half awake with all of its memory.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        clock: IReactorTime,
        connect: Connect,
        knock_at: Callable[[Address], Knock | None],
        lifecycle: Lifecycle,
        terms: Callable[[], Terms],
    ) -> None:
        self.address: Address | None = None
        self.level = 1
        self.doubtful = False
        self._name = name
        self._clock = clock
        self._connect = connect
        self._knock_at = knock_at
        self._lifecycle = lifecycle
        self._terms = terms
        self._prober: Prober | None = None
        self._suspecting = False
        self._powering: Deferred[None] | None = None

    # -- health -------------------------------------------------------------------------------------

    def probe(self, attempt: int, addresses: Sequence[Address], *, found: bool, patient: bool) -> None:
        """Ask until it is healthy.

        :param found: it ran already, so that it may be asleep.
        :param patient: nobody waits for it.
        """

        def healthy(address: Address) -> None:
            self.address = address
            if found and self._terms().may_sleep:
                # Asleep it is as healthy as awake, and requests would hang.
                self._carry_out(self._look_whether_asleep(attempt))
            else:
                self._lifecycle.healthy(attempt)

        self._prober = Prober(
            self._clock,
            self._connect,
            addresses,
            self._terms().health,
            healthy,
            knock_at=self._knock_at,
            patient=patient,
        )

    @property
    def asked_patiently(self) -> bool:
        """It is asked less and less often."""
        return self._prober is not None and self._prober.patient

    def hurry(self) -> None:
        """Somebody waits for it now."""
        if self._prober is not None:
            self._prober.hurry()

    def ask_no_more(self) -> None:
        """Its health does not matter any more, or has been told."""
        if self._prober is not None:
            self._prober.stop()
            self._prober = None

    def suspect(self) -> None:
        """An answer of a ready engine was broken: ask for its health now, rather than wait for its end.

        vLLM answers ``/health`` with 503 for some seconds before a dead engine's container exits.
        """
        if self._suspecting or self.address is None:
            return
        self._suspecting = True
        attempt = self._lifecycle.attempt

        def heard(verdict: str) -> None:
            self._suspecting = False
            # A busy server may be silent for a while; only a clear answer counts.
            if verdict in ("unhealthy", "refused") and attempt == self._lifecycle.attempt:
                self._lifecycle.sick(f"a broken answer, and its health path is {verdict}")

        answer = probe_once(self._clock, self._connect, self.address, self._terms().health)
        answer.addCallback(heard)

    # -- sleeping and waking ------------------------------------------------------------------------

    def sleep(
        self, attempt: int, level: int, freed: Callable[[], Deferred[bool]], done: Callable[[float], None]
    ) -> None:
        """Have it fall asleep.

        :param freed: tells whether its memory came back.
        :param done: told of the seconds that it took.
        """
        self.level = level
        self._carry_out(self._fall_asleep(attempt, freed, done))

    def wake(self, attempt: int, done: Callable[[float], None]) -> None:
        """Wake it.

        :param done: told of the seconds that it took.
        """
        self._carry_out(self._wake_up(attempt, done))

    def leave_alone(self) -> None:
        """It ends: nothing more is asked of it."""
        self.ask_no_more()
        self.doubtful = False
        powering, self._powering = self._powering, None
        if powering is not None:
            powering.cancel()

    def _power(self) -> Power:
        assert self.address is not None, "it has been healthy"
        terms = self._terms()
        return Power(self._clock, self._connect, self.address, terms.authorization, terms.health)

    def _carry_out(self, doing: Coroutine[Any, Any, None]) -> None:
        powering = self._powering = Deferred.fromCoroutine(doing)

        def failed(failure: Failure) -> None:
            # It is cancelled when the backend ends; what may go wrong is told where it does.
            if self._powering is powering:
                self._log.failure("having {backend} sleep or wake", failure, backend=self._name)

        powering.addErrback(failed)

    async def _fall_asleep(
        self, attempt: int, freed: Callable[[], Deferred[bool]], done: Callable[[float], None]
    ) -> None:
        begun = self._clock.seconds()
        try:
            await self._power().sleep(self.level, freed)
        except NoAnswer as cause:
            self._lifecycle.sleep_failed(attempt, f"it did not fall asleep: {cause}")
            return
        done(self._clock.seconds() - begun)
        self.doubtful = False
        self._lifecycle.slept(attempt)

    async def _wake_up(self, attempt: int, done: Callable[[float], None]) -> None:
        begun = self._clock.seconds()
        try:
            await self._power().wake(self.level)
        except NoAnswer as cause:
            self._lifecycle.wake_failed(attempt, f"it did not wake: {cause}")
            return
        done(self._clock.seconds() - begun)
        self._lifecycle.woken(attempt)

    async def _look_whether_asleep(self, attempt: int) -> None:
        while (asleep := await self._power().asleep()) is None:
            # It falls asleep or wakes; its time to start bounds how long it is asked.
            await deferLater(self._clock, ASK_AGAIN)
            if self._lifecycle.state != "starting" or self._lifecycle.attempt != attempt:
                return
        if asleep:
            # Nobody says from which level; to load the weights again is right for both.
            self.level = max(self._terms().sleeps, default=2)
            self.doubtful = True
            self._lifecycle.found_asleep(attempt)
        else:
            self._lifecycle.healthy(attempt)
