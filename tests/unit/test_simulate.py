"""The simulator of loads: the same figures each time, and llmproxy's scheduling beside the two others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.simulate import main, simulate
from bench.simulation.loads import LOADS, Kind, Request, kinds, made_up, trace
from bench.simulation.outcome import bound
from bench.simulation.policies import FirstCome, LeastRecent, Placement
from bench.simulation.world import Broken, World
from llmproxy.scheduling.claims import SHARES, Room

NAMES = [f"m{number}" for number in range(8)]
RATE = 12.0


def world(policy: Placement | LeastRecent | FirstCome, *fleet: Kind) -> World:
    """One GPU with these models."""
    return World(policy, fleet, {"0": Room()})


def kind(name: str, share: float) -> Kind:
    return Kind(name, {"0": int(share * SHARES)})


@pytest.mark.parametrize("load", list(LOADS))
def test_the_same_arguments_give_the_same_figures(load: str) -> None:
    """Nothing is left to a clock, to the order of a hash or to chance without a seed."""
    requests = made_up(load, NAMES, 7, RATE, 10.0)
    assert requests == made_up(load, NAMES, 7, RATE, 10.0)
    assert requests != made_up(load, NAMES, 8, RATE, 10.0)
    assert simulate(requests, NAMES, seed=7) == simulate(requests, NAMES, seed=7)


@pytest.mark.parametrize("load", ["alternating", "zipf"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_llmproxy_has_them_wait_for_less(load: str, seed: int) -> None:
    """All waiting together is less than under either of the others, and the longest wait by far."""
    requests = made_up(load, NAMES, seed, RATE, 60.0)
    ours, least_recent, first_come = simulate(requests, NAMES, seed=seed)
    assert ours.waits.requests == least_recent.waits.requests == first_come.waits.requests == len(requests)
    assert ours.waits.total < least_recent.waits.total
    assert ours.waits.total < first_come.waits.total
    assert ours.waits.worst < 0.5 * least_recent.waits.worst
    assert ours.swaps < first_come.swaps


@pytest.mark.parametrize("load", list(LOADS))
@pytest.mark.parametrize(("models", "rate"), [(3, 3.0), (3, 60.0), (8, 30.0), (60, 3.0)])
def test_no_request_waits_beyond_its_bound(load: str, models: int, rate: float) -> None:
    """Each request is handed over within the time that the rules allow."""
    names = [f"m{number}" for number in range(models)]
    requests = made_up(load, names, 5, rate, 15.0)
    fleet = kinds(names, 5)
    played = world(Placement(), *fleet)
    played.replay(requests)
    limit = bound(played, requests, max_wait=30.0, min_residency=30.0)
    assert sum(len(waits) for waits in played.waits.values()) == len(requests)
    assert max(max(waits) for waits in played.waits.values()) <= limit


def test_a_busy_model_keeps_the_others_out_only_under_least_recently_used() -> None:
    """A model that is never idle is drained for another one by llmproxy; the other way, that one waits until
    the load ends."""
    steady = [Request(float(at), "a", 10.0) for at in range(0, 1800, 4)]
    requests = sorted([*steady, Request(100.0, "b", 5.0)], key=lambda one: one.at)
    waits = {}
    for policy in (Placement(), LeastRecent()):
        played = world(policy, kind("a", 0.9), kind("b", 0.9))
        played.replay(requests)
        waits[type(policy)] = played.waits["b"][0]
    assert waits[Placement] < 150
    assert waits[LeastRecent] > 1600


def test_first_come_changes_the_model_for_each_request() -> None:
    """A, B, A, B without batches is a swap for each of them."""
    requests = [Request(float(number), "ab"[number % 2], 1.0) for number in range(6)]
    played = world(FirstCome(), kind("a", 0.9), kind("b", 0.9))
    played.replay(requests)
    assert (played.loads, played.swaps) == (6, 5)


def test_the_world_holds_a_policy_to_what_a_gpu_can_do() -> None:
    """A start without room, beside another start, or a stop of a busy model ends the simulation."""
    played = world(LeastRecent(), kind("a", 0.6), kind("b", 0.6), kind("c", 0.3))
    played.start("a")
    with pytest.raises(Broken, match="no room"):
        played.start("b")
    with pytest.raises(Broken, match="beside a"):
        played.start("c")
    with pytest.raises(Broken, match="is starting, and stopped"):
        played.leave("a")
    while played.step():
        pass
    played.servers["a"].flying.add(played.later(60.0, lambda: None))
    with pytest.raises(Broken, match="busy"):
        played.leave("a")


# -- traces -----------------------------------------------------------------------------------------

CSV = """time,model,seconds,priority
# morning
0,coder,4.5
12.5, chat ,3,2

