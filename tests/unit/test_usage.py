"""What is kept of requests: sums, GPU time, the file, and what becomes of it when something fails."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from llmproxy.backend.surroundings import Transition
from llmproxy.http.metering import DocumentMeter
from llmproxy.usage.book import GATHER, GPU_GATHER, MOST_AT_ONCE, MOST_WAITING, Book
from llmproxy.usage.ledger import Ledger, Sums, day_of, shares
from llmproxy.usage.occupancy import Occupancy
from llmproxy.usage.rates import WINDOW, Rates
from llmproxy.usage.records import LONGEST_PATH, Kept, Open, StoreError, record_of
from llmproxy.usage.store import Store
from llmproxy.web.accesslog import Entry

T = TypeVar("T")

NOON = 1_769_860_800.0
TODAY = "2026-01-31"


def entry(route: str = "chat", key: str = "me", at: float = NOON, tokens: str = "", **more: Any) -> Entry:
    path = more.pop("path", "/v1/x")
    one = Entry("id", "10.0.0.1", "POST", path, key=key, route=route, at=at, **more)
    if tokens:
        meter = DocumentMeter()
        meter.feed([b'{"usage":{%b}}' % tokens.encode()])
        one.meter = meter
    return one


TOLD = '"prompt_tokens":7,"completion_tokens":5'


# -- sums -------------------------------------------------------------------------------------------


@given(
    st.floats(0, 1e6),
    st.floats(0.1, 100),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e5)), min_size=1),
)
def test_nothing_is_lost_in_sharing(amount: float, window: float, weights: list[tuple[str, float]]) -> None:
    """The shares add up to the whole, and nobody's is less than nothing."""
    found = shares(amount, window, weights)
    assert sum(found.values()) == pytest.approx(amount)
    assert all(share >= 0 for share in found.values())
    assert set(found) == {key for key, _ in weights}


def test_nobody_gets_a_share_of_no_requests() -> None:
    """It is for others to say whose it is."""
    assert shares(5, 10, []) == {}


def test_requests_are_added_up() -> None:
    """By day, backend and key."""
    ledger = Ledger()
    ledger.count(
        [entry(tokens=TOLD, held=1.5), entry(tokens=TOLD), entry(key="site"), entry(at=NOON + 86400)]
    )
    sums = ledger.take()
    assert sums[TODAY, "chat", "me"] == Sums(2, 14, 10, 0, 1.5, 0.0)
    assert sums[TODAY, "chat", "site"] == Sums(requests=1)
    assert sums["2026-02-01", "chat", "me"].requests == 1
    assert ledger.totals == {("chat", "me", "prompt"): 14, ("chat", "me", "completion"): 10}
    assert ledger.empty
    ledger.count([entry(tokens=TOLD)])
    ledger.give_back(sums)
    assert ledger.take()[TODAY, "chat", "me"] == Sums(3, 21, 15, 0, 1.5, 0.0)


def test_gpu_time_is_charged_to_whoever_asked() -> None:
    """By those that ended, those that are open, the last one, or nobody."""
    ledger = Ledger()
    ledger.occupied("chat", 10, 10, NOON, [])
    ledger.count([entry(seconds=3.0), entry(key="site", seconds=1.0)])
    ledger.occupied("chat", 8, 10, NOON, [])
    ledger.occupied("chat", 2, 10, NOON, [])
    ledger.occupied("chat", 6, 10, NOON, [Open("chat", "a", 99.0), Open("chat", "b", 5.0)])
    ledger.occupied("chat", 1, 10, NOON, [])
    found = {key: one.gpu for (_, _, key), one in ledger.take().items()}
    assert found == pytest.approx({"-": 10, "me": 6, "site": 4, "a": 4, "b": 3})


def test_what_is_no_gpus_backend_is_not_remembered() -> None:
    """A proxy of servers elsewhere keeps nothing of each request."""
    ledger = Ledger()
    ledger.count([entry("far"), entry("chat")])
    ledger.forget(["chat"])
    ledger.occupied("far", 1, 1, NOON, [])
    assert ledger.take()[TODAY, "far", "me"].gpu == 1


def test_occupancy() -> None:
    """From the start to the end, without the sleep between, and each second once."""
    occupancy = Occupancy()
    assert occupancy.moved("a", "starting", 10) == 0
    assert occupancy.moved("a", "ready", 20) == 0
    assert list(occupancy.backends) == ["a"]
    assert occupancy.told(25) == {"a": 15}
    assert occupancy.moved("a", "falling_asleep", 27) == 0
    assert occupancy.moved("a", "sleeping", 28) == 3
    assert list(occupancy.backends) == []
    assert occupancy.moved("a", "waking", 50) == 0
    assert occupancy.moved("a", "absent", 51) == 1
    assert occupancy.moved("a", "failed", 60) == 0
    assert occupancy.told(70) == {}
    occupancy.moved("b", "ready", 80)
    assert occupancy.told(79) == {"b": 0}, "a clock that was set back"


