"""Header rules: what is passed on, in which order and case, what is dropped, and what is added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.http.headers import (
    Fields,
    authority,
    is_event_stream,
    is_json,
    request_head,
    response_head,
    upgrade,
    valid_request_id,
)

HOP_BY_HOP = [
    b"Connection",
    b"Keep-Alive",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
    b"Proxy-Connection",
]
HOP_BY_HOP += [b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade"]
CREDENTIALS = [b"Authorization", b"X-API-Key", b"Api-Key"]
REWRITTEN = [b"Content-Length", b"Expect", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto"]
REWRITTEN += [b"X-Request-ID", b"Forwarded"]
OURS = [b"X-Request-ID", b"X-LLMProxy-Backend", b"X-LLMProxy-Cold-Start"]
PLAIN = [b"Accept", b"Content-Type", b"Cookie", b"Set-Cookie", b"X-Odd", b"Via", b"X_Odd"]

TOKEN = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)


@st.composite
def _in_any_case(draw: st.DrawFn, names: list[bytes]) -> bytes:
    name = draw(st.sampled_from(names))
    return draw(st.sampled_from([name, name.lower(), name.upper(), name.swapcase()]))


# What a parser lets in: no control characters but the tab, nothing blank at either end.
VALUE = st.one_of(
    st.from_regex(
        rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]{0,20}[\x21-\x7e\x80-\xff])?", fullmatch=True
    ),
    st.just(b""),
    st.sampled_from(
        [b"close", b"keep-alive, X-Odd", b"upgrade", b"websocket", b"chunked", b"Cookie,,accept"]
    ),
)
NAME = st.one_of(_in_any_case(HOP_BY_HOP + CREDENTIALS + REWRITTEN + OURS + PLAIN + [b"Host"]), TOKEN)
RAW = st.lists(st.tuples(NAME, VALUE), max_size=12)


def lines(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A head's first line and its fields."""
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    first, *rest = head[:-4].split(b"\r\n")
    return first, [(name, value) for name, _, value in (line.partition(b": ") for line in rest)]


def options(raw: list[tuple[bytes, bytes]]) -> set[bytes]:
    """What ``Connection`` names, worked out plainly."""
    joined = b",".join(value for name, value in raw if name.lower() == b"connection")
    return {option.strip().lower() for option in joined.split(b",")}


def lower(names: list[bytes]) -> set[bytes]:
    return {name.lower() for name in names}


@given(RAW)
def test_fields_are_the_first_of_each_name(raw: list[tuple[bytes, bytes]]) -> None:
    """Without regard to case; all of a name are there in their order, and nothing that was not."""
    fields = Fields(raw)
    assert fields.raw == raw
    for wanted in {name.lower() for name, _ in raw}:
        values = [value for name, value in raw if name.lower() == wanted]
        assert fields.get(wanted) == values[0]
        assert fields.all(wanted) == values
    assert len(fields) == len({name.lower() for name, _ in raw})
    assert fields.get(b"x-absent") is None
    assert fields.get(b"x-absent", b"y") == b"y"
    assert fields.all(b"x-absent") == []
    assert fields.connection_options() - {b""} == options(raw) - {b""}


@given(RAW, st.booleans(), st.booleans(), st.booleans(), st.none() | st.integers(0, 2**40), st.booleans())
def test_what_a_backend_gets(
    raw: list[tuple[bytes, bytes]],
    passthrough: bool,
    own_host: bool,
    own_key: bool,
    length: int | None,
    ws: bool,
) -> None:
    """All end-to-end fields as they were, in their order; none that belong to a connection; framing, origin
    and key are ours."""
    first, sent = lines(
        request_head(
            b"POST",
            b"/x?y",
            Fields(raw),
            client=b"192.0.2.1",
            scheme=b"https",
            request_id=b"id",
            length=length,
            host=b"backend:1" if own_host else None,
            authorization=b"Bearer own" if own_key else None,
            passthrough=passthrough,
            upgrade=b"websocket" if ws else None,
        )
    )
    assert first == b"POST /x?y HTTP/1.1"

    def values(wanted: bytes) -> list[bytes]:
        return [value for name, value in sent if name.lower() == wanted]

    def came(wanted: bytes) -> list[bytes]:
        return [value for name, value in raw if name.lower() == wanted]

    never = lower(HOP_BY_HOP + REWRITTEN) | (options(raw) - {b"content-length", b"host"})
    special = {b"host", *lower(CREDENTIALS)}
    left_out = {name.replace(b"_", b"-") for name in never | special}
    passed = [field for field in raw if field[0].lower().replace(b"_", b"-") not in left_out]
    assert [field for field in sent if field in passed and field[0].lower() not in never | special] == passed
    assert len(sent) - len(passed) <= 2 + 4 + 1 + 2 + sum(name.lower() in special for name, _ in raw)
    # Whose request it is.
    assert values(b"x-forwarded-for") == [b"192.0.2.1"]
    assert values(b"x-forwarded-proto") == [b"https"]
    assert values(b"x-forwarded-host") == [host for host in came(b"host")[:1] if host]
    assert values(b"x-request-id") == [b"id"]
    assert values(b"host") == ([b"backend:1"] if own_host else came(b"host"))
    # Its key.
    if passthrough:
        for name in lower(CREDENTIALS):
            assert values(name) == ([] if name in options(raw) else came(name))
    else:
        assert values(b"authorization") == [b"Bearer own"] * own_key
        assert values(b"x-api-key") == values(b"api-key") == []
    # Its framing and its connection.
    assert values(b"content-length") == ([] if length is None else [b"%d" % length])
    assert values(b"upgrade") == [b"websocket"] * ws
    assert values(b"connection") == [b"Upgrade"] * ws
    for name in lower(HOP_BY_HOP) - {b"upgrade", b"connection"} | {b"expect"}:
        assert values(name) == []


