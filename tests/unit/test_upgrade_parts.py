"""What an upgrade is made of: the line, the sockets, the command line, and what is told of a request."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.http.forwarded import Origin
from llmproxy.http.headers import Fields
from llmproxy.upgrade.handed import FIELD, Handed, handed_head, own_lines, read_handed, without
from llmproxy.upgrade.inherited import VARIABLE, Inherited, told_of
from llmproxy.upgrade.line import ROOM_AGAIN, Line, pair
from llmproxy.upgrade.spawn import SHIM, Child, command_line, no_upgrade
from tests.descriptors import none_left

WORDS = ["/venv/bin/python", "-X", "dev", "/venv/bin/twistd", "-n", "--pidfile=x", "llmproxy", "--demo"]


class Readers(Clock):
    """What a line needs of a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: list[Any] = []
        self.writing: list[Any] = []

    def addReader(self, one: Any) -> None:
        self.reading.append(one)

    def addWriter(self, one: Any) -> None:
        if one not in self.writing:
            self.writing.append(one)

    def removeReader(self, one: Any) -> None:
        if one in self.reading:
            self.reading.remove(one)

    def removeWriter(self, one: Any) -> None:
        if one in self.writing:
            self.writing.remove(one)


class Ends:
    """Two ends of a line, and what came out of the second."""

    def __init__(self) -> None:
        self.reactor = Readers()
        reactor: Any = self.reactor
        self.heard: list[tuple[dict[str, Any], int | None]] = []
        self.lost: list[str] = []
        first, second = pair()
        self.first = Line(reactor, first, lambda *_: None, lambda: self.lost.append("first"))
        self.second = Line(
            reactor,
            second,
            lambda message, fd: self.heard.append((message, fd)),
            lambda: self.lost.append("second"),
        )

    def close(self) -> None:
        for line in (self.first, self.second):
            line.close()
        for _, fd in self.heard:
            if fd is not None:
                os.close(fd)


@pytest.fixture
def ends() -> Any:
    made = Ends()
    yield made
    made.close()


# -- the line -----------------------------------------------------------------------------------------


def test_a_descriptor_comes_with_its_message(ends: Ends) -> None:
    """In order, whatever is around it, and is not for children."""
    read, write = os.pipe()
    ends.first.say("one")
    ends.first.say("two", read, family=2)
    ends.first.say("three")
    os.close(read)
    for _ in range(4):
        ends.second.doRead()
    assert [message for message, _ in ends.heard] == [
        {"say": "one"},
        {"say": "two", "family": 2},
        {"say": "three"},
    ]
    fds = [fd for _, fd in ends.heard]
    assert (fds[0], fds[2]) == (None, None)
    assert fds[1] is not None
    assert not os.get_inheritable(fds[1])
    os.write(write, b"x")
    os.close(write)
    assert os.read(fds[1], 1) == b"x"


def test_what_the_kernel_does_not_take_waits(ends: Ends) -> None:
    """With a copy of its descriptor, and leaves in order later."""
    count = 0
    read, write = os.pipe()
    os.close(write)
    while not ends.reactor.writing:
        ends.first.say("much", read, number=count, filling="x" * 10_000)
        count += 1
    ends.first.say("last", number=count)
    os.close(read)
    while len(ends.heard) <= count:
        ends.second.doRead()
        for one in list(ends.reactor.writing):
            one.doWrite()
    assert [message["number"] for message, _ in ends.heard] == list(range(count + 1))
    assert ends.reactor.writing == []
    assert sum(fd is not None for _, fd in ends.heard) == count


def test_the_other_end_is_told(ends: Ends) -> None:
    """Once; and nothing more can be said."""
    ends.first.say("last words")
    ends.first.close()
    ends.second.doRead()
    ends.second.doRead()
    assert ends.heard == [({"say": "last words"}, None)]
    assert ends.lost == ["second"]
    with pytest.raises(ConnectionError):
        ends.second.say("anything")
    assert ends.reactor.reading == []


def test_no_descriptor_is_left_to_take_one(ends: Ends) -> None:
    """The message stays where it is until one can be had, and with it what comes after it."""
    read, write = os.pipe()
    os.close(write)
    ends.first.say("client", read)
    ends.first.say("occupied")
    os.close(read)
    with none_left():
        ends.second.doRead()
        assert ends.second not in ends.reactor.reading
        ends.reactor.advance(ROOM_AGAIN)
        assert ends.second in ends.reactor.reading
        ends.second.doRead()
    assert ends.heard == []
    ends.reactor.advance(ROOM_AGAIN)
    ends.second.doRead()
    ends.second.doRead()
    assert [message["say"] for message, _ in ends.heard] == ["client", "occupied"]
    assert ends.heard[0][1] is not None


