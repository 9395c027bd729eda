"""How much keys may have: buckets, what survives a reload, and those who show wrong keys."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import Key
from llmproxy.errors import Refusal
from llmproxy.http.metering import DocumentMeter
from llmproxy.keys.buckets import MINUTE, Bucket
from llmproxy.keys.guard import FORGIVEN, FREE, LONGEST_WAIT, Guard
from llmproxy.keys.limits import STREAM_RETRY, Limiter
from llmproxy.web.accesslog import Entry

steps = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 3)), max_size=60)


@given(st.integers(1, 50), steps)
def test_never_more_than_a_minutes_worth_beyond_the_rate(size: int, taken: list[tuple[float, int]]) -> None:
    """Over any time whatsoever, however it is asked."""
    bucket, now, times = Bucket(float(size), 0.0), 0.0, []
    for pause, wanted in taken:
        now += pause
        for _ in range(wanted):
            if bucket.wait(1, now) == 0:
                bucket.spend(1, now)
                times.append(now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            window = times[last] - times[first]
            assert last - first + 1 <= size + window * size / MINUTE + 1e-6


@given(st.integers(1, 50), steps, st.integers(1, 200))
def test_the_wait_that_is_told_is_the_wait(size: int, taken: list[tuple[float, int]], debt: int) -> None:
    """After it there is room, and shortly before there is none."""
    bucket, now = Bucket(float(size), 0.0), 0.0
    for pause, wanted in taken:
        now += pause
        bucket.spend(wanted, now)
    bucket.spend(debt, now)
    wait = bucket.wait(1, now)
    if wait > 0.01:
        assert bucket.wait(1, now + wait * 0.99) > 0
    assert bucket.wait(1, now + wait) == pytest.approx(0, abs=1e-6)


def test_a_bucket_of_another_size() -> None:
    """What was spent stays spent."""
    bucket = Bucket(10.0, 0.0)
    bucket.spend(8, 0)
    bucket.resize(20, 0)
    assert bucket.look(0) == 12
    bucket.resize(5, 0)
    assert bucket.look(0) == -3
    bucket.resize(5, 0)
    assert bucket.look(-100) == -3, "a clock that was set back"


def refusal(limiter: Limiter, key: Key, now: float, streams: bool = False) -> Refusal:
    with pytest.raises(Refusal) as caught:
        limiter.admit(key, now, streams=streams)
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    return caught.value


def test_requests_a_minute() -> None:
    """Past them one is told when the next may come; refused ones do not count."""
    limiter, key = Limiter(), Key("site", requests_per_minute=2)
    limiter.admit(key, 0)
    limiter.admit(key, 0)
    for _ in range(5):
        assert refusal(limiter, key, 0).retry_after == 30
    limiter.admit(key, 30)
    assert refusal(limiter, key, 30).retry_after == 30
    assert limiter.told(key, 45) == {"requests": (2, 0)}
    assert limiter.told(key, 100) == {"requests": (2, 2)}


def test_tokens_a_minute() -> None:
    """What a request took is known at its end; a debt is paid before the next one."""
    limiter, key = Limiter(), Key("site", tokens_per_minute=600)
    meter = DocumentMeter()
    meter.feed([b'{"usage":{"prompt_tokens":400,"completion_tokens":800}}'])
    limiter.observe([Entry("id", "c", "POST", "/", key="site", meter=meter)])
    limiter.admit(key, 0)
    limiter.admit(key, 0)
    limiter.observe([Entry("id", "c", "POST", "/", key="other")])
    limiter.observe([Entry("id", "c", "POST", "/", key="site")])
    meter.feed([])
    limiter.observe([Entry("id", "c", "POST", "/", key="site", meter=meter)])
    assert refusal(limiter, key, 0).retry_after == pytest.approx(60.1)
    assert limiter.told(key, 0) == {"tokens": (600, 0)}
    limiter.admit(key, 60.2)


def test_streams_at_once() -> None:
    """One may begin when another has ended; other requests go on."""
    limiter, key = Limiter(), Key("site", streams=1)
    limiter.admit(key, 0, streams=True)
    limiter.admit(key, 0)
    assert refusal(limiter, key, 0, streams=True).retry_after == STREAM_RETRY
    limiter.ended(key)
    limiter.ended(key)
    limiter.admit(key, 0, streams=True)
    limiter.ended(Key("gone"))


def test_a_reload_gives_nothing_back() -> None:
    """Neither to a key with other limits nor to one with another secret; who is gone is forgotten."""
    limiter, key = Limiter(), Key("site", "a", requests_per_minute=2, streams=1)
    limiter.admit(key, 0, streams=True)
    limiter.admit(key, 0)
    changed = evolve(key, secret="b", requests_per_minute=3)
    limiter.keep([changed, Key("other")])
    limiter.admit(changed, 0)
    refusal(limiter, changed, 0)
    refusal(limiter, changed, 30, streams=True)
    limiter.admit(evolve(changed, requests_per_minute=None), 30)
    limiter.keep([])
    limiter.admit(key, 30, streams=True)


def test_wrong_keys_are_answered_more_and_more_slowly() -> None:
    """After some for free, twice as long each time, up to a limit; by address."""
    guard = Guard()
    for _ in range(FREE):
        assert guard.wait("a", b"x", 0) == 0
        guard.failed("a", 0)
    assert guard.wait("a", b"x", 0) == 1
    assert guard.wait("a", b"x", 0.75) == 0.25
    assert guard.wait("a", b"x", 1) == 0
    assert guard.wait("b", b"x", 0) == 0
    for _ in range(40):
        guard.failed("a", 1)
    assert guard.wait("a", b"x", 1) == LONGEST_WAIT
    assert guard.wait("a", b"x", -1000) == LONGEST_WAIT, "a clock that was set back"
    guard.failed("a", 10_000)
    assert guard.wait("a", b"x", 10_000) == 0, "long ago"


def test_wrong_keys_are_forgotten_one_by_one() -> None:
    """Whoever fails now and then never has to wait."""
    guard = Guard()
    for number in range(FREE * 5):
        guard.failed("a", number * FORGIVEN)
        assert guard.wait("a", b"x", number * FORGIVEN) == 0


def test_who_has_a_right_key_goes_on() -> None:
    """Though others at that address fail; until the keys are others."""
    guard = Guard()
    guard.succeeded("a", b"right")
    for _ in range(FREE):
        guard.failed("a", 0)
    assert guard.wait("a", b"right", 0) == 0
    assert guard.wait("a", b"other", 0) == 1
    guard.forget()
    assert guard.wait("a", b"right", 0) == 1


def test_what_is_remembered_is_bounded() -> None:
    """However many addresses come."""
    guard = Guard(most=3, free=1)
    for number in range(9):
        guard.failed(str(number), 0)
        guard.succeeded(str(number), b"x")
    assert guard.wait("0", b"y", 0) == 0
    assert guard.wait("8", b"y", 0) == 1
    assert guard.wait("8", b"x", 0) == 0
