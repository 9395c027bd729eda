"""How the output of a service comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.runtimes.lines import Lines
from llmproxy.runtimes.swarm_events import Happening, read_happening
from llmproxy.runtimes.swarm_frames import Frames, Line, read_line

FRONT = (
    "2026-11-26T20:33:35.511275122Z com.docker.swarm.node.id=ogo6szpg,com.docker.swarm.service.id=8c3r,"
    "com.docker.swarm.task.id=njsqmc4kchpb "
)


def frame(data: bytes) -> bytes:
    return b"\x01\0\0\0" + len(data).to_bytes(4, "big") + data


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=20))
def test_frames(parts: list[bytes], cuts: list[int]) -> None:
    """However its bytes come, each frame is told once and whole."""
    told: list[bytes] = []
    frames = Frames(told.append)
    stream = b"".join(frame(part) for part in parts)
    for cut in cuts:
        frames.feed(stream[:cut])
        stream = stream[cut:]
    frames.feed(stream)
    assert told == parts


def test_a_terminal_has_no_frames() -> None:
    """Its bytes are told as they come."""
    told: list[bytes] = []
    frames = Frames(told.append, raw=True)
    frames.feed(b"\x01\0")
    frames.feed(b"abc")
    assert told == [b"\x01\0", b"abc"]


def test_lines() -> None:
    """What the engine has put in front is taken off, whatever the line is like."""
    found = read_line(FRONT + "hello, 2026-11-26T20:33:35Z com.docker.swarm.task.id=x y")
    assert found.text == "hello, 2026-11-26T20:33:35Z com.docker.swarm.task.id=x y"
    assert (found.task, found.at % 1_000_000_000) == ("njsqmc4kchpb", 511_275_122)
    assert read_line(FRONT) == Line("", found.at, "njsqmc4kchpb")
    assert read_line("2026-11-26T20:33:35.5Z  two blanks").text == " two blanks"
    assert read_line("nothing in front") == Line("nothing in front")


@given(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=60))
def test_any_line(text: str) -> None:
    """Whatever a server prints comes out as it was."""
    lines: list[str] = []
    Frames(Lines(lines.append).feed).feed(frame(f"{FRONT}{text}\n".encode()))
    assert [read_line(line).text for line in lines] == [text]


def test_events() -> None:
    """Containers of services, services and nodes count; all else says nothing."""
    name = "com.docker.swarm.service.name"
    attributes = {"com.docker.swarm.service.id": "s", name: "m", "exitCode": "137"}
    raw = {
        "Type": "container",
        "Action": "die",
        "timeNano": 5,
        "Actor": {"ID": "c", "Attributes": attributes},
    }
    assert read_happening(raw) == Happening("container", "die", "c", 137, 5, "m")
    assert read_happening({**raw, "Action": "exec_start: sh"}) is None
    assert read_happening({**raw, "Actor": {"ID": "c", "Attributes": {"exitCode": "137"}}}) is None
    node = {"Type": "node", "Action": "update", "Actor": {"ID": "n", "Attributes": {"name": "x"}}}
    assert read_happening(node) == Happening("node", "update", "n")
    assert read_happening({"Type": "network", "Action": "create", "Actor": {"ID": "n"}}) is None
    assert read_happening({"Type": "service"}) is None