def test_rates() -> None:
    """Over the last seconds, from the second look on."""
    rates = Rates()
    assert rates.tell(0, {"a": 100}) == {}
    assert rates.tell(2, {"a": 150, "b": 4}) == {"a": 25.0, "b": 2.0}
    assert rates.tell(2.1, {"a": 150}) == {"a": 23.8}
    assert rates.tell(2, {"a": 90}) == {}
    assert rates.tell(WINDOW * 5, {"a": 900}) == {}
    assert rates.tell(WINDOW * 6, {"a": 1000}) == {"a": 10.0}


# -- the file ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One that keeps three requests and ten days."""
    return Store(str(tmp_path / "state"), lambda: Kept(3, 10))


def sums_of(day: str = TODAY, backend: str = "chat", key: str = "me", **sums: Any) -> Any:
    return {(day, backend, key): Sums(**sums)}


def test_what_is_written_is_there_afterwards(store: Store) -> None:
    """Also for the next run of the proxy, in a file of nobody else's."""
    store.write(sums_of(requests=2, prompt=3, held=0.5), [record_of(entry(tokens=TOLD))], TODAY)
    store.write(sums_of(requests=1, gpu=4.5), [], TODAY)
    store.close()
    assert os.stat(store.path).st_mode & 0o777 == 0o600
    (row,) = store.usage(("backend", "key"), TODAY, TODAY)
    assert row == {
        "backend": "chat",
        "key": "me",
        "requests": 3,
        "prompt": 3,
        "completion": 0,
        "estimated": 0,
        "held": 0.5,
        "gpu": 4.5,
    }
    (one,) = store.requests(9, None, {})
    assert (one["id"], one["prompt"], one["completion"], one["estimated"]) == (1, 7, 5, False)


def test_sums_by_what_is_asked(store: Store) -> None:
    """Days, backends and keys, and all together; nothing of no days."""
    for day, backend, key in (("2026-01-30", "a", "x"), (TODAY, "a", "x"), (TODAY, "b", "y")):
        store.write(sums_of(day, backend, key, requests=1), [], TODAY)
    told = [(row["day"], row["requests"]) for row in store.usage(("day",), "2026-01-01", TODAY)]
    assert told == [("2026-01-30", 1), (TODAY, 2)]
    assert [row["requests"] for row in store.usage((), "2026-01-01", TODAY)] == [3]
    assert store.usage((), "2025-01-01", "2025-01-02") == []
    assert store.usage(("key",), "2025-01-01", "2025-01-02") == []


def test_only_so_much_is_kept(store: Store) -> None:
    """The newest requests and days, however many there were."""
    store.write(sums_of("2026-01-20", requests=1), [], TODAY)
    store.write(sums_of("2026-01-21", requests=1), [record_of(entry())] * 9, TODAY)
    store.write({}, [record_of(entry())] * 2, TODAY)
    assert [one["id"] for one in store.requests(9, None, {})] == [5, 4, 3]
    assert [row["day"] for row in store.usage(("day",), "2026-01-01", TODAY)] == ["2026-01-21"]


def test_no_history_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    """Sums are, and a history from before is dropped with the next request."""
    kept = Kept(5, 10)
    store = Store(str(tmp_path), lambda: kept)
    store.write({}, [record_of(entry())], TODAY)
    kept = Kept(0, 10)
    store.write(sums_of(requests=1), [record_of(entry())], TODAY)
    assert store.requests(9, None, {}) == []
    assert len(store.usage(("day",), TODAY, TODAY)) == 1


def test_requests_page_by_page(tmp_path: Path) -> None:
    """The newest first, by what is asked."""
    store = Store(str(tmp_path), lambda: Kept(100, 10))
    outcomes = ("ok", "refused")
    store.write({}, [record_of(entry(key="ab"[n % 2], outcome=outcomes[n > 5])) for n in range(10)], TODAY)
    assert [one["id"] for one in store.requests(3, None, {})] == [10, 9, 8]
    assert [one["id"] for one in store.requests(3, 8, {})] == [7, 6, 5]
    assert [one["id"] for one in store.requests(9, 8, {"key": "b", "outcome": "ok"})] == [6, 4, 2]
    assert store.requests(9, None, {"backend": "' OR 1 --"}) == []


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at" * 20, None])
def test_a_damaged_file_is_put_aside(store: Store, content: bytes | None) -> None:
    """It is told, and a new one is begun."""
    store.write({}, [record_of(entry())] * 3, TODAY)
    store.close()
    whole = Path(store.path).read_bytes()
    Path(store.path).write_bytes(content or whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StoreError):
        store.requests(9, None, {})
    store.write(sums_of(requests=1), [], TODAY)
    assert len(store.usage(("day",), TODAY, TODAY)) == 1
    assert os.path.exists(store.path + ".damaged")
    assert "is damaged" in store.notes[0]


