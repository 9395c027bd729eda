"""What a soak measures is judged as it should be."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from attrs import evolve

from tests.integration.chaos.expected import Asked, fixed
from tests.integration.chaos.judge import Verdict
from tests.integration.chaos.stage import Stage
from tests.integration.chaos.traffic import Records
from tests.integration.chaos.windows import Windows
from tests.integration.soak.__main__ import Beside, sweep
from tests.integration.soak.plot import draw
from tests.integration.soak.samples import Sample, judge, load, quantile, save, slope

FLAT = [
    Sample(
        at * 60.0,
        70_000_000 + at % 3 * 100_000,
        40 + at % 5,
        9,
        20 + at % 7,
        (0.01, 0.012, 0.02) * 5,
        100,
        (0.005,) * 15,
    )
    for at in range(1, 121)
]


def test_what_is_flat_is_right() -> None:
    """Two hours in which nothing grows."""
    verdict = judge(FLAT)
    assert verdict.wrong == ()
    assert verdict.figures["requests"] == str(120 * 115)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda at, one: evolve(one, resident=one.resident + at * 100_000), "memory grows by 6.0 MB"),
        (lambda at, one: evolve(one, files=one.files + at), "files grow"),
        (lambda at, one: evolve(one, timers=one.timers + at), "timers grow"),
        (lambda at, one: evolve(one, threads=one.threads + at), "threads grow"),
        (lambda at, one: evolve(one, latencies=(0.01 + at * 0.001,) * 15), "the median of small requests"),
    ],
)
def test_what_grows_is_wrong(change: object, told: str) -> None:
    """Each of them by itself."""
    assert callable(change)
    wrong = judge([change(at, one) for at, one in enumerate(FLAT)]).wrong
    assert any(told in each for each in wrong), wrong


@pytest.mark.parametrize(("crowd", "wrong"), [(30_000_000, 0), (40_000_000, 1)])
def test_what_a_crowd_takes_for_a_moment(crowd: int, wrong: int) -> None:
    """It is told apart from what is kept, and may be half of that."""
    saw = [evolve(one, resident=one.resident + (at % 4 == 3) * crowd) for at, one in enumerate(FLAT)]
    verdict = judge(saw)
    assert len(verdict.wrong) == wrong
    assert "70.0 to 70.0 MB are kept, +0.00 MB an hour" in verdict.figures["memory"]


def test_what_a_crowd_takes_is_wrong_where_it_grows() -> None:
    """Although nothing of it is kept."""
    saw = [evolve(one, resident=one.resident + (at % 4 == 3) * at * 250_000) for at, one in enumerate(FLAT)]
    (wrong,) = judge(saw).wrong
    assert wrong.startswith("memory grows by")


def test_a_machine_that_is_busier_is_not_the_proxy() -> None:
    """Where the model itself takes as much longer, nothing is said; where it takes less, it is."""
    slower = [evolve(one, latencies=(0.01 + at * 0.001,) * 15) for at, one in enumerate(FLAT)]
    as_much = [evolve(one, straight=(0.005 + at * 0.001,) * 15) for at, one in enumerate(slower)]
    less = [evolve(one, straight=(0.005 + at * 0.00005,) * 15) for at, one in enumerate(slower)]
    assert judge(as_much).wrong == ()
    assert len(judge(less).wrong) == 2


@pytest.mark.parametrize("what", ["latencies", "straight"])
@pytest.mark.parametrize("part", [slice(0, 10), slice(-10, None)])
def test_too_few_requests_are_wrong(what: str, part: slice) -> None:
    """Where somebody has ceased to ask, nothing is known of how long it takes; a short run need not know."""
    some = list(FLAT)
    some[part] = [
        evolve(one, latencies=()) if what == "latencies" else evolve(one, straight=()) for one in some[part]
    ]
    assert judge(some).wrong == ("only 0 small requests in a part of 10 min",)
    assert judge([evolve(one, at=one.at / 3) for one in some]).wrong == ()


def test_what_less_than_an_hour_tells_of_memory() -> None:
    """Nothing, and it says so."""
    grows = [evolve(one, resident=one.resident + at * 100_000) for at, one in enumerate(FLAT)]
    short = judge([evolve(one, at=one.at / 3) for one in grows])
    assert short.wrong == ()
    assert "not judged" in short.figures["memory"]
    assert "not judged" not in judge(grows).figures["memory"]


@pytest.mark.parametrize(
    ("word", "code", "fault", "wrong"),
    [
        ("right", "", "", False),
        ("left", "", "", False),
        ("right", "", "close-mid-body", True),
        ("cut", "", "close-mid-body", False),
        ("wrong", "another body", "error-event", True),
        ("refused", "queue_full", "", True),
        ("late", "", "", True),
    ],
)
def test_each_answer_is_judged_once(word: str, code: str, fault: str, wrong: bool) -> None:
    """What is over is judged and forgotten, also what was to be broken."""
    records = Records()
    asked = Asked("s1-1", "stream", "alpha", fixed(b""), fault=fault)
    records.end(records.begin(asked), Verdict(word, code))
    count, told = sweep(records, Windows())
    assert (count, bool(told)) == (1, wrong)
    assert sweep(records, Windows()) == (0, [])


def test_what_never_ends_is_wrong() -> None:
    """It is left alone as long as clients ask, and told at the end."""
    records = Records()
    records.begin(Asked("s1-1", "stream", "alpha", fixed(b"")))
    assert sweep(records, Windows()) == (0, [])
    count, told = sweep(records, Windows(), all_of_them=True)
    assert (count, len(told)) == (1, 1)


def test_whatever_goes_wrong_beside_is_told(tmp_path: Path) -> None:
    """Somebody who asks beside the crowd goes on after whatever was raised, and it is known."""

    class Failing(Beside):
        pause: ClassVar[float] = 0.0
        times = 0

        def once(self) -> None:
            self.times += 1
            if self.times == 3:
                self._over.set()
            raise EOFError(str(self.times))

    stage = Stage("process", tmp_path, "t")
    failing = Failing(stage, threading.Event())
    failing.run()
    assert stage.records.wrong == [f"Failing: EOFError('{time}')" for time in (1, 2, 3)]


def test_figures() -> None:
    """Least squares and quantiles, also of nothing."""
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert (slope([]), slope([(1, 1), (1, 2)])) == (0, 0)
    assert (quantile([3, 1, 2], 0.5), quantile([], 0.5), quantile([1, 2], 1.0)) == (2, 0, 2)


def test_kept_and_drawn(tmp_path: Path) -> None:
    """What is written down is read as it was, and the picture is one."""
    save(FLAT, tmp_path / "samples")
    assert load(tmp_path / "samples") == FLAT
    picture = ElementTree.fromstring(draw(FLAT, "two < three"))
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 5
