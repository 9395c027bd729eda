"""What an answer has to be, byte for byte.  Pure.

The demo server's answers follow from the request and its ``X-Request-ID``, but for the second in which they
were made: that is taken from the answer, and has to be the same throughout.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from attrs import frozen

from llmproxy.demo import completions, shapes

__all__ = ["Asked", "big", "chat", "echo", "fixed", "upload"]

Bodies = Callable[[bytes], tuple[bytes, bool]]
"""From what has come: what the whole body is, and whether what has come is a part of it as far as it goes."""

_CREATED = re.compile(rb'"created": ?(\d+),')


@frozen
class Asked:
    """A request and what its answer has to be.

    :ivar ident: its ``X-Request-ID``.
    :ivar stream: an event stream is asked for.
    :ivar fault: what the server was asked to do wrong in it.
    :ivar body: see ``Bodies``.
    """

    ident: str
    kind: str
    route: str
    body: Bodies
    stream: bool = False
    fault: str = ""
    method: str = "POST"
    passive: bool = False


def _prefix(whole: bytes, came: bytes) -> tuple[bytes, bool]:
    return whole, whole.startswith(came)


def chat(body: dict[str, Any], ident: str, *, text: bool = False) -> Bodies:
    """A chat completion, or a text completion."""

    def bodies(came: bytes) -> tuple[bytes, bool]:
        made = _CREATED.search(came)
        if made is None:  # not that far yet, or something else
            opening = (b"data: {", b"{")[not body.get("stream")]
            return b"\0", came.startswith(opening[: len(came)])
        plan_of = completions.plan_text if text else completions.plan_chat
        plan = plan_of(body, [body["model"]], ident, int(made[1]))
        if body.get("stream"):
            return _prefix(b"".join(plan.form.events(plan)), came)
        return _prefix(json.dumps(plan.form.answer(plan)).encode(), came)

    return bodies


def big(size: int) -> Bodies:
    """``/big``."""
    block = bytes(range(256)) * 256

    def bodies(came: bytes) -> tuple[bytes, bool]:
        return _prefix((block * (size // len(block) + 1))[:size], came)

    return bodies


def upload(data: bytes) -> Bodies:
    """``/upload``."""
    return fixed(json.dumps({"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}).encode())


def fixed(whole: bytes) -> Bodies:
    """These bytes."""
    return lambda came: _prefix(whole, came)


def echo(method: str, target: str, data: bytes = b"") -> Bodies:
    """``/echo``: all but the headers, to which a proxy adds its own."""

    def bodies(came: bytes) -> tuple[bytes, bool]:
        try:
            told = json.loads(came)
        except ValueError:
            return b"\0", came.startswith(b"{"[: len(came)])
        wanted = (method, target, len(data), hashlib.sha256(data).hexdigest())
        right = (told.get("method"), told.get("target"), told.get("length"), told.get("sha256")) == wanted
        return came, right

    return bodies


DIED = shapes.event(shapes.engine_error()) + shapes.DONE
"""How the engine itself breaks a stream off."""
