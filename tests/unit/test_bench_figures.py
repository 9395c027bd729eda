"""How measurements become the figures of the benchmark table."""

from __future__ import annotations

import pytest

from bench.figures import Goal, added, medians, outcome, percentile, ratios, spreads
from bench.profiler import summary
from bench.scenarios import SCENARIOS
from bench.tables import markdown


def test_medians_and_spreads_are_taken_over_the_rounds() -> None:
    """Each figure of each peer is the median of its rounds, whatever the other peers have."""
    rounds = [{"direct": {"a": 1.0}, "nginx": {"a": 4.0}}, {"direct": {"a": 3.0}}, {"direct": {"a": 2.0}}]
    assert medians(rounds) == {"direct": {"a": 2.0}, "nginx": {"a": 4.0}}
    assert spreads(rounds) == {"direct": {"a": (1.0, 3.0)}, "nginx": {"a": (4.0, 4.0)}}


def test_added_is_the_difference_to_direct_of_the_same_round() -> None:
    """What a peer adds is its figure less the one that was measured without any proxy."""
    round_ = {"direct": {"a": 1.0, "b": 1.0}, "nginx": {"a": 1.5, "b": 3.0, "c": 1.0}}
    assert added(round_, ["a", "b"]) == {"nginx": {"added_a": 0.5, "added_b": 2.0}}
    assert added({"nginx": {"a": 1.5}}, ["a"]) == {}


def test_ratios_are_those_of_the_rounds() -> None:
    """A ratio is the median of the rounds' own: a round in which all were slower changes nothing."""
    rounds = [{"nginx": {"a": base}, "llmproxy": {"a": 3 * base, "b": 1.0}} for base in (1.0, 2.0, 9.0)]
    assert ratios(rounds, "nginx") == {"a": 3.0}
    assert ratios(rounds, "node") == {}


@pytest.mark.parametrize(("bases", "found"), [((1.0, -1.0, 2.0), {"a": 1.5}), ((1.0, -1.0, 0.0), {})])
def test_ratios_need_a_figure_above_zero(bases: tuple[float, ...], found: dict[str, float]) -> None:
    """Where the peer's figure is mostly not above zero there is no ratio."""
    rounds = [{"nginx": {"a": base}, "llmproxy": {"a": 2.0}} for base in bases]
    assert ratios(rounds, "nginx") == found


@pytest.mark.parametrize(
    ("goal", "limit", "met"),
    [
        (Goal("a", 3.0, "nginx"), 6.0, True),
        (Goal("a", 2.0, "nginx"), 4.0, False),
        (Goal("c", 2.0, "nginx"), -2.0, None),
        (Goal("b", 5.0), 5.0, False),
        (Goal("b", 6.0), 6.0, True),
    ],
)
def test_goals(goal: Goal, limit: float, met: bool | None) -> None:
    """A goal is a number, or so many times a peer's figure; it is open where there is no ratio to that."""
    figures = {"nginx": {"a": 2.0, "c": -1.0}, "llmproxy": {"a": 6.0, "b": 6.0, "c": 1.0}}
    found = outcome(goal, figures, {"a": 3.0})
    assert found is not None
    assert (found.limit, found.met) == (limit, met)


def test_goals_without_figures() -> None:
    """A goal whose figures were not measured is not told."""
    figures = {"nginx": {"a": 2.0}, "llmproxy": {"b": 6.0}}
    assert outcome(Goal("a", 1.0), figures, {}) is None
    assert outcome(Goal("b", 1.0, "nginx"), figures, {}) is None


def test_percentile() -> None:
    """A percentile is one of the values, the highest at most."""
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) != pytest.approx(0.0)


def test_scenarios_tell_figures_once() -> None:
    """Every figure stands in one scenario, and every goal is for a figure of its own scenario."""
    keys = [figure.key for scenario in SCENARIOS for figure in scenario.figures]
    assert len(keys) == len(set(keys))
    titles = [figure.title for scenario in SCENARIOS for figure in scenario.figures]
    assert len(titles) == len(set(titles))
    for scenario in SCENARIOS:
        assert {goal.key for goal in scenario.goals} <= {figure.key for figure in scenario.figures}


def test_profile_summary() -> None:
    """A function's share alone is of the stacks that it ends; with what it calls, of those it is in."""
    lines = ["main;serve;read 3", "main;serve 1", "main;serve;read;serve 4", "no stack"]
    assert summary(lines) == [("serve", 0.625, 1.0), ("read", 0.375, 0.875)]


def test_tables_of_a_run() -> None:
    """The tables have a column for each peer that was measured, and tell of each goal whether it is met."""
    key = "cpu_per_token_us"
    document = {
        "figures": {"nginx": {key: 20.0}, "llmproxy": {key: 30.0}},
        "ratios_to_nginx": {key: 1.5},
        "ratios_to_node": {},
        "rounds": {"tokens": [{"llmproxy": {key: 28.0}}, {"llmproxy": {key: 32.0}}]},
        "goals": [
            {
                "figure": key,
                "value": 30.0,
                "limit": 40.0,
                "times": 2.0,
                "peer": "nginx",
                "ratio": 1.5,
                "met": True,
            }
        ],
    }
    assert list(markdown(document)) == [
        "| figure | unit | nginx | llmproxy | lowest..highest | / nginx | / node |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| CPU per token, 50 streams of 50/s | us | 20.0 | 30.0 | 28.0..32.0 | 1.50 | |",
        "",
        "| goal | measured | at most | that is | ratio | |",
        "| --- | ---: | ---: | --- | ---: | --- |",
        "| CPU per token, 50 streams of 50/s | 30.0 us | 40.0 us | 2 x nginx | 1.50 | met |",
    ]
