"""Cross-origin requests: what browsers are told of who may read an answer (Fetch standard, section 3.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llmproxy.errors import not_allowed
from llmproxy.web.resource import ProxyResource

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest

__all__ = ["PreflightResource", "is_preflight", "speak_of_origin"]

_EXPOSED = b"X-Request-ID, X-LLMProxy-Backend, X-LLMProxy-Cold-Start, X-LLMProxy-Fallback-For, Retry-After"

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

_HEADERS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+){0,99}")

MAX_AGE = b"600"
"""Seconds that a browser remembers the answer: a page that is not allowed any more is soon kept out."""


def speak_of_origin(request: ProxyRequest, origins: tuple[str, ...]) -> None:
    """Have the answer say whether the page that asks may read it, in the backend's place.

    :param origins: those that may.
    """
    request.cors = True
    origin = request.fields.get(b"origin", b"")
    everyone = "*" in origins
    if everyone:
        fields: tuple[tuple[bytes, bytes], ...] = ((b"Access-Control-Allow-Origin", b"*"),)
    elif origin.lower().decode("latin-1") in origins:
        fields = ((b"Access-Control-Allow-Origin", origin), (b"Vary", b"Origin"))
    else:
        request.extra = ((b"Vary", b"Origin"),)
        return
    request.extra = (*fields, (b"Access-Control-Expose-Headers", _EXPOSED))


def is_preflight(request: ProxyRequest) -> bool:
    """A browser asks whether it may ask."""
    fields = request.fields
    return request.method == b"OPTIONS" and b"origin" in fields and b"access-control-request-method" in fields


class PreflightResource(ProxyResource):
    """Answers that without a key, which browsers do not send along, and without a backend."""

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        if not any(name == b"Access-Control-Allow-Origin" for name, _ in request.extra):
            origin = request.fields[b"origin"][:200].decode("latin-1")
            raise not_allowed(
                f"Pages from {origin} may not use this proxy.",
                hint="Add the origin to cors.origins in llmproxy.yaml.",
            )
        answer = [(b"Access-Control-Allow-Methods", _METHODS), (b"Access-Control-Max-Age", MAX_AGE)]
        asked = request.fields.get(b"access-control-request-headers", b"").strip()
        if _HEADERS.fullmatch(asked):
            # ``*`` would leave out Authorization.
            answer.append((b"Access-Control-Allow-Headers", asked))
        request.answer(204, b"", answer)
