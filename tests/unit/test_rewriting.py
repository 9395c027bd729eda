"""What is changed in a request on its way, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.file import read_file
from llmproxy.errors import ConfigError, Refusal
from llmproxy.http.rewriting import rewritten, rewritten_json
from tests.front import CHAT, CODER, FrontCase
from tests.unit.test_front import KEY, OK

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet="aé", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
changes = st.dictionaries(paths, plain, max_size=3)


def expected(parsed: dict[str, Any], model: str | None, defaults: Any, overrides: Any) -> dict[str, Any]:
    """The same with Python's own objects."""

    def put(inside: dict[str, Any], path: list[str], value: Any, always: bool) -> None:
        name, *rest = path
        if not rest:
            if always or name not in inside:
                inside[name] = value
            return
        if name in inside and not isinstance(inside[name], dict) and not always:
            return
        inner = inside.get(name)
        fresh = dict(inner) if isinstance(inner, dict) else {}
        put(fresh, rest, value, always)
        if always or fresh or name in inside:
            inside[name] = fresh

    for path, value in defaults.items():
        put(parsed, path.split("."), value, False)
    for path, value in overrides.items():
        put(parsed, path.split("."), value, True)
    if model is not None:
        parsed["model"] = model
    return parsed


@given(
    st.dictionaries(st.sampled_from(["model", "a", "b", "c", "é"]), values, max_size=5),
    st.none() | st.sampled_from(["m", "é"]),
    changes,
    changes,
    st.booleans(),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_it_is_what_pythons_own_objects_would_be(
    parsed: dict[str, Any], model: str | None, defaults: Any, overrides: Any, ascii_only: bool, space: str
) -> None:
    """Any object, nested, with NaN and lone surrogates; a body that needs no change is left as it is."""
    text = json.dumps(parsed, ensure_ascii=ascii_only or any("\ud800" <= c <= "\udfff" for c in repr(parsed)))
    body = (space + text + space).encode("utf-8", "surrogatepass")
    try:
        same = json.loads(body)
    except UnicodeDecodeError:
        return
    found = rewritten_json(body, model, defaults, overrides)
    wanted = expected(json.loads(body), model, defaults, overrides)
    assert repr(json.loads(body if found is None else found)) == repr(wanted)
    if found is None:
        assert repr(same) == repr(wanted)


def test_what_is_not_concerned_is_passed_on_byte_for_byte() -> None:
    """Numbers, escapes and spaces within other members."""
    body = b'{ "model":"x", "big": 1e400, "float": 1.0, "text": "\\u00e9\\/", "deep": [ 1 , { } ] }'
    assert rewritten_json(body, "m", {}, {"deep.x": 1, "n": None}) == (
        b'{"model":"m","big":1e400,"float":1.0,"text":"\\u00e9\\/","deep":{"x":1},"n":null}'
    )
    assert rewritten_json(body, "m", {}, {}) == (
        b'{"model":"m","big":1e400,"float":1.0,"text":"\\u00e9\\/","deep":[ 1 , { } ]}'
    )


def test_the_last_of_several_members_counts() -> None:
    """As for Python's parser, escaped or not, and only it is passed on."""
    assert rewritten_json(b'{"model":"a","\\u006dodel":"b"}', "m", {}, {}) == b'{"model":"m"}'
    assert rewritten_json(b'{"t":1,"t":2}', None, {"t": 3}, {}) is None
    assert rewritten_json(b'{"t":1,"t":2}', None, {"u": 3}, {}) == b'{"t":2,"u":3}'


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"a":\xff}', b"[" * 2000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """With 400."""
    with pytest.raises(Refusal):
        rewritten_json(body, "m", {}, {})


def test_forms_get_no_fields() -> None:
    """Only another model's name."""
    assert rewritten("multipart/form-data; boundary=B", b"--B--", None, {"a": 1}, {"b": 1}) is None


@pytest.mark.parametrize(
    "field",
    [
        "model: x",
        "model.name: x",
        "'': 1",
        "a..b: 1",
        ".a: 1",
        "a: 2030-01-01",
        "a: .nan",
        "1: 2",
        "a: !!set {x}",
    ],
)
def test_what_cannot_be_put_into_a_request_is_refused_when_it_is_read(field: str) -> None:
    """The model, which a request is routed by, and what JSON has not."""
    for name in ("request_defaults", "request_overrides"):
        with pytest.raises(ConfigError, match=f"{name} is not allowed; use a mapping .* model cannot be one"):
            read_file(f"backends: {{coder: {{{name}: {{{field}}}}}}}", "llmproxy.yaml", {})


