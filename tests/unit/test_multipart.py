"""The model's name in a form, as python-multipart reads it."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartParser, to_bytes

from llmproxy.errors import Refusal
from llmproxy.http.multipart import (
    LONGEST_HEAD,
    LONGEST_NAME,
    MOST_PARTS,
    form_streams,
    is_form,
    multipart_model,
    with_model,
)
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK

KIND = "multipart/form-data; boundary=B"

# What looks like a boundary and is none, and what looks like a field.
contents = (
    st.lists(
        st.sampled_from(
            [
                b"--B",
                b"\r\n--Bx",
                b"--B--",
                b"\r\n--",
                b"\r\n",
                b'name="model"',
                b"\r\n\r\n",
                b"x",
                b"\x00\xff",
            ]
        ),
        max_size=6,
    )
    .map(b"".join)
    .filter(
        lambda content: (
            b"\r\n--B\r\n" not in b"\r\n" + content + b"\r\n" and b"\r\n--B--" not in b"\r\n" + content
        )
    )
)
names = st.sampled_from(["model", "file", "Model", "models", "prompt", "a b", ""])


def part(name: str, content: bytes, more: str = "", head: str = "Content-Disposition: form-data") -> bytes:
    return f'{head}; name="{name}"{more}\r\n\r\n'.encode() + content


def form(*parts: bytes) -> bytes:
    return b"".join(b"--B\r\n" + one + b"\r\n" for one in parts) + b"--B--\r\n"


def test_a_form_may_ask_for_a_stream() -> None:
    """By the words that servers take for true; the last field of that name counts, and a file is none."""
    for value in (b"true", b"True", b"1", b"yes", b"on", b"t", b"y"):
        assert form_streams(KIND, form(part("model", b"m"), part("stream", value)))
    for parts in (
        [part("model", b"m")],
        [part("stream", b"false")],
        [part("stream", b"")],
        [part("stream", b"true"), part("stream", b"0")],
        [part("stream", b"true", '; filename="x"')],
        [part("file", b"stream", '; filename="true"')],
    ):
        assert not form_streams(KIND, form(*parts))
    # Whatever else is wrong with it is for the backend to say.
    assert not form_streams(KIND, b"stream=true")
    assert not form_streams("multipart/form-data", form(part("stream", b"true")))


@given(
    st.lists(
        st.tuples(names, contents, st.sampled_from(["", '; filename="model"', "; filename="])), max_size=5
    )
)
def test_any_form_is_read_as_it_was_meant(fields: list[tuple[str, bytes, str]]) -> None:
    """Of several fields the last counts; files are none, whatever stands in them."""
    body = form(*(part(name, content, more) for name, content, more in fields))
    models = [content for name, content, more in fields if name == "model" and not more]
    wanted = models[-1] if models else b""
    if wanted != wanted.decode(errors="ignore").encode():
        with pytest.raises(Refusal, match="UTF-8"):
            multipart_model(KIND, body)
        return
    assert multipart_model(KIND, body) == (wanted.decode() or None)
    changed = with_model(KIND, body, "own")
    meant = form(
        *(
            part(name, b"own" if name == "model" and not more else content, more)
            for name, content, more in fields
        )
    )
    assert (changed or body) == meant


@given(
    st.lists(
        st.tuples(st.sampled_from(["model", "file"]), st.text(alphabet="ab -B\n", max_size=9)), max_size=4
    )
)
def test_another_parser_sees_the_same(fields: list[tuple[str, str]]) -> None:
    """That of the multipart package, which reads RFC 7578 to the letter."""
    body = form(*(part(name, content.encode()) for name, content in fields))
    theirs = [one.value for one in MultipartParser(io.BytesIO(body), to_bytes("B")) if one.name == "model"]
    assert multipart_model(KIND, body) == ((theirs[-1] or None) if theirs else None)


@given(
    st.lists(
        st.sampled_from(
            [
                b"--B",
                b"\r\n",
                b"--",
                b" ",
                b"B",
                b"\r",
                b"\xff",
                b"model",
                part("model", b"x"),
                part("file", b""),
            ]
        ),
        max_size=9,
    ).map(b"".join),
    st.sampled_from(
        [KIND, "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data;boundary="']
    ),
)
def test_nothing_else_happens(body: bytes, kind: str) -> None:
    """Any bytes are a form with a model, one without, or 400."""
    with contextlib.suppress(Refusal):
        multipart_model(kind, body)
        with_model(kind, body, "m")


@given(st.text(alphabet='; =*"\\abn', max_size=30))
def test_any_disposition_is_read(more: str) -> None:
    """What follows a name may be anything."""
    with contextlib.suppress(Refusal):
        multipart_model(KIND, form(part("model", b"m", more)))


@pytest.mark.parametrize(
    "head",
    [
        'content-disposition:form-data;name="model"',
        "CONTENT-DISPOSITION: form-data; NAME=model",
        'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"; x="a;b"',
        'Content-Disposition: form-data; name="file"\r\nContent-Disposition: form-data; name="model"',
        'Content-Disposition: form-data; x="name=\\"file\\""; name = "model"',
    ],
)
def test_spellings_of_the_field(head: str) -> None:
    """They are all the same field."""
    assert multipart_model(KIND, form(head.encode() + b"\r\n\r\nm")) == "m"


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("multipart/form-data", form(), "names no boundary"),
        (KIND, b"x" + form(part("model", b"m")), "does not begin"),
        (KIND, b"", "does not begin"),
        (KIND, b"--B\r\n" + part("model", b"m") + b"\r\n--B \r\n", "white space"),
        (KIND, form(b"X: " + b"x" * LONGEST_HEAD + b"\r\n\r\n"), "head longer"),
        (KIND, form(*[part("x", b"")] * (MOST_PARTS + 1)), "more than 2000 parts"),
        (KIND, form(part("model", b"m" * (LONGEST_NAME + 1))), "longer than"),
        (KIND, form(part("model", b"\xff")), "not UTF-8"),
        (KIND, form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\nm"), "RFC 2231"),
    ],
)
def test_what_is_refused(kind: str, body: bytes, words: str) -> None:
    """With 400, which says what is wrong."""
    with pytest.raises(Refusal, match=words) as caught:
        multipart_model(kind, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"--B--",
        b"--B",
        b"--B\r\n",
        b"--B\r\n" + part("model", b"m"),
        b"--B\r\nX: y",
        form(b"\r\nm"),
        form(part("model", b"")),
    ],
)
def test_what_names_no_model(body: bytes) -> None:
    """A field that is not complete is none; nor is one without a head, or an empty one."""
    assert multipart_model(KIND, body) is None


def test_the_boundary_may_be_quoted() -> None:
    """And then hold what else would end it (RFC 2046 section 5.1.1)."""
    body = form(part("model", b"m")).replace(b"--B", b"--B ;?")
    assert multipart_model('Multipart/Form-Data; charset=x; boundary="B ;?"', body) == "m"
    assert is_form("MULTIPART/form-data")
    assert not is_form("application/json")


class FormTests(FrontCase):
    """The same, on its way."""

    HEADERS = KEY + b"Content-Type: multipart/form-data; boundary=B\r\n"
    PATH = b"/v1/audio/transcriptions"

    def test_a_form_is_passed_on_byte_for_byte(self) -> None:
        """However it arrives."""
        self.warm("coder")
        body = form(part("file", b"\r\n--Bx\x00", '; filename="a"'), part("model", b"coder3b"))
        head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (
            self.PATH,
            self.HEADERS,
            len(body),
        )
        for size in (1, 7, 1000):
            client = self.client()
            for at in range(0, len(head + body), size):
                client.send((head + body)[at : at + size])
            self.assertTrue(self.far().received.endswith(b"\r\n\r\n" + body))
            self.far().send(OK)
            self.assertEqual(client.answer()[0], 200)

    def test_an_alias_becomes_the_engines_own_name(self) -> None:
        """In every field of that name, and the length fits."""
        self.warm("chat")
        file = part("file", b"model\r\n--B-", '; filename="a"')
        self.client().post(
            self.PATH, form(part("model", b"coder3b"), file, part("model", b"gpt-4")), self.HEADERS
        )
        meant = form(part("model", b"sitechat"), file, part("model", b"sitechat"))
        self.assertTrue(self.far().received.endswith(b"Content-Length: %d\r\n\r\n%b" % (len(meant), meant)))

    def test_a_form_without_a_model(self) -> None:
        """400 for the parameter, and for what is no form."""
        for body in (b"--B--", b"nothing"):
            status, error, _ = self.client().post(self.PATH, body, self.HEADERS).error()
            self.assertEqual((status, error["code"]), (400, "invalid_request"))
        status, error, _ = self.client().post(self.PATH, form(part("model", b"nope")), self.HEADERS).error()
        self.assertEqual((status, error["code"]), (404, "model_not_found"))
        self.assertEqual(self.started(), 0)
