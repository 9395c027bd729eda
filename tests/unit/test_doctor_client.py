"""What the doctor finds from another machine: the judging, and the one file that has to stand alone."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from llmproxy.doctor import doctor_client
from llmproxy.doctor.doctor_client import (
    Answer,
    Attempt,
    Certificate,
    Finding,
    Stream,
    Target,
    UsageError,
    as_document,
    find_key,
    hide,
    judge_certificate,
    judge_clock,
    judge_completion,
    judge_connect,
    judge_health,
    judge_models,
    judge_name,
    judge_pace,
    judge_proxies,
    judge_ready,
    judge_shut,
    parse_target,
    read_stream,
)

LAN = Target(False, "192.168.1.5", 8000, "")
HERE = Target(False, "localhost", 8000, "")
SSE = {"content-type": "text/event-stream; charset=utf-8"}


def answer(status: int = 200, document: Any = None, **headers: str) -> Answer:
    """An answer with a JSON body."""
    return Answer(
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        json.dumps(document).encode(),
    )


def piece(text: str = "one") -> bytes:
    """An event with content."""
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


# -- the file ------------------------------------------------------------------------------------------


def test_it_stands_alone() -> None:
    """It imports the standard library alone, and is written so that Python 3.8 understands it."""
    source = Path(doctor_client.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert all(name.partition(".")[0] in sys.stdlib_module_names for name in names), names
        assert not isinstance(node, ast.Match), "Python 3.10"
        # What is evaluated when it is loaded must not need newer types; annotations are texts.
    assert "from __future__ import annotations" in source


# -- where ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://192.168.1.5:8000", LAN),
        ("192.168.1.5:8000", LAN),
        ("http://192.168.1.5:8000/v1", LAN),
        ("http://192.168.1.5:8000/v1/", LAN),
        ("https://llm.example", Target(True, "llm.example", 443, "")),
        ("https://llm.example/gpu/v1", Target(True, "llm.example", 443, "/gpu")),
        ("http://[::1]:9", Target(False, "::1", 9, "")),
        ("llm.local", Target(False, "llm.local", 80, "")),
    ],
)
def test_addresses(text: str, wanted: Target) -> None:
    """An address is understood as people write it, base URLs of SDKs among them."""
    assert parse_target(text) == wanted
    assert parse_target(wanted.base) == wanted


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://", "http://x:99999", "http://x?key=1", "http://[", "/v1"]
)
def test_what_is_no_address(text: str) -> None:
    """What is none is refused, and not repeated: there may be a secret in it."""
    with pytest.raises(UsageError) as refused:
        parse_target(text)
    assert "http://192.168.1.5:8000" in str(refused.value)


def test_a_password_in_the_address_is_refused() -> None:
    """It would stand in the shell's history; the message does not repeat it."""
    with pytest.raises(UsageError) as refused:
        parse_target("http://me:sesame@host:8000")
    assert "sesame" not in str(refused.value)


@given(strategies.text())
def test_any_text_is_an_address_or_none(text: str) -> None:
    """No text breaks the reading of addresses."""
    try:
        found = parse_target(text)
    except UsageError:
        return
    assert found.host
    assert 0 < found.port < 65536


def test_where_the_key_is_read() -> None:
    """From the variable that is named, which has to be set; else from VLLM_API_KEY, if that is set."""
    assert find_key(None, {"VLLM_API_KEY": " k "}) == ("VLLM_API_KEY", "k")
    assert find_key(None, {}) == ("VLLM_API_KEY", None)
    assert find_key("MINE", {"MINE": "k"}) == ("MINE", "k")
    with pytest.raises(UsageError, match="MINE"):
        find_key("MINE", {"VLLM_API_KEY": "k"})


# -- name, connection, TLS -----------------------------------------------------------------------------


def test_names() -> None:
    """No address fails; that of this machine itself says nothing of the LAN."""
    assert judge_name(LAN, (), "Name or service not known").status == "fail"
    assert "another one" in judge_name(HERE, ("::1", "127.0.0.1"), None).finding
    assert judge_name(LAN, ("192.168.1.5",), None).status == "ok"


