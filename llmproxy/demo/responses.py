"""The shapes of OpenAI's Responses API, as vLLM 0.32 writes them.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from attrs import evolve

from llmproxy.demo.shapes import Plan, event, invalid, reply
from llmproxy.demo.shapes import plan as _plan

__all__ = ["RESPONSES", "plan_response"]

_STATUS = {"length": "incomplete", "abort": "cancelled"}
_LIMIT = 131072


def _item(what: Plan, status: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "id": what.ident.replace("resp_", "msg_"),
        "content": list(content),
        "role": "assistant",
        "status": status,
        "type": "message",
        "phase": None,
    }


def _text(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _response(what: Plan, status: str, output: Sequence[Mapping[str, Any]], usage: object) -> dict[str, Any]:
    asked = what.asked
    return {
        "id": what.ident,
        "created_at": what.created,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": asked.get("instructions"),
        "metadata": asked.get("metadata"),
        "model": what.model,
        "object": "response",
        "output": list(output),
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "temperature": asked.get("temperature", 1.0),
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": asked.get("top_p", 1.0),
        "background": asked.get("background", False),
        "max_output_tokens": asked.get("max_output_tokens") or _LIMIT,
        "max_tool_calls": None,
        "previous_response_id": asked.get("previous_response_id"),
        "prompt": None,
        "reasoning": asked.get("reasoning"),
        "service_tier": "auto",
        "status": status,
        "text": asked.get("text"),
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage,
        "user": asked.get("user"),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


class Responses:
    """See :class:`~llmproxy.demo.shapes.Form`."""

    def answer(self, what: Plan) -> dict[str, Any]:
        written = len(what.pieces)
        usage = {
            "input_tokens": what.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": written,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": what.prompt_tokens + written,
        }
        output = [_item(what, "completed", [_text(what.text)])] if written else []
        return _response(what, _STATUS.get(what.finish, "completed"), output, usage)

    def events(self, what: Plan) -> Iterator[bytes]:
        """The response twice, one item with a delta for each token, what ends it, and the response again;
        no ``[DONE]``."""
        numbers = count()
        begun = _response(what, "in_progress", [], None)
        for kind in ("response.created", "response.in_progress"):
            yield event({"response": begun, "sequence_number": next(numbers), "type": kind}, kind)
        opening = self._opening(what, numbers)
        for piece in what.pieces:
            yield b""
            delta = {**self._place(what), "delta": piece, "logprobs": []}
            yield b"".join(opening) + self._event("response.output_text.delta", numbers, delta)
        yield from self._last(what, numbers)

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        cut = evolve(what, pieces=what.pieces[:written], finish="abort")
        yield from self._last(cut, count(4 + written if written else 2))

    def died(self) -> None:
        """vLLM has no event for it in this API."""

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        return found

    def _event(self, kind: str, numbers: Iterator[int], fields: Mapping[str, Any]) -> bytes:
        return event({**fields, "sequence_number": next(numbers), "type": kind}, kind)

    def _place(self, what: Plan) -> dict[str, Any]:
        return {"item_id": _item(what, "", [])["id"], "output_index": 0, "content_index": 0}

    def _opening(self, what: Plan, numbers: Iterator[int]) -> Iterator[bytes]:
        item = {"item": _item(what, "in_progress", []), "output_index": 0}
        yield self._event("response.output_item.added", numbers, item)
        part = {**self._place(what), "part": {**_text(""), "logprobs": []}}
        yield self._event("response.content_part.added", numbers, part)

    def _last(self, what: Plan, numbers: Iterator[int]) -> Iterator[bytes]:
        if what.pieces:
            place, text = self._place(what), _text(what.text)
            done = {**place, "text": what.text, "logprobs": []}
            yield self._event("response.output_text.done", numbers, done)
            yield self._event("response.content_part.done", numbers, {**place, "part": text})
            item = {"item": _item(what, "completed", [text]), "output_index": 0}
            yield self._event("response.output_item.done", numbers, item)
        yield self._event("response.completed", numbers, {"response": self.answer(what)})


RESPONSES = Responses()


def plan_response(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out a response; see :func:`llmproxy.demo.shapes.plan`."""

    def texts(model: str) -> tuple[str, str]:
        asked = body.get("input")
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        if not isinstance(messages, list) or not messages:
            raise invalid("'input' is required", "input")
        instructions = body.get("instructions")
        system = [{"role": "system", "content": instructions}] if instructions else []
        return reply([*system, *messages], model)

    return _plan(
        body,
        names,
        texts,
        form=RESPONSES,
        ident=f"resp_{ident}",
        created=created,
        limits=("max_output_tokens",),
    )
