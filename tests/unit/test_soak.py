"""What a soak measures is judged as it should be."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve

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


def test_a_machine_that_is_busier_is_not_the_proxy() -> None:
    """Where the model itself takes as much longer, nothing is said; where it takes less, it is."""
    slower = [evolve(one, latencies=(0.01 + at * 0.001,) * 15) for at, one in enumerate(FLAT)]
    as_much = [evolve(one, straight=(0.005 + at * 0.001,) * 15) for at, one in enumerate(slower)]
    less = [evolve(one, straight=(0.005 + at * 0.00005,) * 15) for at, one in enumerate(slower)]
    assert judge(as_much).wrong == ()
    assert len(judge(less).wrong) == 2


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
