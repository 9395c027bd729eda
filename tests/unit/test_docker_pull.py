"""How far a pull is, from the messages of an engine, and what is told when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from attrs import define, field
from docker.errors import APIError
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.engines.phases import Phase
from llmproxy.runtimes.docker_pull import Pull, pull_image
from llmproxy.runtimes.interface import StartRefused


def step(layer: str, current: int, total: int) -> dict[str, Any]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": total}}


@define
class Engine:
    """Answers a pull."""

    messages: list[Any]
    asked: list[tuple[str, str]] = field(factory=list)

    def pull(self, repository: str, *, tag: str, stream: bool, decode: bool) -> Iterator[Any]:
        self.asked.append((repository, tag))
        for message in self.messages:
            if isinstance(message, Exception):
                raise message
            yield message


def test_layers_are_added_up() -> None:
    """A layer that is there already has no part in it, and what has been told does not shrink."""
    told: list[Phase] = []
    pull = Pull(told.append)
    for message in (
        {"status": "Pulling from vllm/vllm-openai", "id": "latest"},
        {"status": "Already exists", "id": "a", "progressDetail": {}},
        step("b", 0, 100),
        step("b", 50, 100),
        step("b", 50, 100),
        step("c", 0, 900),
        step("c", 50, 900),
        {"status": "Download complete", "id": "b"},
        step("c", 800, 900),
        {"status": "Extracting", "id": "b", "progressDetail": {"current": 1, "total": 100}},
        {"status": "Download complete", "id": "c"},
        {"status": "Digest: sha256:0"},
    ):
        pull.heard(message)
    assert told == [Phase("pulling", part) for part in (0.5, 0.9, 1.0)]


JUNK = st.none() | st.booleans() | st.integers() | st.text()
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b"]) | JUNK,
        "status": st.sampled_from(["Downloading", "Download complete"]) | JUNK,
        "progressDetail": st.dictionaries(st.sampled_from(["current", "total"]), JUNK) | JUNK,
    },
)


@given(st.lists(MESSAGES | st.builds(step, st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9))))
def test_any_messages(messages: list[Mapping[str, Any]]) -> None:
    """Whatever an engine says, what is told is a part that only grows."""
    told: list[Phase] = []
    pull = Pull(told.append)
    for message in messages:
        pull.heard(message)
    parts = [phase.progress or 0.0 for phase in told]
    assert parts == sorted(parts)
    assert all(0 <= part <= 1 for part in parts)


def test_a_pull_asks_for_one_image() -> None:
    """By its tag, or by ``latest``; and passes on what it hears."""
    engine = Engine(["no message", step("a", 1, 2)])
    heard: list[Any] = []
    pull_image(engine, "org/x", heard.append)  # type: ignore[arg-type]
    pull_image(engine, "org/x:1", heard.append)  # type: ignore[arg-type]
    assert engine.asked == [("org/x", "latest"), ("org/x", "1")]
    assert heard == [step("a", 1, 2)] * 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ({"error": "manifest for x:nope not found: manifest unknown"}, "There is no such image"),
        ({"error": "dial tcp: lookup registry-1.docker.io: no such host"}, "network"),
        ({"error": "something else"}, "docker login"),
        (APIError("pull access denied for x, repository does not exist"), "docker login"),
    ],
)
def test_a_pull_that_fails(answer: Any, hint: str) -> None:
    """It is refused with what the engine says, and with a fix."""
    with pytest.raises(StartRefused, match="image x cannot be pulled") as refused:
        pull_image(Engine([answer]), "x", lambda _: None)  # type: ignore[arg-type]
    assert hint in (refused.value.hint or "")
