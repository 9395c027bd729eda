"""What is looked at in a request before it is passed on."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import Refusal
from llmproxy.http.openai import Glance, glance_at, requested_model

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["model", "stream", "messages", "mode", "models", "Model", ""]) | st.text(max_size=6)


@given(st.lists(st.tuples(keys, values), max_size=6), st.booleans(), st.sampled_from(["", " ", "\n\t"]))
def test_a_glance_sees_what_pythons_parser_sees(
    pairs: list[tuple[str, Any]], escaped: bool, space: str
) -> None:
    """Any object: keys several times or escaped, NaN, lone surrogates, models within other objects."""
    members = []
    for key, value in pairs:
        name = (
            "".join(f"\\u{ord(c):04x}" for c in key) if escaped and key.isascii() else json.dumps(key)[1:-1]
        )
        members.append(f'"{name}"{space}:{space}{json.dumps(value)}')
    body = (space + "{" + f"{space},".join(members) + "}" + space).encode()
    whole = json.loads(body)
    seen = glance_at(body)
    assert repr(seen.model) == repr(whole.get("model", msgspec.UNSET))
    assert (seen.stream is True) == (whole.get("stream") is True)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """With 400 and no other fault; what is refused Python's parser refuses, too, or it is no object."""
    if _looked_at(body) is None:
        with contextlib.suppress(ValueError):
            assert not isinstance(json.loads(body), dict)


def _looked_at(body: bytes) -> Glance | None:
    """What is seen; None when it is refused, which must be with 400."""
    try:
        return glance_at(body)
    except Refusal as caught:
        refusal = caught
    assert refusal.status == 400
    return None


@pytest.mark.parametrize("body", [b"{}", b'{"model": null}', b'{"a": {"model": "x"}}'])
def test_a_request_may_have_no_model(body: bytes) -> None:
    """One within another object is none."""
    assert requested_model(glance_at(body)) is None


@pytest.mark.parametrize("body", [b'{"model": ""}', b'{"model": 1}', b'{"model": ["m"]}'])
def test_a_model_is_a_string(body: bytes) -> None:
    """Anything else is refused, and the parameter named."""
    with pytest.raises(Refusal) as caught:
        requested_model(glance_at(body))
    assert (caught.value.status, caught.value.param) == (400, "model")


def test_a_deep_body_is_no_fault_of_ours() -> None:
    """It is refused, or looked through; nothing else happens."""
    for body in (b'{"a":' + b"[" * 100_000, b'{"a":' + b"[" * 900 + b"]" * 900 + b',"model":"m"}'):
        seen = _looked_at(body)
        assert seen is None or seen.model == "m"
