"""Fuzz targets of HTTP: what clients send to the front, and what backends answer."""

from __future__ import annotations

import re

import h11
from hypothesis import strategies as st

from tests.fuzz.material import cuts, damaged, in_pieces
from tests.inmemory import Far
from tests.unit.http_cases import ANSWERED, REFUSED, SECOND, SERVED
from tests.unit.test_front import KEY, OK, Client
from tests.unit.test_smuggling import ANSWERS, Front, Reader

__all__ = ["ANSWER_BYTES", "REQUEST_BYTES", "check_answer", "check_requests"]

_SHORT = [wire for wire in (*REFUSED.values(), *(one[0] for one in SERVED.values())) if len(wire) < 500]
_MODEL = b'{"model": "coder3b", "stream": true}'
_KNOWN = (
    *_SHORT,
    *(wire for wire, _ in ANSWERED.values()),
    SECOND,
    b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b"
    % (KEY, len(_MODEL), _MODEL),
    b"GET /v1/models HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
)

REQUEST_BYTES = st.tuples(damaged(_KNOWN), cuts())
ANSWER_BYTES = st.tuples(
    damaged([one[0] for one in ANSWERS.values() if len(one[0]) < 2000]), cuts(), st.booleans()
)

_STATUS = re.compile(rb"(?:^|(?<=[^\r]))HTTP/1\.1 (\d{3}) ")

MOST = 100_000
"""Bytes that a connection may keep of what it has not understood yet; inputs are shorter than that."""


def _whole(far: Far) -> list[tuple[bytes, bytes, bytes]]:
    """What a backend has got, as llhttp and h11 read it; both have to find the same, and nothing else."""
    data = far.received
    ours = [(method, target, body) for method, target, _, body in Reader(data).found]
    theirs = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    while True:
        request = server.next_event()
        if not isinstance(request, h11.Request):
            break
        body = b""
        while isinstance(event := server.next_event(), h11.Data):
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            break
        theirs.append((request.method, request.target, body))
        if server.our_state is h11.SEND_RESPONSE:
            server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
        if server.our_state is not h11.DONE or server.their_state is not h11.DONE:
            break
        server.start_next_cycle()
    assert ours[: len(theirs)] == theirs
    assert len(theirs) >= 1 or not ours
    return ours


def _play(pieces: list[bytes]) -> tuple[Front, Client]:
    """Send them; the backend answers each request when it has come as a whole."""
    front = Front()
    client = front.client()
    answered: dict[int, int] = {}
    for piece in pieces:
        if client.transport.disconnecting:
            break
        client.send(piece)
        reader = client.channel.reader
        assert client.channel._early_size <= MOST
        assert reader.coming is None or reader.coming.body.size <= front.site.limits.max_body + len(piece)
        for _ in range(50):
            waiting = [
                far
                for far in front.servers.requests
                if not far.closed and len(_whole(far)) > answered.get(id(far), 0)
            ]
            if not waiting:
                break
            for far in waiting:
                last = _whole(far)[answered.get(id(far), 0)]
                answered[id(far)] = answered.get(id(far), 0) + 1
                far.send(OK.removesuffix(b"ok") if last[0] == b"HEAD" else OK)
    return front, client


def _statuses(answers: bytes) -> list[int]:
    return [int(status) for status in _STATUS.findall(answers) if status != b"100"]


def check_requests(given: tuple[bytes, list[int]]) -> None:
    """No fault; an answer for each request and none besides; an end after a refusal; and the same whatever
    pieces the bytes come in."""
    data, places = given
    seen = []
    by_request = [piece for piece in re.split(rb"(?=(?:GET|POST) /)", data) if piece]
    for pieces in ([data] if data else [], in_pieces(data, places), by_request):
        front, client = _play(pieces)
        answers = client.take()
        statuses = _statuses(answers)
        assert front.log.failures == []
        assert 500 not in statuses
        told = [entry.status for entry in front.log.entries if entry.status]
        assert sorted(told) == sorted(statuses), (told, statuses, answers)
        last = answers.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")[0]
        if b"\r\nConnection: close" in last:
            # Nothing is served behind it, and its client is told that by the end of the connection.
            assert client.transport.disconnecting
        if statuses:
            assert data.strip(b"\r\n"), "nobody asked"
        # On which connection each goes depends on whether one is free at that moment.
        passed = sorted(one for far in front.servers.requests for one in _whole(far))
        client.leave()
        assert (front.site.room.memory, front.site.room.disk) == (0, 0)
        assert front.site.channels == set()
        assert front.fleet.in_flight() == 0
        assert front.site.held == 0
        seen.append((statuses, passed))
    assert seen[0] == seen[1] == seen[2]


def check_answer(given: tuple[bytes, list[int], bool]) -> None:
    """Its client gets one answer that h11 understands, or one that breaks off; nothing comes behind it, and
    nothing of it to the next client."""
    data, places, closes = given
    front = Front()
    client, other = front.client().get(b"/coder/first"), front.client()
    (far,) = front.servers.requests
    for piece in in_pieces(data, places):
        far.send(piece)
    if closes:
        far.close()
    answer = client.take()
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    reader.send(h11.EndOfMessage())
    if answer:
        reader.receive_data(answer)
    event = reader.next_event()
    assert event is h11.NEED_DATA or isinstance(event, h11.Response), event
    if isinstance(event, h11.Response):
        while isinstance(event := reader.next_event(), h11.Data):
            pass
        if isinstance(event, h11.EndOfMessage):
            assert reader.trailing_data[0] == b""
    other.get(b"/coder/second")
    if front.servers.requests[-1] is not far or far.received.count(b"GET /second ") == 1:
        front.servers.requests[-1].send(OK)
        assert _statuses(other.take()) == [200]
    client.leave()
    other.leave()
    assert front.fleet.in_flight() == 0
    assert front.log.failures == []
    assert (front.site.room.memory, front.site.room.disk) == (0, 0)
