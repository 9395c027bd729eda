"""How the log is written: to be read, or as JSON, with nothing in it that could pass for more than it is."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, capturedLogs
from twisted.python.failure import Failure

from llmproxy.config.describe import describe
from llmproxy.config.model import Key, LogSettings
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError
from llmproxy.http.metering import Tokens
from llmproxy.observe.lines import json_lines, text_lines
from llmproxy.observe.log import LogObserver, log_to
from llmproxy.web.accesslog import AccessLog, Entry
from llmproxy.web.auth import Authenticator
from tests.front import FrontCase

ENTRY = Entry("1", "127.0.0.1", "GET", "/coder/v1/models", status=200, at=1700000000.25)
NOW = 1700000000.5
REACTOR: Any = MemoryReactorClock()
LEVEL = "LLMPROXY_LOG_LEVEL"


def event(text: str, **fields: Any) -> LogEvent:
    """An event as a logger makes it."""
    with capturedLogs() as events:
        Logger("llmproxy.test").info(text, **fields)
    return {**events[0], "log_time": NOW}


def access(*entries: Entry) -> LogEvent:
    """The event of the access log for these requests."""
    log = AccessLog(MemoryReactorClock())
    with capturedLogs() as events:
        for entry in entries:
            log.write(entry)
        log.flush()
    return events[0]


def objects(text: str | None) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    assert text is not None
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def test_an_event_is_one_object() -> None:
    """With its time, level, logger and message, and each of its fields."""
    (line,) = objects(json_lines(event("{backend}: {n} {none}", backend="a", n=1.5, none=None, at=[1, "b"])))
    assert line == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "logger": "llmproxy.test",
        "message": "a: 1.5 None",
        "backend": "a",
        "n": 1.5,
        "none": None,
        "at": [1, "b"],
    }


def test_what_json_lacks_is_told_in_words() -> None:
    """Infinities, paths and exceptions are texts."""
    told = event(
        "x", much=float("inf"), path=Path("/a"), cause=ValueError("no"), why=Failure(ValueError("f"))
    )
    (line,) = objects(json_lines(told))
    assert (line["much"], line["path"], line["cause"]) == ("inf", "/a", "no")


def test_a_failure_has_its_traceback_in_one_field() -> None:
    """Its lines are in the string, and so the object stays a line."""
    with capturedLogs() as events:
        try:
            raise ValueError("broken\nin two")
        except ValueError:
            Logger("llmproxy.test").failure("doing {what}", what="it")
    (line,) = objects(json_lines(events[0]))
    assert (line["level"], line["message"], line["exception"]) == ("critical", "doing it", "ValueError")
    assert "Traceback" in line["traceback"]
    assert "broken\nin two" in line["traceback"]
    assert "Traceback" in (text_lines(events[0]) or "")


def test_a_failure_that_cannot_be_shown() -> None:
    """The event is told all the same."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    with capturedLogs() as events:
        Logger("llmproxy.test").failure("doing it", Failure(Mute()))
    (line,) = objects(json_lines(events[0]))
    assert (line["message"], line["exception"]) == ("doing it", "Mute")


def test_each_request_is_an_object() -> None:
    """With what is known of it, and null for what is not."""
    told = evolve(
        ENTRY,
        request_id="2",
        key="site",
        route="coder",
        state="ready",
        held=0.12345678,
        first_byte=0.5,
        seconds=1.25,
        outcome="refused",
        error="queue_full",
        trace_id="ab" * 16,
        sent=7,
        tokens=Tokens(3, 4, estimated=True),
    )
    first, second = objects(json_lines(access(ENTRY, told)))
    assert first["message"] == "GET /coder/v1/models 200"
    assert {first[name] for name in ("key", "backend", "state", "error", "trace_id", "first_byte")} == {None}
    assert second == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "llmproxy.web.accesslog.AccessLog",
        "message": "GET /coder/v1/models 200",
        "request_id": "2",
        "trace_id": "ab" * 16,
        "key": "site",
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/coder/v1/models",
        "backend": "coder",
        "state": "ready",
        "status": 200,
        "outcome": "refused",
        "error": "queue_full",
        "held": 0.123457,
        "first_byte": 0.5,
        "seconds": 1.25,
        "received": 0,
        "sent": 7,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "tokens_estimated": True,
    }