def test_one_descriptor_is_too_few_to_take_one(ends: Ends) -> None:
    """Whoever gets it needs a copy, without which its client would be dropped."""
    read, write = os.pipe()
    os.close(write)
    ends.first.say("client", read)
    os.close(read)
    with none_left(but=1):
        ends.second.doRead()
    assert ends.heard == []
    with none_left(but=2):
        ends.reactor.advance(ROOM_AGAIN)
        ends.second.doRead()
        # Of those that looked nothing is left.
        assert ends.heard[0][1] is not None
        os.close(os.dup(0))


def test_no_descriptor_is_left_and_the_line_is_closed(ends: Ends) -> None:
    """Nothing looks at it any more."""
    with none_left():
        ends.second.doRead()
    ends.second.close()
    assert ends.reactor.getDelayedCalls() == []


def test_no_descriptor_is_left_for_what_waits(ends: Ends) -> None:
    """That message is not sent at all; the line goes on."""
    read, write = os.pipe()
    while not ends.reactor.writing:
        ends.first.say("much", filling="x" * 10_000)
    with none_left(), pytest.raises(OSError, match="Too many open files"):
        ends.first.say("client", read)
    os.close(read)
    os.close(write)
    while ends.reactor.writing:
        ends.second.doRead()
        ends.first.doWrite()
    assert "client" not in [message["say"] for message, _ in ends.heard]


def test_what_waits_is_given_up_with_the_line(ends: Ends) -> None:
    """A reader that dies in the middle of it ends it, and no copy of a descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    while not ends.reactor.writing:
        ends.first.say("much", 0, filling="x" * 10_000)
    ends.second.close()
    ends.first.doWrite()
    assert ends.lost == ["first"]
    assert len(os.listdir("/proc/self/fd")) == before - 2


# -- sockets ------------------------------------------------------------------------------------------


def test_nothing_is_inherited_unless_it_is_told() -> None:
    """By a variable, which nobody finds there afterwards."""
    assert Inherited.take({}) is None
    read, write = os.pipe()
    environ = {VARIABLE: told_of(read, {"tcp:8000": write}), "PATH": "x"}
    os.set_inheritable(write, True)
    found = Inherited.take(environ)
    assert found is not None
    assert environ == {"PATH": "x"}
    assert (found.line, found.names) == (read, frozenset(["tcp:8000"]))
    assert not os.get_inheritable(write)
    assert found.endpoint(None, "tcp:8001") is None
    found.close_others()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
    assert found.names == {"tcp:8000"}
    os.close(read)


def test_a_unix_socket_keeps_its_mode(tmp_path: Path) -> None:
    """Twisted would open an adopted one to everybody."""
    from twisted.internet.testing import MemoryReactorClock

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
        path.chmod(0o660)
        found = Inherited(-1, {"unix:x": os.dup(one.fileno())})
        reactor: Any = MemoryReactorClock()
        endpoint = found.endpoint(reactor, "unix:x")
        assert endpoint is not None
        ports: list[Any] = []
        endpoint.listen(Factory()).addCallback(ports.append)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert (ports[0].backlog, len(reactor.getReaders())) == (1024, 1)
        ports[0].socket.close()


# -- the command line ---------------------------------------------------------------------------------


def test_the_new_process_has_the_same_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the foreground and without a file of its id, however often it was upgraded."""
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    once = command_line(WORDS)
    assert once == [*WORDS[:6], "--nodaemon", "--pidfile=", *WORDS[6:]]
    assert command_line(once) == once


@pytest.mark.parametrize(
    ("options", "environ", "pid", "parent", "first", "words"),
    [
        ({}, {}, 7, 1, "systemd", "daemon"),
        ({"nodaemon": True}, {}, 1, 0, "twistd", "container"),
        ({"nodaemon": True}, {}, 7, 1, "docker-init", "container"),
        ({"nodaemon": True}, {"SYSTEMD_EXEC_PID": "7"}, 7, 1, "systemd", "Type=notify"),
        ({"nodaemon": True}, {"SYSTEMD_EXEC_PID": "7", "NOTIFY_SOCKET": "/x"}, 7, 1, "systemd", None),
        ({"nodaemon": True}, {"SYSTEMD_EXEC_PID": "5"}, 7, 5, "systemd", None),
        ({"nodaemon": True}, {}, 7, 6, "docker-init", None),
    ],
)
def test_who_may_not_be_replaced_says_why(
    options: dict[str, Any], environ: dict[str, str], pid: int, parent: int, first: str, words: str | None
) -> None:
    """Where the end of this very process would be taken for the end of the service."""
    told = no_upgrade(options, environ, WORDS, pid, parent, lambda: first, successor=False)
    assert (told is None) == (words is None)
    assert words is None or words in str(told)
    if options:
        assert no_upgrade(options, environ, WORDS, pid, 1, lambda: first, successor=True) is None


