"""Fuzz targets of all else that reads what others write: bodies, streams, settings, logs."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from hypothesis import strategies as st

from llmproxy.config.environment import read_environment
from llmproxy.config.file import read_file
from llmproxy.config.labels import read_labels
from llmproxy.config.layers import Layer
from llmproxy.engines.diagnosis import diagnose
from llmproxy.engines.phases import read_phase
from llmproxy.engines.redaction import redact
from llmproxy.errors import ConfigError, Refusal
from llmproxy.http.forwarded import TrustedProxies, peer_origin
from llmproxy.http.headers import Fields
from llmproxy.http.metering import LARGEST_DOCUMENT, LONGEST_USAGE, DocumentMeter, EventMeter
from llmproxy.http.multipart import form_streams, multipart_model, with_model
from llmproxy.http.openai import glance_at, requested_model, wants_stream
from llmproxy.http.paths import is_control, is_passive, is_stored
from llmproxy.http.renaming import EventRenamer, renamed
from llmproxy.http.rewriting import rewritten
from llmproxy.http.targets import check_host, checked_target
from tests.fuzz.material import cuts, damaged, in_pieces, texts

__all__ = [
    "DOCUMENTS",
    "ENVIRONMENTS",
    "FILES",
    "FORMS",
    "FORWARDED",
    "LABELS",
    "LOGS",
    "STREAMS",
    "TARGETS",
    "check_environment",
    "check_file",
    "check_form",
    "check_forwarded",
    "check_json",
    "check_labels",
    "check_log",
    "check_stream",
    "check_target",
]

# -- JSON -----------------------------------------------------------------------------------------------

_JSON = (
    b'{"model": "coder3b", "messages": [{"role": "user", "content": "hi"}], "stream": true}',
    b'{"model":"a","model":"b"}',
    b'{"mod\\u0065l": "x", "x": {"model": "y"}}',
    b'{"model": "\\ud800", "n": NaN}',
    b'{"model": 7, "stream": "yes"}',
    b'\xef\xbb\xbf{"model": "x"}',
    b'{"response": {"model": "x"}, "message": {"model": "x"}, "usage": {"prompt_tokens": 1}}',
    b'{"a": [[[[[[]]]]]], "b": 1e999, "c": -0, "model": "\\u0000"}',
    b'{"chat_template_kwargs": {"enable_thinking": true}, "temperature": 0.5, "model": "x"}',
    b"[]",
    b"null",
)
DOCUMENTS = damaged(
    _JSON, tokens=(b'"', b"\\", b"{", b"}", b"[", b",", b":", b'"model":', b"\\u0065", b"\xff", b"\x00", b"1")
)


def check_json(body: bytes) -> None:
    """What is routed by is what Python's own parser, vLLM's, finds; a changed one says the same otherwise."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    try:
        asked = glance_at(body)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
        assert not isinstance(found, dict)
        return
    finally:
        wants_stream(body)
    assert isinstance(found, dict)
    try:
        model = requested_model(asked)
    except Refusal:
        assert "model" in found
        assert not isinstance(found["model"], str) or not found["model"]
    else:
        assert model == (found.get("model") or None)
    try:
        changed = rewritten("application/json", body, "other", {"top.inner": 1}, {"seed": 2})
    except Refusal:
        return
    if changed is not None:
        again = json.loads(changed)
        assert again["seed"] == 2
        assert again["model"] == "other" or "model" not in found
    told = renamed(body, "x", "y")
    if told is not None:
        assert json.loads(told).keys() == found.keys()


# -- multipart ------------------------------------------------------------------------------------------

_FORM = (
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ncoder3b\r\n--B--\r\n',
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\r\n--Bx\r\n--B\r\nContent-Disposition: form-data; name=model\r\n\r\nx\r\n--B--\r\n",
    b'--B\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--B--',
    b"--B\r\ncontent-disposition:form-data;name*=UTF-8''model\r\n\r\nx\r\n--B--",
)
_KINDS = (
    b"multipart/form-data; boundary=B",
    b'multipart/form-data; boundary="B"; charset=utf-8',
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
)
FORMS = st.tuples(damaged(_KINDS, tokens=(b'"', b"\\", b";", b"=", b" ", b"\xff"), most=2), damaged(_FORM))


def check_form(given: tuple[bytes, bytes]) -> None:
    """One model or a refusal; with another one in its place, that is the one which is found."""
    kind, body = given[0].decode("latin-1"), given[1]
    form_streams(kind, body)
    try:
        model = multipart_model(kind, body)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
        return
    changed = with_model(kind, body, "another")
    if model is not None:
        assert model
        assert multipart_model(kind, body if changed is None else changed) == "another"
        assert (changed is None) is (model == "another")


