"""Which completions are no work, but somebody's look at whether a model answers.  Pure.

LiteLLM's ``/health`` and its background checks send a real request to every model, as of version 1.110:
``_get_random_llm_message`` and ``update_litellm_params_for_health_check`` in
``litellm/proxy/health_check.py``, ``get_mode_handlers`` in
``litellm/litellm_core_utils/health_check_helpers.py``, ``DEFAULT_HEALTH_CHECK_PROMPT`` in
``litellm/constants.py``.  It is one user message of two, with ``max_tokens`` 16 (older versions: 1, 5 or 10),
or "test from litellm" where a model takes no messages.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["LARGEST_CHECK", "is_health_check"]

LARGEST_CHECK = 2048
"""Bytes of such a request at most."""

MOST_TOKENS = 16

_MESSAGES = frozenset(("Hey how's it going?", "What's 1 + 1?", "test from litellm"))
_PROMPT = "test from litellm"

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def is_health_check(body: bytes) -> bool:
    """Whether this request is LiteLLM's health check."""
    if len(body) > LARGEST_CHECK:
        return False
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    messages = asked.get("messages")
    if messages is None:
        # Completions and images; embeddings and responses; rerank.
        said = [asked[name] for name in ("prompt", "input", "query") if name in asked]
        return said in ([_PROMPT], [[_PROMPT]])
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        return False
    most = asked.get("max_tokens", asked.get("max_completion_tokens"))
    short = isinstance(most, int) and not isinstance(most, bool) and most <= MOST_TOKENS
    return short and messages[0].get("role") == "user" and _said(messages[0].get("content")) in _MESSAGES


def _said(content: Any) -> str | None:
    match content:
        case str():
            return content
        case [{"type": "text", "text": str() as text}]:
            return str(text)
        case _:
            return None