def test_a_program_that_is_not_twistd_cannot_be_started_again() -> None:
    """It is said, and nothing is started."""
    told = no_upgrade({"nodaemon": True}, {}, ["python", "x.py"], 7, 6, lambda: "x", successor=False)
    assert "twistd" in str(told)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ProcessTerminated(2), "status 2"),
        (ProcessTerminated(signal=9), "signal 9"),
        (ValueError(), "status 0"),
    ],
)
def test_it_is_said_how_it_ended(error: Exception, words: str) -> None:
    """In words, once; afterwards it gets no signal."""
    heard: list[str] = []
    child = Child(heard.append)
    child.processEnded(Failure(error))
    child.kill()
    child.let_go()
    assert heard == [words]


def test_the_process_between_ends_also_while_it_stands_still() -> None:
    """Whoever waits in the old process waits for that; the new one goes on."""

    class Transport:
        def signalProcess(self, number: int) -> None:
            between.send_signal(number)

    answering = 'echo $$; read asked; echo "$asked"; exec sleep 60'
    words = [sys.executable, "-I", "-S", "-c", SHIM, "4", "/bin/sh", "-c", answering]
    child = Child(lambda _: None)
    child.transport = Transport()  # type: ignore[assignment]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, bufsize=1) as between:
        assert between.stdin is not None
        assert between.stdout is not None
        pid = int(between.stdout.readline())
        try:
            between.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, between.pid, os.WSTOPPED)
            child.let_go()
            between.wait(10)
            between.stdin.write("are you there?\n")
            assert between.stdout.readline() == "are you there?\n"
        finally:
            between.kill()
            os.kill(pid, signal.SIGKILL)


# -- what is told of a request ------------------------------------------------------------------------

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"]), max_size=20)
ORIGINS = st.builds(
    Origin,
    TEXT,
    TEXT.map(lambda text: text.encode("latin-1")),
    st.booleans(),
    st.none() | TEXT.map(lambda text: text.encode("latin-1")),
)


@given(st.builds(Handed, ORIGINS, st.floats(0, 1e10), st.none() | TEXT))
def test_what_is_told_is_understood(handed: Handed) -> None:
    """Whatever it is, in one line of a head; the client's own fields are as they were."""
    sent = Fields(
        [
            (b"Host", b"h"),
            (b"Authorization", b"Bearer x"),
            (b"Connection", b"close"),
            (b"X-LLMProxy-Max-Wait", b"5s"),
        ]
    )
    head = handed_head(b"POST", b"/coder/x?y", sent, handed, request_id=b"id", length=3, upgrade=None)
    first, *lines, empty, end = head.split(b"\r\n")
    assert (first, empty, end) == (b"POST /coder/x?y HTTP/1.1", b"", b"")
    fields = Fields([tuple(line.split(b": ", 1)) for line in lines])  # type: ignore[misc]
    assert read_handed(fields) == handed
    assert without(fields).raw == [
        (b"Host", b"h"),
        (b"Authorization", b"Bearer x"),
        (b"X-LLMProxy-Max-Wait", b"5s"),
        (b"X-Request-ID", b"id"),
        (b"Content-Length", b"3"),
    ]


def test_a_client_s_own_field_is_not_passed_on() -> None:
    """What it says of itself is not what is known of it."""
    lie = json.dumps({"key": "root"}).encode()
    handed = Handed(Origin("1.2.3.4", b"1.2.3.4", secure=False), 1.0)
    head = handed_head(
        b"GET",
        b"/",
        Fields([(b"X-LLMProxy-Handed", lie), (b"X_LLMProxy-Handed", lie)]),
        handed,
        request_id=b"i",
        length=None,
        upgrade=b"websocket",
    )
    assert head.lower().count(FIELD) == 1
    assert b"root" not in head
    assert b"Host: -\r\n" in head
    assert head.endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")


@given(st.binary())
def test_what_is_not_told_so_is_refused(said: bytes) -> None:
    """With an error of one kind."""
    with pytest.raises(ValueError):  # noqa: PT011 -- JSON's own among them
        read_handed(Fields([(FIELD, said)]))


def test_the_new_process_s_own_lines_are_passed_on() -> None:
    """As they came, and no others."""
    fields = Fields([(b"x-llmproxy-backend", b"coder"), (b"Server", b"x"), (b"X-Request-ID", b"1")])
    assert own_lines(fields) == b"X-LLMProxy-Backend: coder\r\nX-Request-ID: 1\r\n"