7,coder,1
"""


def test_a_trace_is_csv() -> None:
    """With or without a head and priorities, in the order of time."""
    assert trace(CSV.splitlines()) == [
        Request(0.0, "coder", 4.5),
        Request(7.0, "coder", 1.0),
        Request(12.5, "chat", 3.0, 2),
    ]


def test_a_trace_is_json_lines() -> None:
    """An object a line."""
    lines = [
        '{"time": 1, "model": "a", "seconds": 2}',
        '{"time": 3, "model": "b", "seconds": 4, "priority": 1}',
    ]
    assert trace(lines) == [Request(1.0, "a", 2.0), Request(3.0, "b", 4.0, 1)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("soon,a,1", "time: 'soon' is no number"),
        ("1,a,nan", "seconds: 'nan' is not 0 or more seconds"),
        ("1,a,-1", "seconds: '-1' is not 0 or more seconds"),
        ("1,a", "has 2 values"),
        ("1,,3", "model is missing"),
        ("1,a,3,high", "priority: 'high' is no whole number"),
        ('{"time": 1', "is no JSON"),
        ('{"time": 1, "model": "a"}', "seconds is missing"),
        ('{"time": 1, "model": 7, "seconds": 1}', "model: 7 is no name"),
        ('{"time": 1, "model": "a", "seconds": 1, "colour": 1}', "colour: there are time, model"),
        ('{"time": null, "model": "a", "seconds": 1}', "time: None is no number"),
    ],
)
def test_garbage_in_a_trace_is_told_with_its_line(line: str, told: str) -> None:
    """Which line it is, and what is wrong with it."""
    with pytest.raises(ValueError, match=r"^line 3: ") as caught:
        trace(["time,model,seconds", "0,a,1", line])
    assert told in str(caught.value)


def test_an_empty_trace_is_told() -> None:
    """A file without requests is no trace."""
    with pytest.raises(ValueError, match="no request"):
        trace(["time,model,seconds"])


def test_the_command_replays_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints both tables and writes the same for programs."""
    (tmp_path / "day.csv").write_text(CSV)
    assert (
        main(["--trace", str(tmp_path / "day.csv"), "--json", str(tmp_path / "out.json"), "--claims", "0.9"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "day.csv: 3 requests for 2 models" in shown
    assert "least recently used" in shown
    written = json.loads((tmp_path / "out.json").read_text())
    assert [one["policy"] for one in written["policies"]] == ["llmproxy", "least recently used", "first come"]
    assert all(one["waits"]["requests"] == 3 for one in written["policies"])
    assert set(written["policies"][0]["models"]) == {"chat", "coder"}


def test_the_command_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage ends it with one line, and status 1."""
    (tmp_path / "day.csv").write_text("0,a,1\n0,b\n")
    assert main(["--trace", str(tmp_path / "day.csv")]) == 1
    told = capsys.readouterr().err
    assert "day.csv, line 2: has 2 values" in told
    assert main(["--trace", str(tmp_path / "none.csv")]) == 1


@pytest.mark.parametrize("load", list(LOADS))
def test_the_command_makes_a_load_up(load: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of load, for many small models that can sleep, too."""
    assert main(["--load", load, "--models", "60", "--minutes", "3", "--rate", "8", "--sleep"]) == 0
    assert "for 60 models in 3 minutes" in capsys.readouterr().out


def test_sleep_spares_reloads() -> None:
    """A model that can sleep is back in seconds, so that all wait for less."""
    requests = made_up("alternating", NAMES, 1, RATE, 10.0)
    awake, asleep = (simulate(requests, NAMES, sleep=sleep)[0] for sleep in (False, True))
    assert asleep.waits.total < awake.waits.total