@given(
    RAW,
    st.sampled_from([101, 200, 204, 304, 418, 503]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_a_client_gets(
    raw: list[tuple[bytes, bytes]], status: int, chunked: bool, close: bool, switched: bool
) -> None:
    """The backend's end-to-end fields as they were, in their order; ours, once; framing for this client."""
    head = response_head(
        status,
        b"Some Reason",
        Fields(raw),
        b"X-LLMProxy-Backend: b\r\nX-LLMProxy-Cold-Start: 0.000\r\nX-Request-ID: id\r\n",
        chunked=chunked,
        close=close,
        upgrade=b"websocket" if switched else None,
    )
    first, sent = lines(head)
    assert first == b"HTTP/1.1 %d Some Reason" % status
    never = lower(HOP_BY_HOP + OURS) | (options(raw) - {b"content-length", b"host"})
    if status in (101, 204):
        never.add(b"content-length")
    never = {name.replace(b"_", b"-") for name in never}
    passed = [field for field in raw if field[0].lower().replace(b"_", b"-") not in never]
    assert sent[: len(passed)] == passed
    assert sent[len(passed) :] == [
        (b"X-LLMProxy-Backend", b"b"),
        (b"X-LLMProxy-Cold-Start", b"0.000"),
        (b"X-Request-ID", b"id"),
        *[(b"Transfer-Encoding", b"chunked")] * chunked,
        *([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")] if switched else ()),
        *[(b"Connection", b"close")] * (close and not switched),
    ]


def test_a_key_leaves_by_no_spelling() -> None:
    """In whatever case and however often it was given, and though ``Connection`` names it or ours."""
    raw = [
        (b"authorization", b"Bearer secret"),
        (b"AUTHORIZATION", b"Basic secret"),
        (b"x-Api-Key", b"secret"),
    ]
    raw += [(b"Proxy-Authorization", b"secret"), (b"Connection", b"authorization, x-api-key, host")]
    head = request_head(
        b"GET",
        b"/",
        Fields(raw),
        client=b"c",
        scheme=b"http",
        request_id=b"i",
        length=None,
        authorization=b"own",
    )
    assert b"secret" not in head
    assert head.count(b"Authorization: own\r\n") == 1


def test_upgrades() -> None:
    """Asked for by both fields; another HTTP and TLS are never asked for, however spelled."""

    def asked(value: bytes, connection: bytes = b"Upgrade") -> bytes | None:
        return upgrade(Fields([(b"CONNECTION", connection), (b"upgrade", value)]))

    for value in (b"websocket", b"WebSocket", b"my-own/2, websocket"):
        assert asked(value) == value
        assert asked(value, b"keep-alive ,\tUPGRADE") == value
        assert asked(value, b"keep-alive") is None
    for value in (
        b"h2c",
        b"H2C",
        b"h2",
        b"HTTP/2.0",
        b"http/3",
        b"TLS/1.0",
        b"websocket, h2c",
        b"websocket,\tH2C",
    ):
        assert asked(value) is None
    assert upgrade(Fields([(b"Upgrade", b"websocket")])) is None
    assert upgrade(Fields([(b"Connection", b"Upgrade")])) is None


def test_no_second_line_hides_another_protocol() -> None:
    """What is asked for is all that the client has named: the backend is sent that and no more."""
    fields = Fields([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Upgrade", b"h2c")])
    head = request_head(
        b"GET",
        b"/",
        fields,
        client=b"c",
        scheme=b"http",
        request_id=b"i",
        length=None,
        upgrade=upgrade(fields),
    )
    assert b"h2c" not in head


@given(st.binary(max_size=140))
def test_request_ids(value: bytes) -> None:
    """Printable ASCII without spaces, at most 128 bytes."""
    fits = 0 < len(value) <= 128 and all(0x21 <= byte <= 0x7E for byte in value)
    assert valid_request_id(value) is fits


def test_no_line_end_is_part_of_a_request_id() -> None:
    """Not at the end either, where a regular expression's ``$`` would let one through; and none is none."""
    assert not any(valid_request_id(value) for value in (b"a\n", b"a\r\nX: y", b"", b"a b", b"x" * 129, None))
    assert valid_request_id(b"x" * 128)


def test_authorities() -> None:
    """Brackets around IPv6; the port unless it is the scheme's own."""
    assert authority("example.test", 80, 80) == b"example.test"
    assert authority("example.test", 443, 80) == b"example.test:443"
    assert authority("::1", 8000, 80) == b"[::1]:8000"
    assert authority("::1", 443, 443) == b"[::1]"


def test_event_streams() -> None:
    """By their type, in any case, with or without parameters."""
    for value in (b"text/event-stream", b"Text/Event-Stream; charset=utf-8"):
        assert is_event_stream(Fields([(b"content-TYPE", value)]))
    for raw in ([], [(b"Content-Type", b"application/json")], [(b"X-Content-Type", b"text/event-stream")]):
        assert not is_event_stream(Fields(raw))


def test_json() -> None:
    """``application/json`` and what is written as such (``+json``), in any case, with parameters or not."""
    for value in (
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b"application/json ;charset=utf-8",
        b"application/problem+json",
        b"application/vnd.api+JSON; x=y",
    ):
        assert is_json(Fields([(b"content-TYPE", value)])) is True
    for value in (
        b"text/json",
        b"application/jsonl",
        b"application/xml",
        b"image/x+json",
        b"x; application/json",
    ):
        assert is_json(Fields([(b"Content-Type", value)])) is False
    assert is_json(Fields([])) is False


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-odd"],
        [b"keep-alive, X-Odd"],
        # What is there most of the time hides nothing that stands in a second line, or behind one.
        [b"close", b"x-odd"],
        [b"X-Odd", b"keep-alive"],
    ],
)
def test_what_connection_names_stays_behind(connection: list[bytes]) -> None:
    """Every field that a ``Connection`` line names is about the connection, in whichever line it is named."""
    raw = [(b"X-Odd", b"1"), *((b"Connection", value) for value in connection), (b"Accept", b"2")]
    assert Fields(raw).passed_on(frozenset((b"connection",))) == b"Accept: 2\r\n"


@pytest.mark.parametrize(("named", "name"), [(b"a_b", b"A_B"), (b"a-b", b"a_b"), (b"a_b", b"a-b")])
def test_what_connection_names_is_told_by_no_spelling(named: bytes, name: bytes) -> None:
    """Some servers take ``_`` in a name for ``-``."""
    fields = Fields([(b"Connection", named), (name, b"1"), (b"B", b"2")])
    assert fields.passed_on(frozenset((b"connection",))) == b"B: 2\r\n"


def test_fields_without_a_connection_line_are_passed_on_as_they_are() -> None:
    """What is dropped is what was asked for, also of fields that are there more than once."""
    fields = Fields([(b"A", b"1"), (b"B", b"2"), (b"A", b"3")])
    assert fields.passed_on(frozenset((b"b",))) == b"A: 1\r\nA: 3\r\n"


def test_lines_are_worked_out_once() -> None:
    """They are kept for who asks for the same again, and for nobody else."""
    fields = Fields([(b"A", b"1"), (b"B", b"2")])
    one, other = frozenset((b"a",)), frozenset((b"b",))
    first = fields.passed_on(one)
    assert first == b"B: 2\r\n"
    assert fields.passed_on(one) is first
    assert fields.passed_on(other) == b"A: 1\r\n"
    assert fields.passed_on(one) == first


@pytest.mark.parametrize("status", [101, 200, 203, 204, 205])
@pytest.mark.parametrize("cors", [False, True])
def test_who_speaks_of_cors_and_of_lengths(status: int, cors: bool) -> None:
    """What the backend says of CORS is dropped where the proxy does; a length where there can be no body."""
    kept = [
        (b"Content-Length", b"0"),
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Max-Age", b"5"),
    ]
    raw = [*kept, (b"Server", b"x"), (b"X-LLMProxy-Fallback-For", b"y"), (b"Keep-Alive", b"z")]
    head = response_head(status, b"R", Fields(raw), b"", chunked=False, close=False, cors=cors)
    _, sent = lines(head)
    assert sent == [
        *[(b"Content-Length", b"0")] * (status not in (101, 204)),
        *(kept[1:] if not cors else ()),
        (b"Server", b"x"),
    ]
    if not cors:
        assert head == response_head(status, b"R", Fields(raw), b"", chunked=False, close=False)
