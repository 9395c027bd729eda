"""Has an engine fall asleep and wake, and makes sure that it did."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llmproxy.backend.control import Answer, NoAnswer, ask
from llmproxy.backend.probe import Connect, probe_once
from llmproxy.engines import sleep
from llmproxy.engines.sleep import Call
from llmproxy.runtimes.interface import Address

__all__ = ["SLEEP_LIMIT", "WAKE_LIMIT", "Power"]

SLEEP_LIMIT = 60.0
"""Seconds that falling asleep may take: level 1 copies all weights to the host, some GiB in a second, and
nothing is in flight that it would wait for."""

WAKE_LIMIT = 120.0
"""Seconds that each request of a wake may take; from level 2 the weights are read from the disk again, which
is most of a cold start."""

ASK_LIMIT = 2.0
"""Seconds for the question whether it sleeps."""


class Power:
    """Asks one engine at one address.

    :param authorization: the engine's own key, which some versions ask for.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Connect,
        address: Address,
        authorization: bytes | None,
        health: str,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._address = address
        self._authorization = authorization
        self._health = health

    def _ask(self, call: Call, limit: float) -> Deferred[Answer]:
        return ask(
            self._clock,
            self._connect(self._address),
            self._address,
            call,
            authorization=self._authorization,
            limit=limit,
        )

    async def asleep(self) -> bool | None:
        """Whether it sleeps; None: it does not say, as while it falls asleep or wakes."""
        try:
            status, body = await self._ask(sleep.is_sleeping(), ASK_LIMIT)
        except NoAnswer:
            return None
        return bool(sleep.asleep(status, body))

    async def sleep(self, level: int, freed: Callable[[], Deferred[bool]]) -> None:
        """Have it fall asleep.

        :param freed: tells whether its memory came back.
        :raises NoAnswer: it does not sleep, or its memory did not come back.
        """
        status, body = await self._ask(sleep.sleep_request(level), SLEEP_LIMIT)
        if not sleep.fell_asleep(status, body):
            raise NoAnswer(f"it answered the request to sleep with status {status}")
        if not await freed():
            raise NoAnswer("it sleeps, but its GPU memory did not come back")

    async def wake(self, level: int) -> None:
        """Wake it from that level, until it is healthy.

        :raises NoAnswer: it does not wake.
        """
        for call in sleep.wake_requests(level):
            status, body = await self._ask(call, WAKE_LIMIT)
            if not sleep.woke(call, status, body):
                raise NoAnswer(f"it answered {call.path.partition('?')[0]} with status {status}")
        verdict = await probe_once(self._clock, self._connect, self._address, self._health)
        if verdict != "healthy":
            raise NoAnswer(f"it woke, and its health path is {verdict}")