class RequestFieldTests(FrontCase):
    """``request_defaults`` and ``request_overrides``."""

    def build(self, *_: Any, **settings: Any) -> None:
        defaults = {"temperature": 0.2, "chat_template_kwargs.enable_thinking": False}
        coder = evolve(CODER, request_defaults=defaults, request_overrides={"max_tokens": 100})
        super().build((coder, CHAT), **settings)

    def sent(self, path: bytes, body: Any, headers: bytes = KEY) -> bytes:
        client = self.client().post(path, body, headers)
        received = self.far().received.rpartition(b"\r\n\r\n")[2]
        head = self.far().received.rpartition(b"POST ")[2]
        self.assertIn(b"Content-Length: %d\r\n" % len(received), head)
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        return received

    def test_requests_get_the_fields_of_their_route(self) -> None:
        """By the model's name, by the route, and by another name."""
        self.warm("coder")
        full = {
            "temperature": 0.2,
            "chat_template_kwargs": {"enable_thinking": False},
            "max_tokens": 100,
        }
        for path, model in ((b"/v1/chat/completions", "coder3b"), (b"/v1/completions", "coder")):
            body = self.sent(path, {"model": model, "max_tokens": 5})
            self.assertEqual(json.loads(body), {"model": "coder3b", **full})
        body = self.sent(b"/coder/v1/chat/completions?x=y", {"model": "other"})
        self.assertEqual(json.loads(body), {"model": "other", **full})

    def test_what_the_client_says_counts_more_than_a_default(self) -> None:
        """Null and false, too."""
        self.warm("coder")
        asked = {"temperature": None, "chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 100}
        written = json.dumps(asked, indent=1).encode()
        self.assertEqual(self.sent(b"/coder/v1/completions", written), written)

    def test_what_is_no_json_object_is_passed_on(self) -> None:
        """By its route the backend says what is wrong with it."""
        self.warm("coder")
        for body in (b"", b"{", b"[]", b"\xff"):
            self.assertEqual(self.sent(b"/coder/v1/chat/completions", body), body)
        form = KEY + b"Content-Type: multipart/form-data; boundary=B\r\n"
        self.assertEqual(self.sent(b"/coder/v1/audio/transcriptions", b"--B--", form), b"--B--")

    def test_other_paths_are_left_alone(self) -> None:
        """Only inference has these fields."""
        self.warm("coder")
        self.assertEqual(self.sent(b"/coder/v1/load_lora_adapter", b'{"a":1}'), b'{"a":1}')

    def test_a_stream_that_is_forced_is_held_as_one(self) -> None:
        """The client hears of its start."""
        super().build((evolve(CODER, request_overrides={"stream": True}), CHAT))
        client = self.client().post(b"/v1/completions", {"model": "coder3b"})
        self.clock.advance(8)
        self.assertIn(b"text/event-stream", client.take())

    def test_a_reload_changes_them(self) -> None:
        """And restarts nothing."""
        self.warm("coder")
        self.reload(backends={"coder": evolve(CODER, request_overrides={"n": 1}), "chat": CHAT})
        body = self.sent(b"/v1/completions", {"model": "coder3b"})
        self.assertEqual((json.loads(body), self.started()), ({"model": "coder3b", "n": 1}, 1))


class DefaultRouteTests(FrontCase):
    """``default_route``."""

    def test_a_request_without_a_model_is_refused(self) -> None:
        """400, unless there is a route for those; and for a key that may not use that."""
        for body in ({}, {"model": None}):
            status, error, _ = self.client().post(b"/v1/completions", body).error()
            self.assertEqual((status, error["code"], error["param"]), (400, "invalid_request", "model"))
        self.reload(default_route="coder")
        status, error, _ = self.client().post(b"/v1/completions", {}, b"x-api-key: limited\r\n").error()
        self.assertEqual((status, error["param"]), (400, "model"))
        self.reload(default_route="nowhere")
        self.assertEqual(self.client().post(b"/v1/completions", {}).error()[0], 400)
        self.assertEqual(self.started(), 0)

    def test_it_serves_requests_without_a_model(self) -> None:
        """Byte for byte: vLLM takes them, too."""
        self.reload(default_route="coder")
        self.warm("coder")
        for body in (b'{ "prompt": "x" }', b'{"model":null}'):
            client = self.client().post(b"/v1/completions", body)
            self.assertEqual(self.body(), body)
            self.far().send(OK)
            self.assertEqual(client.answer()[1]["x-llmproxy-backend"], "coder")
        form = b'--B\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--B--\r\n'
        kind = KEY + b"Content-Type: multipart/form-data; boundary=B\r\n"
        self.client().post(b"/v1/audio/transcriptions", form, kind)
        self.assertTrue(self.far().received.endswith(form))

    def test_a_model_that_is_unknown_is_no_missing_one(self) -> None:
        """404."""
        self.reload(default_route="coder")
        self.assertEqual(self.client().post(b"/v1/completions", {"model": "nope"}).error()[0], 404)
        self.assertEqual(self.client().post(b"/v1/completions", {"model": ""}).error()[0], 400)
