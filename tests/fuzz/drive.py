"""Runs fuzz targets for as long as there is time, by seeds that can be given again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import frozen
from hypothesis import HealthCheck, Verbosity, given, seed, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider

from tests.fuzz import readers, wire

__all__ = ["ROUND", "TARGETS", "Target", "fuzz"]

ROUND = 100
"""Inputs by one seed."""

SLOWEST = 2.0
"""Seconds for one input, which has some thousand bytes: an expression that runs away takes hours."""

settings.register_profile(
    "fuzz",
    max_examples=ROUND,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    verbosity=Verbosity.normal,
    suppress_health_check=list(HealthCheck),
)


@frozen
class Target:
    """What is fuzzed: how inputs are made, and what must be true of each."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    # Of the time; HTTP is where an error would be worst.
    share: int = 1


TARGETS = {
    "requests": Target(wire.REQUEST_BYTES, wire.check_requests, 5),
    "answers": Target(wire.ANSWER_BYTES, wire.check_answer, 3),
    "targets": Target(readers.TARGETS, readers.check_target),
    "forwarded": Target(readers.FORWARDED, readers.check_forwarded),
    "json": Target(readers.DOCUMENTS, readers.check_json),
    "forms": Target(readers.FORMS, readers.check_form),
    "streams": Target(readers.STREAMS, readers.check_stream),
    "file": Target(readers.FILES, readers.check_file),
    "labels": Target(readers.LABELS, readers.check_labels),
    "environment": Target(readers.ENVIRONMENTS, readers.check_environment),
    "logs": Target(readers.LOGS, readers.check_log),
}
"""By name."""


def fuzz(name: str, seconds: float, first: int) -> tuple[int, int]:
    """Fuzz one target.

    :param first: the first seed; the next round has the next one.
    :return: how many seeds were used, and how many inputs there were.
    :raises BaseException: what the check raised for the shortest input that was found, with a note that says
        how to have it again.
    """
    target = TARGETS[name]
    failures: list[LogEvent] = []

    @provider(ILogObserver)
    def watch(event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            failures.append(event)

    deadline = time.monotonic() + seconds
    rounds, count = 0, 0

    def one(value: Any) -> None:
        nonlocal count
        began = time.monotonic()
        count += 1
        failures.clear()
        target.check(value)
        assert not failures, failures
        assert time.monotonic() - began < SLOWEST, "it took too long"

    globalLogPublisher.addObserver(watch)
    try:
        while rounds == 0 or time.monotonic() < deadline:
            number = first + rounds
            rounds += 1
            try:
                seed(number)(settings(settings.get_profile("fuzz"))(given(target.inputs)(one)))()
            except BaseException as fault:
                fault.add_note(f"again: make fuzz ONLY={name} SEED={number} SECONDS=1")
                raise
    finally:
        globalLogPublisher.removeObserver(watch)
    return rounds, count