def test_a_file_of_a_newer_version_is_left_alone(store: Store) -> None:
    """Whoever goes back to an older version loses nothing."""
    store.write(sums_of(requests=1), [], TODAY)
    store.close()
    database = sqlite3.connect(store.path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer"):
        store.write(sums_of(requests=1), [], TODAY)
    assert not os.path.exists(store.path + ".damaged")
    assert store.notes == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """It is told as what it is."""
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "state"), lambda: Kept(1, 1))
    for use in (lambda: store.write(sums_of(), [], TODAY), lambda: store.requests(1, None, {})):
        with pytest.raises(StoreError, match="state"):
            use()
    store.close()


# -- the book ---------------------------------------------------------------------------------------


class Lane:
    """A thread that works when the test says so, unless it works at once."""

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def run(self, job: Callable[[], T]) -> Deferred[T]:
        if self.at_once:
            return execute(job)
        waiting: Deferred[T] = Deferred()
        self.jobs.append((job, waiting))
        return waiting

    def work(self, *, tell: bool = True) -> None:
        jobs, self.jobs = self.jobs, []
        for job, waiting in jobs:
            done = execute(job)
            if tell:
                done.addBoth(waiting.callback)

    def close(self) -> None:
        """Its threads end by themselves."""


class Shelf(Store):
    """A store that fails when it is told to."""

    broken = False

    def write(self, *what: Any) -> None:
        if self.broken:
            raise StoreError("the disk is full")
        super().write(*what)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """One that keeps much."""
    return Shelf(str(tmp_path), lambda: Kept(100_000, 10))


def a_book(shelf: Shelf, lane: Lane | None = None, claim: float = 0.5) -> tuple[Book, Clock]:
    clock = Clock()
    clock.advance(NOON)
    return Book(clock, lane or Lane(), lambda: shelf, lambda _: claim), clock


