"""Tables fit the terminal: what matters least goes first, and names are never cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from llmproxy.cli.columns import Column, shorten, table
from llmproxy.cli.sharing_view import gpu_table, leases_table
from llmproxy.cli.usage_view import usage_table
from llmproxy.cli.view import backends_table
from tests.unit.fake_proxy import GIB, backend

BUSY: list[dict[str, Any]] = [
    backend("coder", "ready", idle_in=589.0, in_flight=3, tokens_per_second=131.4),
    backend(
        "qwen7b",
        "starting",
        waiting=12,
        phase="loading weights",
        progress=0.5,
        eta=13.0,
        models=["qwen7b-bnb4", "Qwen/Qwen2.5-7B-Instruct-AWQ"],
    ),
    backend("a-backend-with-a-long-name", "absent", waits={"why": "coder is busy", "on": ["coder"]}),
]


def plain(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]


def words(*cells: str) -> list[Text]:
    return [Text(cell) for cell in cells]


def test_a_pipe_gets_everything() -> None:
    """Nothing is shortened or left out where there is no terminal."""
    heading, _, qwen, _ = plain(backends_table(BUSY, 20.0, None))
    assert " ".join(heading.split()) == "BACKEND STATE FOR IN FLIGHT WAITING TOKENS/S NEXT MODELS ADDRESS"
    assert "qwen7b-bnb4, Qwen/Qwen2.5-7B-Instruct-AWQ" in qwen


def test_eighty_columns() -> None:
    """What is to be known of a backend is there: its state, since when, who waits and what comes next."""
    lines = plain(backends_table(BUSY[:2], 20.0, 80))
    assert max(map(len, lines)) <= 80
    assert "MODELS" not in lines[0]
    assert "loading weights 50%, 13 s left" in lines[2]
    assert "stops in 9 m 49 s" in lines[1]
    assert "131" in lines[1]


def test_narrow() -> None:
    """Names and states stay, however narrow it is."""
    for width in range(1, 60):
        rows = plain(backends_table(BUSY, 20.0, width))[1:]
        assert [row.split()[:2] for row in rows] == [
            ["coder", "ready"],
            ["qwen7b", "starting"],
            ["a-backend-with-a-long-name", "absent"],
        ]


def test_what_is_given_up_first() -> None:
    """The lowest numbers, what is empty before all; what was shortened gets back what is left over."""
    columns = [
        Column("NAME", words("a-name")),
        Column("EMPTY", words(""), drop=9),
        Column("LONG", words("x" * 20), shorten=(2, 6)),
        Column("NUMBER", words("7"), right=True, drop=3),
    ]
    assert plain(table(columns, None)) == [
        "NAME     EMPTY   LONG                   NUMBER",
        "a-name           xxxxxxxxxxxxxxxxxxxx        7",
    ]
    assert plain(table(columns, 36)) == [
        "NAME    LONG                  NUMBER",
        "a-name  xxxxxxxxxxxxxxxxxxxx       7",
    ]
    assert plain(table(columns, 25))[1] == "a-name  xxxxxx...       7"
    assert plain(table(columns, 21))[1] == "a-name  xxxxxxxxxx..."
    assert plain(table(columns, 5))[1] == "a-name  xxx..."


def test_brief_headings() -> None:
    """A heading that is wider than what stands below it is said in fewer letters where that helps."""
    columns = [Column("A", words("a")), Column("IN FLIGHT", words("3"), right=True, brief=(0, "BUSY"))]
    assert plain(table(columns, 8)) == ["A  BUSY", "a     3"]
    assert plain(table(columns, 30))[0] == "A   IN FLIGHT"
    columns.append(Column("LONG", words("x" * 20), drop=1))
    assert plain(table(columns, 29))[0] == "A  BUSY  LONG"
    assert plain(table(columns, 20))[0] == "A  IN FLIGHT"  # what has gone has left room for it


def test_shorten() -> None:
    """Dots stand for what is missing, as far as there is room for them."""
    assert [shorten(Text("abcdef"), width).plain for width in (6, 5, 3, 1)] == ["abcdef", "ab...", "...", "."]
    assert shorten(Text("\u6a21\u578b\u6a21\u578b"), 6).cell_len <= 6


cells = st.text(st.characters(exclude_categories=("C", "Z")), max_size=30)


@given(
    st.lists(
        st.tuples(
            st.lists(cells, min_size=2, max_size=2), st.booleans(), st.integers(1, 9), st.integers(1, 12)
        ),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 120),
)
def test_it_fits_or_all_that_may_go_has_gone(
    made: list[tuple[list[str], bool, int, int]], width: int
) -> None:
    """No line is wider than the terminal but for what is never given up; the first column is always whole."""
    columns = [Column("N", words("first", "second"))]
    columns += [
        Column(f"C{place}", words(*texts), right, drop=None if place == 0 else rank, shorten=(rank, least))
        for place, (texts, right, rank, least) in enumerate(made)
    ]
    lines = table(columns, width)
    assert [line.plain.split()[0] for line in lines[1:]] == ["first", "second"]
    kept = made[0]
    least = 6 + 2 + max(2, min(kept[3], max(Text(text).cell_len for text in kept[0])))
    assert max(line.cell_len for line in lines) <= max(width, least)


def test_other_tables() -> None:
    """GPUs, leases and usage fit 80 columns, too."""
    gpu = {
        "gpu": "0",
        "unit": "bytes",
        **dict.fromkeys(("total", "reserve", "lent", "claimed", "unclaimed"), 24 * GIB),
        "claims": [{"name": "coder", "memory": 14 * GIB}],
        "leases": ["lease-1"],
        "measured": {"free": 9 * GIB},
    }
    lines = plain(gpu_table([gpu], 80))
    assert max(map(len, lines)) <= 80
    assert "coder 14.0 GiB, lease-1" in lines[1]
    lease = {"id": "lease-1", "gpu": "0", "memory": 0.5, "held": False, "until": 99.0, "note": "a game" * 20}
    lease["waits"] = {"why": "until coder has left"}
    lines = plain(leases_table([lease], 9.0, 80))
    assert max(map(len, lines)) <= 80
    assert "until coder has left" in lines[1]


def test_usage() -> None:
    """Thousands are told apart, there is a sum, and what nobody has is left out."""
    row = {
        "key": "me",
        "requests": 1200,
        "prompt_tokens": 3456789,
        "completion_tokens": 12,
        "estimated_tokens": 0,
        "held_seconds": 75.0,
        "gpu_seconds": None,
    }
    lines = plain(usage_table(["key"], [row, {**row, "key": None, "gpu_seconds": 3.0}], 80))
    assert lines[0].split()[:2] == ["KEY", "REQUESTS"]
    assert "ESTIMATED" not in lines[0]
    assert lines[1].split()[:3] == ["me", "1,200", "3,456,789"]
    assert lines[2].split()[0] == "-"
    assert lines[3].split()[:3] == ["all", "2,400", "6,913,578"]
    assert "2 m 30 s" in lines[3]
    assert len(usage_table(["key"], [row], 80)) == 2
    assert "GPU TIME" not in usage_table(["key"], [row], None)[0].plain
