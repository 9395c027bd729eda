"""A request's body on its way to a backend: another model's name, and fields that the operator wants.  Pure.

Only the members of an object that are concerned are looked into; what stands in the others is passed on byte
for byte, and so is the whole body where nothing has to be changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from llmproxy.http.multipart import is_form, with_model
from llmproxy.http.openai import parse_body

__all__ = ["rewritten", "rewritten_json"]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def rewritten(
    content_type: str,
    body: bytes,
    model: str | None,
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> bytes | None:
    """The body that a backend gets instead of the client's.

    :param model: the name that the backend serves; None leaves the client's.
    :param defaults: values for fields that the request has not, by dotted path; of JSON bodies only.
    :param overrides: values for fields whatever the request has.
    :return: None when nothing has to be changed.
    :raises llmproxy.errors.Refusal: ``invalid_request``: it is neither a form nor a JSON object.
    """
    if is_form(content_type):
        return None if model is None else with_model(content_type, body, model)
    return rewritten_json(body, model, defaults, overrides)


def rewritten_json(
    body: bytes, model: str | None, defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> bytes | None:
    """As :func:`rewritten`, of a JSON object.

    Of several members with one key the last counts, as for Python's own parser, and only that is passed on.
    """
    members: dict[str, Any]
    encode: Callable[[object], bytes] = msgspec.json.encode
    try:
        if not body.isascii():
            body.decode()
        members = dict(_members.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Python's parser takes more (NaN, lone surrogates, UTF-16), and so does its writer.
        members = parse_body(body)
        encode = _written
    changed = False
    for path, value in defaults.items():
        changed |= _put(members, path.split("."), value, always=False)
    for path, value in overrides.items():
        changed |= _put(members, path.split("."), value, always=True)
    if model is not None:
        changed |= _put(members, ("model",), model, always=True)
    return encode(members) if changed else None


def _written(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _put(members: dict[str, Any], path: Sequence[str], value: Any, *, always: bool) -> bool:
    """Put a value where a path leads.

    :param always: also in the place of another one.
    :return: whether that changed something.
    """
    name, *rest = path
    if not rest:
        if name in members and (not always or _is(members[name], value)):
            return False
        members[name] = value
        return True
    inner = _opened(members[name]) if name in members else {}
    if inner is None:
        # Something that is no object: the client's own word, unless it is overridden.
        if not always:
            return False
        inner = {}
    if not _put(inner, rest, value, always=always):
        return False
    members[name] = inner
    return True


def _opened(member: Any) -> dict[str, Any] | None:
    """The members of a member; None when it is no object."""
    if isinstance(member, msgspec.Raw):
        raw = bytes(member)
        return dict(_members.decode(raw)) if raw.startswith(b"{") else None
    return member if isinstance(member, dict) else None


def _is(member: Any, value: Any) -> bool:
    return isinstance(member, msgspec.Raw) and bytes(member) == msgspec.json.encode(value)