# -- streams --------------------------------------------------------------------------------------------

_EVENTS = (
    b'data: {"id":"1","model":"x","choices":[{"delta":{"content":"a"}}]}\n\n',
    b'data: {"model":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n',
    b'event: message_start\ndata: {"message":{"model":"x","usage":{"input_tokens":5,"output_tokens":1}}}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b'data:{"response":{"model":"x"},"usage":null}\r\n\r\n',
    b": comment\n\ndata: [DONE]\n\n",
    b'{"model":"x","usage":{"prompt_tokens":3,"completion_tokens":"9"}}',
)
STREAMS = st.tuples(damaged(_EVENTS), cuts())


def check_stream(given: tuple[bytes, list[int]]) -> None:
    """What it tells is the same whatever pieces it comes in, and little is kept; renaming loses no byte."""
    data, places = given
    pieces = in_pieces(data, places)
    whole, split = EventMeter(), EventMeter()
    whole.feed([data])
    for piece in pieces:
        split.feed([piece])
        assert len(split._usage) <= LONGEST_USAGE
        assert len(split._tail) <= 64
    assert (whole.events, whole.found) == (split.events, split.found)
    whole.tokens()
    split.tokens()
    document = DocumentMeter()
    for piece in pieces:
        document.feed([piece])
        assert document._size <= LARGEST_DOCUMENT + len(piece)
    document.tokens()
    once, often = EventRenamer("x", "y"), EventRenamer("x", "y")
    at_once = b"".join((*once.feed([data]), *once.end()))
    by_piece = b"".join(out for piece in pieces for out in often.feed([piece])) + b"".join(often.end())
    assert at_once == by_piece
    nobody = EventRenamer("no such model", "y")
    assert b"".join((*nobody.feed(pieces), *nobody.end())) == data


# -- targets and who is in front ------------------------------------------------------------------------

_PATHS = (
    *(
        b"/coder/v1/models",
        b"/coder/a/../b",
        b"/coder/%2e%2e/x",
        b"/coder/..;/x",
        b"/coder\\..\\x",
        b"http://h/coder/x",
    ),
    *(
        b"/coder/sleep",
        b"/coder/health?x",
        b"/v1/responses/r",
        b"/coder/%c0%ae",
        b"/coder/x#y",
        b"*",
        b"h:80",
    ),
)
_HOSTS = (b"h", b"h:8000", b"[::1]:80", b"192.0.2.1", b"example.com.", b"me@h", b"")
TARGETS = st.tuples(damaged(_PATHS, most=3), damaged(_HOSTS, most=2))


def check_target(given: tuple[bytes, bytes]) -> None:
    """What is taken stays in its first segment for whoever decodes and resolves it; the rest is a 400."""
    target, host = given
    for what in (lambda: check_host(host), lambda: checked_target(target, host)):
        try:
            taken = what()
        except Refusal as refusal:
            if refusal.status != 400:
                raise
            return
    assert taken is not None
    path = taken.partition(b"?")[0]
    text = path.decode("latin-1")
    is_control(text), is_passive(text), is_stored(b"GET", text)
    if not taken.startswith(b"/"):
        return
    assert b"#" not in taken
    plain = unquote_to_bytes(path).replace(b"\\", b"/")
    assert b"\x00" not in plain or b"\x00" in path
    for seen in (plain, re.sub(rb";[^/]*", b"", plain)):
        segments = [one for one in seen.split(b"/") if one not in (b"", b".")]
        resolved = posixpath.normpath(b"/".join((b"/root", *segments)))
        first = segments[:1]
        if first and first[0] != b"..":
            assert resolved.startswith(b"/root/" + first[0]), (taken, resolved)
        else:
            assert resolved == b"/root", (taken, resolved)


