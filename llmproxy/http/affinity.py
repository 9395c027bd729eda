"""What requests have in common that are best served by the same task: who asks, or how their prompts begin.
Pure.

vLLM keeps the blocks of a prompt's beginning that it has computed (automatic prefix caching), in each task
for itself."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["BEGINNING", "affinity_key"]

BEGINNING = 2
"""Messages that count as the beginning: the system's and the first of the user's, which all turns of one
conversation share."""

LONGEST_PROMPT = 4096
"""Bytes of a prompt that count: some hundred tokens, which is a good deal of what requests of one kind
share."""


class _Metadata(msgspec.Struct):
    user_id: Any = None


class _Asked(msgspec.Struct):
    """The fields that tell, of OpenAI's APIs and Anthropic's."""

    model: msgspec.Raw = msgspec.Raw()
    prompt_cache_key: Any = None
    session_id: Any = None
    session: Any = None
    user: Any = None
    safety_identifier: Any = None
    metadata: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_asked = msgspec.json.Decoder(_Asked)
_metadata = msgspec.json.Decoder(_Metadata)
_messages = msgspec.json.Decoder(list[msgspec.Raw])


def affinity_key(body: bytes) -> bytes | None:
    """The same for requests that belong together; None where nothing tells.

    What the client says (``prompt_cache_key``, ``session_id``, ``session``, ``user``, ``safety_identifier``,
    Anthropic's ``metadata.user_id``) goes before how the prompt begins.

    :param body: a request's JSON, or anything else.
    """
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    model = bytes(asked.model)
    said = (
        asked.prompt_cache_key,
        asked.session_id,
        asked.session,
        asked.user,
        asked.safety_identifier,
        _user_of(asked.metadata),
    )
    for one in said:
        if isinstance(one, str) and one:
            return model + b"\0" + one.encode("utf-8", "replace")
    begins = bytes(asked.system or asked.instructions)[:LONGEST_PROMPT] + _beginning(asked)
    return model + b"\0\0" + begins if begins else None


def _user_of(metadata: msgspec.Raw) -> Any:
    try:
        return _metadata.decode(metadata).user_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _beginning(asked: _Asked) -> bytes:
    for words in (asked.messages, asked.input, asked.prompt):
        if not words:
            continue
        try:
            first = _messages.decode(words)[:BEGINNING]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A prompt is one text, most often.
            first = [words]
        return b"\0".join(bytes(one)[:LONGEST_PROMPT] for one in first)
    return b""
