"""What inputs are made of: known ones, damaged in the ways that make parsers disagree."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

__all__ = ["TOKENS", "cuts", "damaged", "in_pieces", "texts"]

TOKENS = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\x00", b"\t", b" ", b"\x0b", b"\x7f"),
    *(
        b":",
        b";",
        b",",
        b"=",
        b'"',
        b"\\",
        b"/",
        b"//",
        b"..",
        b"/../",
        b"%2e",
        b"%2f",
        b"%00",
        b"%",
        b"?",
        b"#",
    ),
    *(b"0", b"1", b"-1", b"+1", b"0x1", b"ffffffff", b"99999999999999999999", b"1e1", b"5, 5"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: h\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"0\r\n\r\n",
        b"1\r\nx\r\n",
        b"5\r\nhello\r\n",
        b"GET / HTTP/1.1\r\n",
        b"HTTP/1.0",
        b"HTTP/1.1 200 OK\r\n",
    ),
    *(
        b"\xc3\xa4",
        b"\xff",
        b"\xc0\xae",
        b"\xa0",
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"data: ",
        b'"model"',
        b"--B",
    ),
)
"""Put where they do not belong."""


@st.composite
def damaged(
    draw: st.DrawFn, known: Sequence[bytes], *, tokens: Sequence[bytes] = TOKENS, most: int = 6
) -> bytes:
    """One of the known inputs, or several behind one another, with some damage."""
    data = b"".join(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
    # What is said again is read in another way: see llmproxy/http/known.py.
    data *= draw(st.sampled_from([1, 1, 2]))
    for _ in range(draw(st.integers(0, most))):
        kind = draw(st.sampled_from(["insert", "replace", "delete", "repeat", "flip", "splice", "cut"]))
        at = draw(st.integers(0, len(data)))
        span = draw(st.integers(1, 12))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(tokens)) + data[at:]
        elif kind == "replace":
            data = data[:at] + draw(st.sampled_from(tokens)) + data[at + span :]
        elif kind == "delete":
            data = data[:at] + data[at + span :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + span] * 2 + data[at + span :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "splice":
            other = draw(st.sampled_from(known))
            data = data[:at] + other[draw(st.integers(0, len(other))) :]
        elif kind == "cut":
            data = data[:at]
    return data


def cuts() -> st.SearchStrategy[list[int]]:
    """Where bytes are cut into pieces."""
    return st.lists(st.integers(0, 4000), max_size=8)


def in_pieces(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The bytes, cut there."""
    at = sorted({place % (len(data) + 1) for place in places})
    return [piece for a, b in zip([0, *at], [*at, len(data)], strict=True) if (piece := data[a:b])]


def texts(known: Sequence[str], most: int = 6) -> st.SearchStrategy[str]:
    """The same of texts."""
    return damaged([each.encode() for each in known], most=most).map(
        lambda data: data.decode("utf-8", "replace")
    )