_FIELDS = (
    *(b"192.0.2.1", b"192.0.2.1, 10.0.0.1", b"[2001:db8::1]:80", b"unknown", b"for=192.0.2.1;proto=https"),
    *(b'for="[2001:db8::1]";host="h", for=_x', b"https", b"h:80"),
)
_ONE = damaged(_FIELDS, most=3)
FORWARDED = st.lists(
    st.tuples(
        st.sampled_from([b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded"]), _ONE
    ),
    max_size=4,
)


def check_forwarded(given: list[tuple[bytes, bytes]]) -> None:
    """Whoever is told, it is somebody, in one word that can be written into a header and into the log."""
    peer = peer_origin("10.0.0.1", secure=False)
    found = TrustedProxies(["10.0.0.0/8"]).origin(Fields(given), peer)
    assert re.fullmatch(rb"[0-9A-Fa-f:.]+", found.forwarded_for)
    assert found.client == found.forwarded_for.decode()
    assert found.host is None or re.fullmatch(rb"[A-Za-z0-9._:\[\]-]+", found.host)


# -- settings -------------------------------------------------------------------------------------------

_YAML = (
    "listen: [tcp:8000]\nlimits: {max_body: 64MiB, head_timeout: 30s, max_connections: 10}\n",
    "backends:\n  coder: {container: c, port: 8001, models: [a, b], gpu_memory: 0.5}\n",
    "keys:\n  - {name: me, secret: abcdefgh, routes: [coder], expires: 2030-01-01}\n",
    "defaults: {idle: 10m}\ngpus: {'0': {memory: 24GiB, reserve: 1GiB}}\n",
    "a: &a [*a]\nb: !!python/object:os.system x\n<<: {listen: 1}\n",
    "backends: {x: {request_defaults: {a.b: 1}, environment: {A: '${B:-c}'}, command: [x, '${port}']}}\n",
    "cors: {origins: ['*']}\nprobes: {paths: [/x*], health_completions: refuse}\nlog: {level: warn}\n",
)
FILES = texts(_YAML)
_VALUES = ("coder", "8001", "10m", "0.5", "24GiB", "true", "a,b", "/health", '["x"]', "-1", "", "1e999")
_NAMES = (
    "route",
    "port",
    "idle",
    "gpu_memory",
    "models",
    "pinned",
    "sleep",
    "args",
    "health",
    "container",
    "managed",
)
LABELS = st.dictionaries(
    st.sampled_from(_NAMES).map(lambda name: f"llmproxy.{name}"), texts(_VALUES, most=2), max_size=6
)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(
        (
            *(f"MAP__coder__{name}" for name in _NAMES),
            *("IDLE_SECONDS", "START_TIMEOUT_SECONDS", "PREWARM_ROUTES", "VLLM_API_KEY", "MAP__", "MAP____x"),
        )
    ),
    texts(_VALUES, most=2),
    max_size=6,
)


def _one_line(refused: ConfigError) -> None:
    assert str(refused)
    assert "\n" not in str(refused), str(refused)


def check_file(text: str) -> None:
    """Settings, or one line that says what is wrong."""
    try:
        read_file(text, "llmproxy.yaml", {"B": "b", "PORT": "1"})
    except ConfigError as refused:
        _one_line(refused)


def check_labels(labels: dict[str, str]) -> None:
    """Settings, or one line that says what is wrong."""
    try:
        read_labels(Layer(), "c", labels)
    except ConfigError as refused:
        _one_line(refused)


def check_environment(environ: dict[str, str]) -> None:
    """Settings, or one line that says what is wrong."""
    try:
        read_environment(environ)
    except ConfigError as refused:
        _one_line(refused)


# -- logs -----------------------------------------------------------------------------------------------

_LOG = (
    "INFO 07-01 12:00:00 [gpu_model_runner.py:1595] Starting to load model a/b...\n",
    "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.20s/it]\n",
    "INFO [gpu_worker.py:227] Available KV cache memory: 5.25 GiB\n",
    "Capturing CUDA graph shapes:  10%|9         | 7/67 [00:03<00:27,  2.17it/s]\n",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 8 GiB\n",
    "ValueError: Free memory on device (1.2/8.0 GiB) is less than desired GPU memory utilization\n",
    "huggingface_hub.errors.GatedRepoError: 401. token hf_abcdefghijklmnopqrstuvwxyz0123456789\n",
    'Traceback (most recent call last):\n  File "x.py", line 1\nOSError: [Errno 98] Address already in use\n',
    "INFO:     Application startup complete.\n",
)
LOGS = texts(_LOG)


def check_log(text: str) -> None:
    """A phase for each line or none, a diagnosis for the whole, and no secret in it."""
    for line in text.splitlines():
        read_phase(line)
    for code, oom in ((1, False), (137, True), (None, False)):
        cause, hint = diagnose(code, oom, text, ("chat",))
        assert cause
        assert hint is None or hint
        # Behind a letter or a digit it is a part of another word.
        assert not re.search(
            r"(?<![0-9A-Za-z_])hf_abcdefghijklmnopqrstuvwxyz0123456789", cause + (hint or "")
        )
    redact(text, ["hf_secret"])
