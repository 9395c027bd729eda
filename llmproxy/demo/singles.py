"""The answers of vLLM 0.32 that are no text of the model's: embeddings, scores, what was heard.  Pure."""

from __future__ import annotations

import hashlib
import math
import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from llmproxy.demo.shapes import (
    DONE,
    BadRequest,
    Plan,
    content,
    engine_error,
    event,
    invalid,
    plan,
    served,
    tokens,
)

__all__ = ["TRANSCRIPTS", "plan_embeddings", "plan_rerank", "plan_score", "plan_transcript"]

_DIMENSIONS = 8
_BYTES_PER_SECOND = 32_000
"""Of sound with 16 bits and 16 kHz, for which everything is taken here."""


@frozen
class _Single:
    """See :class:`~llmproxy.demo.shapes.Form`: an answer that never streams."""

    _found: dict[str, Any]

    def answer(self, what: Plan) -> dict[str, Any]:
        return self._found

    def events(self, what: Plan) -> Iterator[bytes]:
        raise NotImplementedError

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        raise NotImplementedError

    def died(self) -> bytes | None:
        raise NotImplementedError

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        return found


def _single(found: dict[str, Any], ident: str, created: int, model: str) -> Plan:
    form = _Single({"id": ident, **found})
    return Plan(ident, created, model, form, False, 0, (), "stop")


def _usage(count: int) -> dict[str, Any]:
    return {
        "prompt_tokens": count,
        "total_tokens": count,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


# Embeddings.


def _vector(text: str, dimensions: int) -> list[float]:
    seed = hashlib.shake_128(text.encode()).digest(2 * dimensions)
    raw = [number / 32768 - 1 for number in struct.unpack(f"<{dimensions}H", seed)]
    length = math.hypot(*raw) or 1.0
    return [number / length for number in raw]


def _inputs(asked: object) -> list[str]:
    """Texts, or token numbers as text."""
    if isinstance(asked, str):
        return [asked]
    if isinstance(asked, list) and asked:
        if all(isinstance(each, int) for each in asked):
            return [" ".join(map(str, asked))]
        return [each if isinstance(each, str) else " ".join(map(str, each)) for each in asked]
    raise invalid("'input' is required", "input")


def plan_embeddings(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out embeddings: the same text has the same vector, of length 1."""
    inputs = _inputs(body.get("input"))
    dimensions = body.get("dimensions") or _DIMENSIONS
    model = served(body, names)
    data: list[dict[str, Any]] = []
    for index, text in enumerate(inputs):
        vector = _vector(text, dimensions)
        packed = body.get("encoding_format") == "base64"
        shown = b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if packed else vector
        data.append({"index": index, "object": "embedding", "embedding": shown})
    usage = _usage(sum(len(tokens(text)) for text in inputs))
    found = {"object": "list", "created": created, "model": model, "data": data, "usage": usage}
    return _single(found, f"embd-{ident}", created, model)


# Scores.


def _score(one: str, other: str) -> float:
    """The part of their words that two texts share."""
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / (len(words | others) or 1)


def _texts(asked: object, param: str) -> list[str]:
    found = asked if isinstance(asked, list) else [asked]
    if not found or any(each is None for each in found):
        raise invalid(f"'{param}' is required", param)
    return [each if isinstance(each, str) else content(each) for each in found]


def plan_rerank(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out the order of documents: by the words that they share with the query."""
    query, documents = _texts(body.get("query"), "query")[0], _texts(body.get("documents"), "documents")
    model = served(body, names)
    results: list[dict[str, Any]] = [
        {
            "index": index,
            "document": {"text": text, "multi_modal": None},
            "relevance_score": _score(query, text),
        }
        for index, text in enumerate(documents)
    ]
    results.sort(key=lambda result: float(result["relevance_score"]), reverse=True)
    results = results[: body.get("top_n") or len(results)]
    total = sum(len(tokens(query)) + len(tokens(text)) for text in documents)
    usage = {"prompt_tokens": total, "total_tokens": total}
    return _single({"model": model, "usage": usage, "results": results}, f"score-{ident}", created, model)


_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def plan_score(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out the score of pairs of texts: by the words that they share."""
    one, other = next((pair for pair in _PAIRS if pair[0] in body and pair[1] in body), _PAIRS[-1])
    left, right = _texts(body.get(one), one), _texts(body.get(other), other)
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise BadRequest(400, "BadRequestError", "Input lengths must be either 1:1, 1:N or N:N")
    model = served(body, names)
    pairs = list(zip(left, right, strict=True))
    data = [{"index": index, "object": "score", "score": _score(*pair)} for index, pair in enumerate(pairs)]
    usage = _usage(sum(len(tokens(each)) for pair in pairs for each in pair))
    found = {"object": "list", "created": created, "model": model, "data": data, "usage": usage}
    return _single(found, f"score-{ident}", created, model)


# Sound.


class Transcripts:
    """See :class:`~llmproxy.demo.shapes.Form`."""

    def answer(self, what: Plan) -> dict[str, Any]:
        seconds = math.ceil(len(what.asked["file"]) / _BYTES_PER_SECOND)
        return {"text": what.text, "usage": {"type": "duration", "seconds": seconds}}

    def events(self, what: Plan) -> Iterator[bytes]:
        last = len(what.pieces) - 1
        for number, piece in enumerate(what.pieces):
            yield b""
            yield self._chunk(what, piece, what.finish if number == last else None)
        yield DONE

    def aborted(self, what: Plan, written: int) -> Iterator[bytes]:
        yield self._chunk(evolve(what, pieces=what.pieces[:written]), "", "abort")
        yield DONE

    def died(self) -> bytes:
        return event(engine_error()) + DONE

    def error(self, found: dict[str, Any]) -> dict[str, Any]:
        return found

    def _chunk(self, what: Plan, piece: str, finish: str | None) -> bytes:
        choice: dict[str, Any] = {"delta": {"content": piece}}
        if finish is not None:
            choice.update(finish_reason=finish, stop_reason=None)
        kind = "transcription.chunk"
        head = {"id": what.ident, "object": kind, "created": what.created, "model": what.model}
        return event({**head, "choices": [choice]})


TRANSCRIPTS = Transcripts()


def plan_transcript(body: Mapping[str, Any], names: Sequence[str], ident: str, created: int) -> Plan:
    """Work out what was heard: how much it was.

    :param body: the form's fields; ``file`` is bytes.
    """
    sound = body.get("file")
    if not isinstance(sound, bytes):
        raise invalid("'file' is required", "file")

    def texts(model: str) -> tuple[str, str]:
        return "", f"I am {model} and heard {len(sound)} bytes of sound."

    asked = {**body, "stream": str(body.get("stream", "")).lower() in ("true", "1", "yes", "on")}
    return plan(
        asked, names, texts, form=TRANSCRIPTS, ident=f"transcribe-{ident}", created=created, limits=()
    )
