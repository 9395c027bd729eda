"""What the admin API's paths have in common: how they are asked, and how they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool

from llmproxy.errors import Refusal, invalid_request
from llmproxy.web.request import ProxyRequest

__all__ = ["conflict", "flag", "in_thread", "need", "not_found", "number"]

_T = TypeVar("_T")


def not_found(what: str) -> Refusal:
    """404."""
    return Refusal(404, "route_not_found", what, kind="invalid_request_error")


def conflict(message: str, hint: str | None = None) -> Refusal:
    """409: it cannot be done to a backend that is as it is."""
    return Refusal(409, "invalid_request", message, kind="invalid_request_error", hint=hint)


def need(request: ProxyRequest, *methods: bytes) -> None:
    """Refuse other methods; HEAD is let on where GET is.

    :raises llmproxy.errors.Refusal: 405.
    """
    asked = b"GET" if request.method == b"HEAD" else request.method
    if asked not in methods:
        allowed = [method.decode() for method in methods]
        request.setHeader(b"Allow", ", ".join(allowed).encode())
        raise Refusal(
            405,
            "invalid_request",
            f"This path takes {' and '.join(allowed)}.",
            kind="invalid_request_error",
        )


def flag(request: ProxyRequest, name: bytes) -> bool:
    """Whether ``?name=1`` was said."""
    values: list[bytes] = request.args.get(name, [])
    return bool(values) and values[-1].lower() in (b"1", b"true", b"yes")


def number(request: ProxyRequest, name: bytes, default: int, most: int) -> int:
    """A whole number of the query.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it is none.
    """
    values: list[bytes] = request.args.get(name, [])
    if not values:
        return default
    if not values[-1].isdigit():
        raise invalid_request(f"{name.decode()} must be a whole number.", param=name.decode())
    return min(int(values[-1]), most)


def in_thread(request: ProxyRequest, work: Callable[[], _T]) -> Deferred[_T]:
    """Do what takes long, or may block, in a thread of the reactor; at once where it has none."""
    reactor = request.site.clock
    if IReactorThreads.providedBy(reactor):
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)
    return execute(work)