def test_text_stays_as_it_was() -> None:
    """Twisted's classic form, the requests of a moment below each other."""
    assert (
        text_lines(event("hello {who}", who="you"))
        == "2023-11-14T22:13:20+0000 [llmproxy.test#info] hello you\n"
    )
    told = (text_lines(access(ENTRY, evolve(ENTRY, request_id="2"))) or "").splitlines()
    assert [line[:1] for line in told] == ["2", "\t"]
    assert " request_id=2 " in told[1]


@given(st.text(), st.text())
def test_nothing_forges_a_line(one: str, two: str) -> None:
    """Whatever stands in an event, JSON has one line with that text, and text none that begins anew."""
    made = event("said {one} {two}", one=one, two=two)
    (line,) = objects(json_lines(made))
    assert (line["one"], line["two"]) == (one, two)
    text = text_lines(made) or ""
    assert all(part.startswith("\t") for part in text[:-1].split("\n")[1:])
    for written in (text, json_lines(made) or ""):
        assert not {*written} & {*map(chr, (*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029))}
        written.encode("utf-8")


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_a_path_is_told_as_it_came(path: str) -> None:
    """One object, and the path in it, whatever bytes it had."""
    (line,) = objects(json_lines(access(evolve(ENTRY, path="/" + path))))
    assert line["path"] == "/" + path


class File(io.StringIO):
    """Keeps what is written."""

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


def test_what_is_less_important_is_left_out() -> None:
    """By the level that is set at that moment, as the form is."""
    file, settings = File(), LogSettings()
    observer = LogObserver(file, lambda: settings)
    log = Logger("llmproxy.test", observer=observer)
    for level in ("debug", "info", "warn", "error", "critical"):
        log.emit(LogLevel.lookupByName(level), level)
    assert [line.split()[-1] for line in file.lines()] == ["info", "warn", "error", "critical"]
    settings = LogSettings("json", "error")
    log.warn("no more")
    log.error("in other words")
    assert json.loads(file.lines()[-1])["message"] == "in other words"
    assert len(file.lines()) == 5


def test_an_event_without_words_is_not_written() -> None:
    """In either form."""
    assert text_lines({"log_format": None}) is None
    assert json_lines({"log_format": None}) is None


@pytest.mark.parametrize("twistd", [{"nodaemon": True}, {"nodaemon": True, "logfile": "-"}])
def test_in_the_foreground_it_goes_to_standard_output(twistd: dict[str, Any]) -> None:
    """As twistd has it."""
    application, out = Application("llmproxy"), File()
    with mock.patch.object(sys, "stdout", out):
        log_to(application, twistd, lambda: LogSettings("json"), REACTOR)
    observer = application.getComponent(ILogObserver)
    observer(event("hello"))
    assert json.loads(out.getvalue())["message"] == "hello"


def test_a_file_that_is_named_is_used(tmp_path: Path) -> None:
    """``--logfile``; twistd.log for a daemon."""
    for name, twistd in (
        ("some.log", {"nodaemon": True, "logfile": str(tmp_path / "some.log")}),
        ("daemon.log", {"logfile": str(tmp_path / "daemon.log")}),
    ):
        application = Application("llmproxy")
        log_to(application, twistd, LogSettings, REACTOR)
        observer = application.getComponent(ILogObserver)
        observer(event("hello ö"))
        observer.file.close()
        assert (tmp_path / name).read_text(encoding="utf-8").endswith("hello ö\n")


@pytest.mark.parametrize(
    "twistd", [{"nodaemon": True, "logger": "x"}, {"syslog": True}, {"logfile": "-", "nodaemon": False}]
)
def test_what_is_for_twistd_is_left_to_it(twistd: dict[str, Any]) -> None:
    """A logger of somebody else, syslog, and what it refuses."""
    application = Application("llmproxy")
    log_to(application, twistd, LogSettings, REACTOR)
    assert application.getComponent(ILogObserver, None) is None


