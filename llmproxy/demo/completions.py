"""The shapes of OpenAI's chat and text completions, as vLLM 0.32 writes them.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from llmproxy.demo.shapes import DONE, FINGERPRINT, BadRequest, Plan, engine_error, event, invalid, reply
from llmproxy.demo.shapes import plan as _plan

__all__ = ["CHAT", "TEXT", "plan_chat", "plan_text"]


@frozen
class Completions:
    """See :class:`~llmproxy.demo.shapes.Form`."""

    _chat: bool

    def answer(self, what: Plan) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": what.finish,
            "stop_reason": None,
        }
        if self._chat:
            choice["message"] = {"role": "assistant", "content": what.text, "tool_calls": []}
        else:
            choice["text"] = what.text
        return {
            **self._base(what),
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [choice],
            "usage": what.usage,
            "system_fingerprint": FINGERPRINT,
        }

    def events(self, what: Plan) -> Iterator[bytes]:
        """For chat a chunk with the role first; one chunk for each token; the usage if it was asked for;
        ``[DONE]``."""
        if self._chat:
            yield self._chunk(what, {"delta": {"role": "assistant", "content": ""}}, None)
        last = len(what.pieces) - 1
        for number, piece in enumerate(what.pieces):
            yield b""
            content = {"delta": {"content": piece}} if self._chat else {"text": piece}
            yield self._chunk(what, content, what.finish if number == last else None)
        yield from self._last(what)

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        cut = evolve(what, pieces=what.pieces[:written])
        yield self._chunk(cut, {"delta": {}} if self._chat else {"text": ""}, "abort")
        yield from self._last(cut)

    def died(self) -> bytes:
        return event(engine_error()) + DONE

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        return found

    def _base(self, what: Plan) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {"id": what.ident, "object": kind, "created": what.created, "model": what.model}

    def _chunk(self, what: Plan, content: Mapping[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return event({**self._base(what), "choices": [choice]})

    def _last(self, what: Plan) -> Iterator[bytes]:
        options = what.asked.get("stream_options")
        if isinstance(options, Mapping) and options.get("include_usage"):
            usage = {"choices": [], "usage": what.usage, "system_fingerprint": FINGERPRINT}
            yield event({**self._base(what), **usage})
        yield DONE


CHAT = Completions(chat=True)
TEXT = Completions(chat=False)


def _options(body: Mapping[str, Any]) -> None:
    if body.get("stream_options") is not None and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`."
        raise BadRequest(400, "BadRequestError", message, "stream_options")


def plan_chat(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out a chat completion; see :func:`llmproxy.demo.shapes.plan`."""
    _options(body)

    def texts(model: str) -> tuple[str, str]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("'messages' is required", "messages")
        return reply(messages, model)

    return _plan(body, names, texts, form=CHAT, ident=f"chatcmpl-{ident}", created=created)


def plan_text(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out a text completion; see :func:`llmproxy.demo.shapes.plan`."""
    _options(body)

    def texts(model: str) -> tuple[str, str]:
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            prompt = " ".join(str(part) for part in prompt)
        if not isinstance(prompt, str):
            raise invalid("'prompt' is required", "prompt")
        return prompt, f" {prompt.strip()}" if prompt.strip() else " (nothing was asked)"

    return _plan(body, names, texts, form=TEXT, ident=f"cmpl-{ident}", created=created)