def now(found: Deferred[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    told: list[Any] = []
    found.addBoth(told.append)
    return list(told[0])


def test_requests_are_written_by_the_batch(shelf: Shelf) -> None:
    """Some seconds after the first; those about no backend are left out."""
    book, clock = a_book(shelf)
    book.observe([entry(tokens=TOLD), entry(route="-")])
    clock.advance(GATHER / 2)
    book.observe([entry(path="/" + "x" * 999)])
    assert shelf.requests(9, None, {}) == []
    clock.advance(GATHER / 2)
    assert [len(one["path"]) for one in shelf.requests(9, None, {})] == [LONGEST_PATH, 5]
    assert clock.getDelayedCalls() == []


def test_what_is_asked_has_what_was_observed(shelf: Shelf) -> None:
    """Without waiting for the next write."""
    book, clock = a_book(shelf)
    book.observe([entry(tokens=TOLD)])
    assert now(book.requests(9, None, {}))[0]["completion"] == 5
    assert now(book.usage(("key",), TODAY, TODAY))[0]["requests"] == 1
    assert clock.getDelayedCalls() == []


def test_gpu_time_is_written_while_it_goes_on(shelf: Shelf) -> None:
    """And to the second when it ends; half of a GPU counts half."""
    book, clock = a_book(shelf)
    book.open_requests = lambda: [Open("chat", "me", 1.0), Open("other", "you", 1.0)]

    def move(state: Any) -> None:
        book.heard(Transition(clock.seconds(), "chat", "absent", state, "x"))

    move("starting")
    clock.advance(GPU_GATHER)
    (row,) = shelf.usage(("key",), TODAY, TODAY)
    assert (row["key"], row["gpu"], row["requests"]) == ("me", GPU_GATHER / 2, 0)
    book.open_requests = list
    clock.advance(4)
    move("absent")
    clock.advance(GPU_GATHER)
    (row,) = shelf.usage(("key",), TODAY, TODAY)
    assert row["gpu"] == (GPU_GATHER + 4) / 2
    assert clock.getDelayedCalls() == []


def test_a_backend_without_gpus_costs_nothing(shelf: Shelf) -> None:
    """Nothing is written of it."""
    book, clock = a_book(shelf, claim=0.0)
    book.heard(Transition(clock.seconds(), "far", "absent", "ready", "x"))
    clock.advance(GPU_GATHER * 3)
    assert not os.path.exists(shelf.path)
    book.observe([entry("far")] * 9)
    clock.advance(GPU_GATHER)
    assert book.ledger.unshared == 0, "nothing is remembered of its requests"
    book.close()
    assert clock.getDelayedCalls() == []


def test_a_write_that_fails_is_done_again(shelf: Shelf) -> None:
    """Nothing is lost, and nothing counted twice."""
    book, clock = a_book(shelf)
    shelf.broken = True
    book.observe([entry(path="/1"), entry(path="/2")])
    clock.advance(GATHER)
    book.observe([entry(path="/3")])
    clock.advance(GATHER)
    shelf.broken = False
    clock.advance(GPU_GATHER)
    assert [one["path"] for one in shelf.requests(9, None, {})] == ["/3", "/2", "/1"]
    assert shelf.usage((), TODAY, TODAY)[0]["requests"] == 3
    assert clock.getDelayedCalls() == []


def test_what_cannot_be_written_for_long_is_bounded(shelf: Shelf) -> None:
    """The oldest requests are given up; the sums have them."""
    book, clock = a_book(shelf)
    shelf.broken = True
    rounds = MOST_WAITING // MOST_AT_ONCE + 3
    for _ in range(rounds):
        book.observe([entry()] * MOST_AT_ONCE)
        clock.advance(GPU_GATHER)
    shelf.broken = False
    clock.advance(GPU_GATHER)
    assert shelf.usage((), TODAY, TODAY)[0]["requests"] == MOST_AT_ONCE * rounds
    assert len(shelf.requests(MOST_WAITING * 2, None, {})) == MOST_WAITING


def test_a_rush_is_not_kept_one_by_one(shelf: Shelf) -> None:
    """The sums have all; of those that failed there are some among those that are kept."""
    book, clock = a_book(shelf)
    for _ in range(2):
        book.observe([entry(tokens=TOLD)] * 900 + [entry(outcome="refused")] * 900)
        clock.advance(GATHER)
    assert shelf.usage((), TODAY, TODAY)[0]["requests"] == 3600
    outcomes = [one["outcome"] for one in shelf.requests(MOST_WAITING, None, {})]
    assert (outcomes.count("ok"), outcomes.count("refused")) == (MOST_AT_ONCE * 2, MOST_AT_ONCE * 2)


def test_one_write_at_a_time(shelf: Shelf) -> None:
    """What comes meanwhile waits for the next."""
    lane = Lane(at_once=False)
    book, clock = a_book(shelf, lane)
    book.observe([entry()])
    clock.advance(GATHER)
    book.observe([entry()])
    clock.advance(GATHER)
    assert len(lane.jobs) == 1
    lane.work()
    clock.advance(GATHER)
    lane.work()
    assert len(shelf.requests(9, None, {})) == 2


@pytest.mark.parametrize("broken", [False, True])
def test_the_end_writes_what_is_left(shelf: Shelf, broken: bool) -> None:
    """Once: also what a thread was about to write, whatever came of that."""

    class Ending(Lane):
        def run(self, job: Callable[[], T]) -> Deferred[T]:
            waiting = super().run(job)
            if len(self.jobs) > 1:
                # The reactor has stopped: nobody is told.
                self.work(tell=False)
                shelf.broken = False
            return waiting

    book, clock = a_book(shelf, Ending(at_once=False))
    shelf.broken = broken
    book.heard(Transition(NOON, "chat", "absent", "ready", "x"))
    book.observe([entry()])
    clock.advance(GATHER)
    book.observe([entry()])
    book.close()
    book.close()
    book.observe([entry()])
    assert shelf.usage((), TODAY, TODAY)[0]["requests"] == 2
    assert shelf.usage((), TODAY, TODAY)[0]["gpu"] == GATHER / 2
    assert len(shelf.requests(9, None, {})) == 2
    assert clock.getDelayedCalls() == []


def test_the_end_of_a_proxy_that_cannot_write(shelf: Shelf) -> None:
    """It ends all the same."""
    book, _ = a_book(shelf)
    shelf.broken = True
    book.observe([entry()])
    book.close()
    assert not os.path.exists(shelf.path)


def test_days_are_those_of_utc() -> None:
    """Whatever the clock on the wall says."""
    assert day_of(NOON) == TODAY
    assert day_of(1_769_903_999.9) == TODAY
    assert day_of(1_769_904_000) == "2026-02-01"
