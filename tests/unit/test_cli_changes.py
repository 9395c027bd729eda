"""Whoever follows the proxy's events leaves no thread behind that goes on asking."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmproxy.cli import changes
from llmproxy.cli.changes import Bell
from llmproxy.cli.client import ApiError

LIMIT = 20.0
"""Seconds after which a thread is taken to hang."""


class FakeApi:
    """Tells one event and is silent then, until its connection is closed.

    :ivar away: how often it does not answer before that.
    """

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.may_connect = threading.Event()
        self.may_connect.set()
        self.asked = threading.Event()
        self.ended = threading.Event()

    def events(
        self, *, tail: int, follow: bool, can_end: Callable[[Callable[[], None]], object]
    ) -> Iterator[dict[str, Any]]:
        self.asked.set()
        self.may_connect.wait(LIMIT)
        if self.away:
            self.away -= 1
            raise ApiError("away", "Start it.")
        can_end(self.ended.set)
        yield {}
        self.ended.wait(LIMIT)
        raise ApiError("broken off", "Look at its log.")


def bell_of(fake: FakeApi) -> Bell:
    api: Any = fake
    return Bell(api)


def left(bell: Bell) -> bool:
    """Whether its thread has ended."""
    bell._following.join(LIMIT)
    return not bell._following.is_alive()


def test_a_silent_proxy() -> None:
    """Its events ring; its connection is closed with the bell."""
    fake = FakeApi()
    bell = bell_of(fake)
    assert bell.wait(LIMIT)
    bell.close()
    assert left(bell)
    assert fake.ended.is_set()


def test_a_proxy_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again, and that it is back rings."""
    monkeypatch.setattr(changes, "RETRY", 0.0)
    fake = FakeApi(away=3)
    bell = bell_of(fake)
    assert bell.wait(LIMIT)
    bell.close()
    assert left(bell)


def test_closed_while_it_connects() -> None:
    """The connection that comes of that is closed at once."""
    fake = FakeApi()
    fake.may_connect.clear()
    bell = bell_of(fake)
    assert fake.asked.wait(LIMIT)
    bell.close()
    fake.may_connect.set()
    assert left(bell)
    assert fake.ended.is_set()
