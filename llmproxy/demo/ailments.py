"""Faults of the whole server, for some seconds: ``POST /demo/ail``.

The body is a JSON object with ``seconds`` and one or more of these; a new one takes the place of the last.

=====================  ===================================================================================
``"health": "503"``    the health path says so; ``"hang"``: it never answers
``"head": "hang"``     no answer begins; those that were asked for meanwhile begin when it is over
``"pace": S``          each token comes S seconds later
``"reset": true``      the connections of all running answers are reset, once
=====================  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from llmproxy.demo.shapes import invalid

__all__ = ["Ailments"]


@define
class Ailments:
    """What is wrong with the server at present."""

    _reactor: IReactorTime
    _until: float = field(init=False, default=0.0)
    _health: str = field(init=False, default="ok")
    _hang: bool = field(init=False, default=False)
    _pace: float = field(init=False, default=0.0)
    _held: list[Callable[[], None]] = field(init=False, factory=list)

    def ail(self, body: Mapping[str, Any]) -> None:
        """Begin.

        :raises BadRequest: it says something else.
        """
        seconds, pace, health = body.get("seconds", 0), body.get("pace", 0), body.get("health", "ok")
        if not isinstance(seconds, int | float) or not 0 <= seconds <= 3600:
            raise invalid("'seconds' has to be a number up to 3600", "seconds")
        if not isinstance(pace, int | float) or health not in ("ok", "503", "hang"):
            raise invalid("'pace' has to be a number, 'health' ok, 503 or hang", "health")
        self._until = self._reactor.seconds() + seconds
        self._health, self._pace, self._hang = health, float(pace), body.get("head") == "hang"
        self._reactor.callLater(seconds, self._release)

    @property
    def _on(self) -> bool:
        return self._reactor.seconds() < self._until

    @property
    def health(self) -> str | None:
        """How the health path is to behave, if not as ever."""
        return self._health if self._on and self._health != "ok" else None

    @property
    def pace(self) -> float:
        """Seconds more before each token of an answer that begins now."""
        return self._pace if self._on else 0.0

    def begin(self, answer: Callable[[], None]) -> None:
        """Let an answer begin, now or when it may."""
        if self._on and self._hang:
            self._held.append(answer)
        else:
            answer()

    def _release(self) -> None:
        if self._on:  # by one that came later
            return
        held, self._held = self._held, []
        for answer in held:
            answer()