@pytest.mark.parametrize(
    ("target", "attempts", "status", "fix"),
    [
        (LAN, (Attempt("192.168.1.5", 0.1, "refused"),), "fail", "New-NetFirewallRule"),
        (LAN, (Attempt("192.168.1.5", 9, "timeout"),), "fail", "Private"),
        (LAN, (Attempt("192.168.1.5", 9, "unreachable"),), "fail", "same network"),
        (HERE, (Attempt("127.0.0.1", 0, "refused"),), "fail", "make run"),
        (HERE, (Attempt("::1", 0, "refused"), Attempt("127.0.0.1", 0.01, None)), "warn", "127.0.0.1"),
        (LAN, (Attempt("192.168.1.5", 0.01, None),), "ok", None),
    ],
)
def test_connections(target: Target, attempts: tuple[Attempt, ...], status: str, fix: str | None) -> None:
    """A refused connection from the LAN is the firewall's first of all; one good address is enough."""
    found = judge_connect(target, attempts)
    assert found.status == status
    assert fix is None or (found.fix is not None and fix in found.fix)


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        (Certificate(until=100 * 86400.0), "ok", "100 days"),
        (Certificate(until=3 * 86400.0), "warn", "3 days"),
        (Certificate(until=-5.0), "warn", "0 days"),
        (Certificate(), "ok", "accepted"),
        (Certificate(error="certificate has expired"), "fail", "Renew"),
        (Certificate(error="Hostname mismatch, certificate is not valid for 'x'."), "fail", "Use the name"),
        (Certificate(error="self-signed certificate"), "fail", "SSL_CERT_FILE"),
        (Certificate(error="[SSL: WRONG_VERSION_NUMBER] wrong version number"), "fail", "use http://"),
    ],
)
def test_certificates(told: Certificate, status: str, words: str) -> None:
    """One that ends soon is a warning; each reason to refuse one has a fix of its own."""
    found = judge_certificate(LAN._replace(tls=True), told, 0.0)
    assert found.status == status
    assert words in f"{found.finding} {found.fix}"


def test_a_proxy_of_the_environment_is_told_without_its_address() -> None:
    """curl would use it; its address may have a password in it."""
    assert judge_proxies(LAN, None) is None
    found = judge_proxies(LAN, "http://me:sesame@squid:3128")
    assert found is not None
    assert "sesame" not in str(found)
    assert "NO_PROXY=192.168.1.5" in str(found.fix)


# -- llmproxy's own paths ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        (answer(200, {"status": "ok"}, server="llmproxy/1.2"), "ok", "llmproxy 1.2"),
        (answer(200, {"status": "ok"}, server="nginx"), "ok", "in between (nginx)"),
        (answer(200, "hello", server="nginx"), "fail", "not as llmproxy does"),
        (answer(404, None), "fail", "404"),
        (answer(301, None), "fail", "redirected"),
        (answer(503, {"status": "the scheduler fails"}), "fail", "the scheduler fails"),
        (answer(503, []), "fail", "no reason given"),
        (Answer(error="timeout"), "fail", "timeout"),
        (Answer(error="Remote end closed connection without response"), "fail", "https://"),
    ],
)
def test_health(told: Answer, status: str, words: str) -> None:
    """/healthz tells llmproxy from anything else that may listen there."""
    found = judge_health(told)
    assert found.status == status
    assert words in f"{found.finding} {found.fix}"


def test_readiness() -> None:
    """/readyz is told with its reason."""
    assert judge_ready(answer(200, {"status": "ready"})).status == "ok"
    assert "no Docker" in judge_ready(answer(503, {"status": "not ready", "reason": "no Docker"})).finding
    assert "shutting down" in judge_ready(answer(503, {"status": "shutting down"})).finding
    assert "timeout" in judge_ready(Answer(error="timeout")).finding


def test_that_a_key_is_asked_for() -> None:
    """200 without a key fails where the LAN gets there, and is a warning on the machine itself."""
    assert judge_shut(answer(401), local=False).status == "ok"
    assert judge_shut(answer(200), local=False).status == "fail"
    assert judge_shut(answer(200), local=True).status == "warn"
    assert judge_shut(answer(403), local=False).status == "warn"


MODELS = {
    "data": [{"id": "coder3b", "meta": {"llmproxy": {"state": "ready"}}}, {"id": "other"}, 5, {"id": 3}]
}