def test_settings() -> None:
    """Text at info unless something else is said; the environment wins, and other values are refused."""
    for file, environ, name, value, source in (
        ("", {}, "log.format", "text", "default"),
        ("", {}, "log.level", "info", "default"),
        ("log: {format: json}", {}, "log.format", "json", "llmproxy.yaml log.format"),
        ("log: {level: warn}", {LEVEL: "info"}, "log.level", "info", f"environment {LEVEL}"),
        ("", {"LLMPROXY_LOG_FORMAT": "json"}, "log.format", "json", "environment LLMPROXY_LOG_FORMAT"),
    ):
        config = read_sources(Sources(environ, file))
        assert (name, value, source) in describe(config)
        assert getattr(config.log, name.partition(".")[2]) == value
    for file, environ, allowed in (
        ("log: {format: xml}", {}, "use one of text, json"),
        ("log: {colour: red}", {}, "colour"),
        ("", {"LLMPROXY_LOG_LEVEL": "loud"}, "use one of debug, info, warn, error"),
    ):
        with pytest.raises(ConfigError, match=allowed):
            read_sources(Sources(environ, file))


SECRET = "sk-of-a-client-0123456789"


class SecretTests(FrontCase):
    """What passes through the proxy, as the log tells it."""

    def test_no_secret_is_told(self) -> None:
        """Neither a key, in whatever field or query it came, nor what was asked or answered."""
        self.warm("coder")
        self.site.authenticator = Authenticator((Key("me", SECRET),))
        head = (
            "POST /coder/v1/x?key={0} HTTP/1.1\r\nHost: {0}\r\nContent-Length: 6\r\nCookie: c={0}\r\n{1}"
            "\r\n\r\nprompt"
        )
        with capturedLogs() as events:
            self.site.access_log = AccessLog(self.clock)
            for field in (f"Authorization: Bearer {SECRET}", f"X-API-Key: {SECRET}"):
                self.client().send(head.format(SECRET, field).encode())
                self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer")
            self.client().send(head.format(SECRET, "Authorization: Bearer a-wrong-key").encode())
            self.site.access_log.flush()
        written = "".join(f"{json_lines(one)}{text_lines(one)}" for one in events)
        self.assertEqual(written.count('"key":"me"'), 2)
        for secret in (SECRET, "a-wrong-key", 'prompt"', "answer", "own"):
            self.assertNotIn(secret, written)

    def test_a_transition_is_an_event_of_its_own(self) -> None:
        """With the backend, the states that it left and came to, and the reason."""
        with capturedLogs() as events:
            self.warm("coder")
        told = [line for one in events for line in objects(json_lines(one)) if line.get("to")]
        self.assertEqual(
            [(line["backend"], line["from"], line["to"], line["reason"]) for line in told],
            [("coder", "absent", "starting", "wanted"), ("coder", "starting", "ready", "healthy")],
        )
        self.assertEqual(told[1]["message"], "coder: starting -> ready (healthy)")


class CodeTests(FrontCase):
    """What the log knows of a refusal."""

    def test_a_refusal_has_its_code(self) -> None:
        """Answered as a status, as an event of a stream that has begun, or to bytes that are no request."""
        self.client().get(b"/coder/x", b"")
        self.assertEqual(self.log.entries[-1].error, "invalid_api_key")
        stream = self.client().post(b"/v1/chat/completions", {"model": "coder3b", "stream": True})
        self.clock.advance(10)
        self.assertIn(b": llmproxy", stream.take())
        self.world.exit("coder", 1)
        self.clock.advance(1)
        self.assertIn(b"backend_start_failed", stream.take())
        entry = self.log.entries[-1]
        self.assertEqual((entry.status, entry.outcome, entry.error), (200, "refused", "backend_start_failed"))
        self.client().send(b"nonsense\r\n\r\n")
        self.assertEqual((self.log.entries[-1].status, self.log.entries[-1].error), (400, "invalid_request"))

    def test_an_answer_has_none(self) -> None:
        """Whatever its status, if it is the backend's."""
        self.warm("coder")
        self.client().get(b"/coder/x")
        self.far().send(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual((self.log.entries[-1].status, self.log.entries[-1].error), (500, ""))
