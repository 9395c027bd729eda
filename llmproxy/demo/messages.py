"""The shapes of Anthropic's Messages API, as vLLM 0.32 writes them on top of its chat completions.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from llmproxy.demo.shapes import BadRequest, Plan, event, invalid, reply, served, tokens
from llmproxy.demo.shapes import plan as _plan

__all__ = ["MESSAGES", "count_tokens", "plan_message"]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
# vLLM reads its own chat stream here; an error in there is no chunk to it, and it tells just that.
_NO_CHUNK = "2 validation errors for ChatCompletionStreamResponse"


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _usage(what: Plan) -> dict[str, int]:
    return {"input_tokens": what.prompt_tokens, "output_tokens": len(what.pieces)}


class Messages:
    """See :class:`~llmproxy.demo.shapes.Form`."""

    def answer(self, what: Plan) -> dict[str, Any]:
        found = {
            "id": what.ident,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": what.text}],
            "model": what.model,
            "usage": _usage(what),
        }
        if what.finish in _STOP_REASONS:
            found["stop_reason"] = _STOP_REASONS[what.finish]
        return found

    def events(self, what: Plan) -> Iterator[bytes]:
        """``message_start``, one content block with a delta for each token, and what ends them."""
        message: dict[str, Any] = {
            "id": what.ident,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": what.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": what.prompt_tokens, "output_tokens": 0},
        }
        yield _event("message_start", message=message)
        opening = _event("content_block_start", content_block={"type": "text", "text": ""}, index=0)
        for piece in what.pieces:
            yield b""
            delta = {"type": "text_delta", "text": piece}
            yield opening + _event("content_block_delta", delta=delta, index=0)
            opening = b""
        yield from self._last(what, bool(what.pieces))

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        cut = evolve(what, pieces=what.pieces[:written], finish="abort")
        yield from self._last(cut, bool(written))

    def _last(self, what: Plan, opened: bool) -> Iterator[bytes]:
        if opened:
            yield _event("content_block_stop", index=0)
        delta = {"stop_reason": _STOP_REASONS.get(what.finish), "stop_sequence": None}
        yield _event("message_delta", delta=delta, usage=_usage(what))
        yield _event("message_stop")

    def died(self) -> bytes:
        return _event("error", error={"type": "internal_error", "message": _NO_CHUNK})

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        what = found["error"]
        return {"type": "error", "error": {"type": what["type"], "message": what["message"]}}


MESSAGES = Messages()


def _conversation(body: Mapping[str, Any]) -> list[object]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("'messages' is required", "messages")
    system = body.get("system")
    return [{"role": "system", "content": system}, *messages] if system else messages


def plan_message(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out a message; see :func:`llmproxy.demo.shapes.plan`.

    :raises BadRequest: what the API's own rules refuse has vLLM's error object, anything later Anthropic's.
    """
    conversation = _conversation(body)
    limit = body.get("max_tokens")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise invalid("'max_tokens' must be positive", "max_tokens")
    try:
        return _plan(
            body,
            names,
            lambda model: reply(conversation, model),
            form=MESSAGES,
            ident=f"chatcmpl-{ident}",
            created=created,
        )
    except BadRequest as refused:
        refused.body = MESSAGES.error(refused.body)
        raise


def count_tokens(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The answer to ``/v1/messages/count_tokens``: words.

    :raises BadRequest: as :func:`plan_message` does.
    """
    conversation = _conversation(body)
    try:
        model = served(body, names)
    except BadRequest as refused:
        refused.body = MESSAGES.error(refused.body)
        raise
    count = len(tokens(reply(conversation, model)[0]))
    return {"input_tokens": count, "context_management": {"original_input_tokens": count}}