@pytest.mark.parametrize(
    ("told", "key", "model", "status", "words"),
    [
        (answer(200, MODELS), "k", None, "ok", "coder3b (ready), other, 3"),
        (answer(200, MODELS), "k", "coder3b", "ok", ""),
        (answer(200, MODELS), "k", "nope", "fail", "coder3b"),
        (answer(200, {"data": []}), "k", None, "warn", "empty"),
        (answer(200, {"data": {}}), "k", None, "fail", "200"),
        (answer(200, []), "k", None, "fail", "200"),
        (answer(401, {}), "k", None, "fail", "not accepted"),
        (answer(401, {}), None, None, "skipped", "No key is set"),
        (
            answer(503, {"error": {"message": "down", "code": "x", "hint": "start it"}}),
            "k",
            None,
            "fail",
            "start it",
        ),
        (Answer(error="timeout"), "k", None, "fail", "timeout"),
    ],
)
def test_models(told: Answer, key: str | None, model: str | None, status: str, words: str) -> None:
    """The list of models with the key; what is wrong with it names what is right."""
    found = judge_models(told, key, "VLLM_API_KEY", model)
    assert found.status == status
    assert words in f"{found.finding} {found.fix}"


@pytest.mark.parametrize(
    ("date", "at", "status"),
    [
        ("Thu, 01 Jan 1970 00:00:10 GMT", 12.0, "ok"),
        ("Thu, 01 Jan 1970 01:00:00 GMT", 0.0, "warn"),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 3600.0, "warn"),
        ("yesterday", 0.0, None),
        ("", 0.0, None),
    ],
)
def test_clocks(date: str, at: float, status: str | None) -> None:
    """Clocks that are apart by more than what an answer may take are told; a date that is none is not."""
    found = judge_clock(Answer(200, {"date": date}, b"", at))
    assert (found and found.status) == status
    assert judge_clock(Answer(200, {}, b"", at)) is None


# -- a stream ------------------------------------------------------------------------------------------


def stream(*pieces: tuple[float, bytes | None], **headers: str) -> Stream:
    """What was read of an answer in pieces."""
    return read_stream(Answer(200, {**SSE, **headers}), 0.1, pieces)


@given(strategies.lists(strategies.integers(1, 400), max_size=20))
def test_events_are_counted_however_they_are_cut(cuts: list[int]) -> None:
    """Reads end anywhere; each event counts once, where it was whole."""
    whole = b": llmproxy {}\n\n" + piece() * 7 + b"data: [DONE]\n\n"
    places = sorted({min(cut, len(whole)) for cut in cuts} | {len(whole)})
    parts = [
        (float(number), whole[start:end])
        for number, (start, end) in enumerate(zip([0, *places], places, strict=False))
    ]
    found = stream(*parts)
    assert sum(count for _, count in found.reads) == 7
    assert found.done
    assert found.heard is not None
    assert found.broken is None


@given(strategies.binary())
def test_any_bytes_are_a_stream(data: bytes) -> None:
    """Nothing that a server sends breaks the reading."""
    judge_completion(stream((0.1, data), (0.2, None)), "m")
    judge_completion(stream((0.1, b"data: " + data + b"\n"), (0.2, data)), "m")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"tool_calls": [{}]},
        {"reasoning": "x", "role": "assistant"},
    ],
)
def test_what_counts_as_content(delta: dict[str, Any]) -> None:
    """Text, thoughts and tool calls are what a model writes; a role alone is not."""
    event = b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"
    assert stream((0.1, event)).reads == ((0.1, 1),)
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    assert stream((0.1, role)).reads == ()


def test_a_stream_that_comes_piece_by_piece() -> None:
    """Tokens at the pace of a model: first word, number, pace."""
    pieces = [(0.5 + number / 50, piece()) for number in range(30)]
    told, pace = judge_completion(stream(*pieces, (1.2, b"data: [DONE]\n\n")), "coder3b")
    assert (told.status, pace.status) == ("ok", "ok")
    assert "first word after 0.50 s, 30 pieces in 1.08 s" in told.finding
    assert "50 a second" in pace.finding


