"""``/api/openapi.json``: what the admin API is, for programs (OpenAPI 3.1)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from llmproxy import __version__
from llmproxy.web.api.answers import failed, in_thread
from llmproxy.web.request import ProxyRequest

__all__ = ["read_document", "show_document"]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document() -> dict[str, Any]:
    """The document, with this version in it."""
    text = files("llmproxy.web.api").joinpath("openapi.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.load(text, _Loader)
    document["info"]["version"] = __version__
    return document


@cache
def _rendered() -> bytes:
    return json.dumps(read_document()).encode() + b"\n"


def show_document(request: ProxyRequest) -> None:
    """Answer with it."""

    def answer(rendered: bytes) -> None:
        request.answer(200, rendered, [(b"Content-Type", b"application/json")])

    # Without libyaml it takes a quarter of a second to read.
    in_thread(request, _rendered).addCallback(answer).addErrback(failed, request)
