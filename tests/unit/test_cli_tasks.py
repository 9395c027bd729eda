"""How the command shows a backend that runs as several tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.cli.progress import step_of
from llmproxy.cli.tasks_view import tasks_table
from llmproxy.cli.top.looking import Seen
from llmproxy.cli.top.picture import summary
from llmproxy.cli.view import backend_lines, backends_table, what_next
from tests.unit.fake_proxy import FakeProxy, backend, run, served

NOWHERE = "no suitable node (insufficient resources on 3 nodes)"


def task(number: int, state: str = "ready", **more: Any) -> dict[str, Any]:
    """One as the API shows it."""
    return {
        "id": f"{number}x7w2ab9kq1zr5tv8yn3mc6de",
        "node": f"gpu-box-{number}",
        "state": state,
        "address": f"http://10.0.9.{number}:8000",
        "in_flight": 0,
        **more,
    }


def many(state: str = "ready", **more: Any) -> dict[str, Any]:
    """Two of three tasks run."""
    replicas = {
        "min": 1,
        "max": 4,
        "target_in_flight": 8,
        "wanted": 3,
        "ready": 2,
        "pending": NOWHERE,
        "tasks": [task(1, in_flight=7), task(2), task(3, "leaving", in_flight=1)],
        **more.pop("replicas", {}),
    }
    fields: dict[str, Any] = {"runtime": "swarm", "container": None, "service": "m", "reason": None}
    return backend("many", state, **{**fields, "idle_in": 90.0, "replicas": replicas, **more})


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    """A proxy with such a backend."""
    with served(monkeypatch) as found:
        found.backends = {"many": many(), "coder": backend("coder", "ready", idle_in=90.0)}
        yield found


def test_its_state_says_how_many() -> None:
    """``ready 2/3``, beside one that runs alone; what waits comes before when it leaves."""
    lines = [line.plain for line in backends_table([many(), backend("coder", "ready")], 20.0, None)]
    assert lines[1].split("  ")[0] == "many"
    assert "ready 2/3 " in lines[1]
    assert f"1 task waits: {NOWHERE}" in lines[1]
    assert "ready " in lines[2]
    assert "/" not in lines[2].partition("http")[0]
    assert "stops in 1 m 30 s" in what_next(many(replicas={"pending": None}))
    assert what_next(many(replicas={"wanted": 5})).startswith("3 tasks wait: ")


def test_one_that_looks_for_a_node() -> None:
    """With the reason, in the table and while somebody waits for it."""
    view = many("starting", phase="placing", reason=NOWHERE, replicas={"tasks": [], "ready": 0, "wanted": 1})
    assert what_next(view) == step_of(view) == f"placing: {NOWHERE}"
    assert "starting " in backends_table([view], 20.0, None)[1].plain
    assert sum(NOWHERE in line for line in backend_lines(view, 20.0)) == 1
    waits = {"why": "chat is busy", "on": ["chat"], "since": 0.0}
    room = backend("a", "absent", phase="waiting for room", reason="chat is busy", waits=waits)
    assert [line for line in backend_lines(room, 20.0) if "busy" in line] == ["  waits:       chat is busy"]


@pytest.mark.parametrize(
    ("width", "heading"),
    [
        (None, "TASK NODE STATE IN FLIGHT ADDRESS"),
        (120, "TASK NODE STATE IN FLIGHT ADDRESS"),
        (80, "TASK NODE STATE IN FLIGHT ADDRESS"),
        (46, "TASK NODE STATE IN FLIGHT"),
        (40, "TASK NODE STATE BUSY"),
    ],
)
def test_its_tasks_fit(width: int | None, heading: str) -> None:
    """Ids are short; the address goes first, and where and how a task is stays."""
    lines = [line.plain for line in tasks_table(many()["replicas"], width)]
    assert " ".join(lines[0].split()) == heading
    assert [line.split()[1:4] for line in lines[1:]] == [
        ["gpu-box-1", "ready", "7"],
        ["gpu-box-2", "ready", "0"],
        ["gpu-box-3", "leaving", "1"],
    ]
    assert lines[1].startswith("  1x7w2ab")
    if width is not None:
        assert max(map(len, lines)) <= width


@given(st.integers(1, 130), st.lists(st.text("abc-.0", max_size=40), min_size=1, max_size=4))
def test_any_width(width: int, nodes: list[str]) -> None:
    """There is a line for each task, and how it is stays, however narrow it is and nodes are named."""
    tasks = [task(number, node=node) for number, node in enumerate(nodes)]
    lines = [line.plain for line in tasks_table({"tasks": tasks}, width)]
    assert len(lines) == len(nodes) + 1
    assert all("ready" in line for line in lines[1:])


def test_none_run() -> None:
    """Then there is no table."""
    assert tasks_table(None, 80) == tasks_table({"tasks": []}, 80) == []


def test_status_of_all(proxy: FakeProxy) -> None:
    """What waits is told in full below the table."""
    lines = run("status").stdout.splitlines()
    assert "ready 2/3" in lines[1]
    assert lines[3] == f"many: 1 task waits: {NOWHERE}"


def test_status_of_one(proxy: FakeProxy) -> None:
    """Its service, how many tasks there may be, and each of them; with --json all of it."""
    told = run("status", "many").stdout
    assert "  service:     m\n" in told
    assert "  tasks:       2 of 3 ready; 1 to 4 allowed, one for each 8 requests\n" in told
    assert f"  pending:     {NOWHERE}\n" in told
    assert told.splitlines()[-1].split()[1:4] == ["gpu-box-3", "leaving", "1"]
    (found,) = json.loads(run("status", "many", "--json").stdout)["backends"]
    assert found["replicas"] == many()["replicas"]


def test_top_counts_it_once() -> None:
    """It is one backend that is ready."""
    seen = Seen(20.0, [many()], [], [], None)
    assert "1 of 1 ready" in summary(seen, "http://here", "12:00:00", 120).plain