def test_a_stream_that_something_keeps_back() -> None:
    """All at once, though writing it took a second; the server in between is named where it says so."""
    whole = piece() * 30 + b"data: [DONE]\n\n"
    found = judge_completion(stream((1.5, whole)), "m")[1]
    assert found.status == "warn"
    assert "30 pieces came at once after 1.50 s" in found.finding
    found = judge_completion(stream((1.5, whole[:500]), (1.5001, whole[500:]), server="nginx/1.22"), "m")[1]
    assert found.status == "warn"
    assert "proxy_buffering off" in str(found.fix)


def test_a_stream_that_comes_in_lumps() -> None:
    """Some gather a few kilobytes at a time."""
    pieces = [(0.5 + number, piece() * 20) for number in range(3)]
    found = judge_completion(stream(*pieces, (3.0, b"data: [DONE]\n\n")), "m")[1]
    assert (found.status, "3 lumps" in found.finding) == ("warn", True)


def test_what_cannot_be_told_of_the_pace() -> None:
    """A few words, or a model that writes them in no time, say nothing of what is in between."""
    done = b"data: [DONE]\n\n"
    assert judge_completion(stream((1.0, piece() * 3 + done)), "m")[1].status == "skipped"
    assert judge_completion(stream((0.05, piece() * 30 + done)), "m")[1].status == "skipped"
    # It took long because the model had to start.
    cold = stream((30.02, piece() * 30 + done), **{"x-llmproxy-cold-start": "30.0"})
    told, pace = judge_completion(cold, "m")
    assert "30.00 s of it a cold start" in told.finding
    assert pace.status == "skipped"
    odd = stream((30.02, piece() * 30 + done), **{"x-llmproxy-cold-start": "soon"})
    assert judge_pace(odd).status == "warn"


def test_heartbeats_show_that_nothing_is_kept_back() -> None:
    """A comment that came long before the first word was let through as it was sent."""
    found = stream((8.0, b": llmproxy {}\n\n"), (30.0, piece() * 30 + b"data: [DONE]\n\n"))
    assert judge_completion(found, "m")[1].status == "ok"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Stream(Answer(error="timeout"), 600.0), "timeout after 600.0 s"),
        (
            Stream(answer(503, {"error": {"message": "no", "code": "does_not_fit", "hint": "free it"}})),
            "free it",
        ),
        (Stream(answer(502, None)), "502"),
        (Stream(answer(200, {"choices": []}, content_type="application/json")), "no event stream"),
        (stream((0.1, piece())), "without its [DONE]"),
        (stream((0.1, b"data: [DONE]\n")), "without a word"),
        (stream((0.1, piece()), (0.2, None)), "the connection broke"),
        (stream((0.1, piece()), (0.2, b'data: {"error":{"message":"died"}}\ndata: [DONE]\n')), "died"),
        (stream((0.1, b'data: {"error":"odd"}\n')), "odd"),
    ],
)
def test_streams_that_fail(found: Stream, words: str) -> None:
    """Each way for a stream to go wrong is told as itself."""
    (told,) = judge_completion(found, "m")
    assert told.status == "fail"
    assert words in f"{told.finding} {told.fix}"


# -- what is shown -------------------------------------------------------------------------------------


def test_secrets_are_hidden() -> None:
    """Where they stand by themselves, and the longest first; an empty one is none."""
    found = hide(
        Finding("a.b", "fail", "abcd was sent, abcdef too, abcde not", "abcd!"), ["abcd", "", "abcdef"]
    )
    assert found.finding == "*** was sent, *** too, abcde not"
    assert found.fix == "***!"
    assert hide(Finding("a.b", "ok", "x"), ["x"]).fix is None
    assert hide(Finding("a.b", "ok", "a\x1b[31mb\n\u202ec"), []).finding == "a [31mb  c"


def test_as_a_document() -> None:
    """Programs get counts, and whether all is well."""
    told = as_document([Finding("a.b", "warn", "x", "y"), Finding("a.c", "ok", "z")])
    assert told["ok"] is True
    assert told["counts"] == {"ok": 1, "warn": 1, "fail": 0, "skipped": 0}
    assert told["findings"][0] == {"check": "a.b", "status": "warn", "finding": "x", "fix": "y"}
    assert as_document([Finding("a.b", "fail", "x", "y")])["ok"] is False
