"""What the admin API's paths have in common: how they are asked, and how they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from llmproxy.backend.backend import Backend
from llmproxy.errors import Refusal, body_too_large, invalid_request
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.api.until import Waiting
from llmproxy.web.request import ProxyRequest

__all__ = [
    "Ask",
    "conflict",
    "failed",
    "flag",
    "in_thread",
    "need",
    "no_body",
    "not_found",
    "number",
    "only",
    "short_body",
    "text",
]

_T = TypeVar("_T")

LARGEST_BODY = 64 * 1024
"""Bytes of a body: what is asked for here is a handful of fields."""

_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@frozen
class Ask:
    """One request to the admin API.

    :ivar waiting: all who wait for something to become of a backend or a lease.
    :ivar name: what the path names: a backend, or a lease.
    """

    request: ProxyRequest
    fleet: Fleet
    waiting: Waiting
    name: str = ""

    @property
    def backend(self) -> Backend:
        """The one that the path names.

        :raises llmproxy.errors.Refusal: 404.
        """
        return self.find(self.name)

    def find(self, name: str) -> Backend:
        """The backend of that name.

        :raises llmproxy.errors.Refusal: 404.
        """
        backend = self.fleet.route(name)
        if backend is None:
            known = ", ".join(sorted(self.fleet.backends)) or "none"
            raise not_found(f"There is no backend {name!r}. Backends: {known}.")
        return backend


def not_found(what: str, hint: str | None = None) -> Refusal:
    """404."""
    return Refusal(404, "route_not_found", what, kind="invalid_request_error", hint=hint)


def conflict(message: str, hint: str | None = None) -> Refusal:
    """409: it cannot be done to a backend that is as it is."""
    return Refusal(409, "invalid_request", message, kind="invalid_request_error", hint=hint)


def need(request: ProxyRequest, methods: Sequence[str]) -> str:
    """The one of these that the request has; GET for HEAD.

    :raises llmproxy.errors.Refusal: 405.
    """
    asked = request.method.decode("latin-1")
    if asked == "HEAD" and "GET" in methods:
        return "GET"
    if asked not in methods:
        allowed = [one for method in methods for one in ((method, "HEAD") if method == "GET" else (method,))]
        request.setHeader(b"Allow", ", ".join(allowed).encode())
        raise Refusal(
            405,
            "invalid_request",
            f"This path takes {' and '.join(methods)}.",
            kind="invalid_request_error",
        )
    return asked


# -- what is said in the query ----------------------------------------------------------------------


def only(request: ProxyRequest, known: Sequence[str]) -> None:
    """Refuse what the path does not know, and what is said twice: it would be silently ignored.

    :raises llmproxy.errors.Refusal: ``invalid_request``.
    """
    seen: set[str] = set()
    for name, _ in _query(request):
        if name not in known:
            listed = f"use {', '.join(known)}" if known else "this path takes none"
            raise invalid_request(f"The parameter {name!r} is not known here: {listed}.", param=name)
        if name in seen:
            raise invalid_request(f"{name} was given more than once.", param=name)
        seen.add(name)


def text(request: ProxyRequest, name: bytes) -> str | None:
    """What the query says of that; None: nothing."""
    return next((value for key, value in _query(request) if key == name.decode()), None)


def flag(request: ProxyRequest, name: bytes, default: bool = False) -> bool:
    """Whether ``?name=1`` was said.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it is neither yes nor no.
    """
    said = text(request, name)
    if said is None:
        return default
    meant = _FLAGS.get(said.lower())
    if meant is None:
        raise invalid_request(f"{name.decode()} is {said!r}; use 1 or 0.", param=name.decode())
    return meant


def number(request: ProxyRequest, name: bytes, default: int, most: int) -> int:
    """A whole number of the query.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it is none, or above ``most``.
    """
    said = text(request, name)
    if said is None:
        return default
    # Python reads other digits as well, and refuses to read thousands of them.
    if not (said.isascii() and said.isdigit() and len(said) < 20 and int(said) <= most):
        told = f"{name.decode()} must be a whole number from 0 to {most}."
        raise invalid_request(told, param=name.decode())
    return int(said)


def _query(request: ProxyRequest) -> list[tuple[str, str]]:
    # Twisted Web drops ``?wait``, and splits at semicolons.
    said = request.uri.partition(b"?")[2].decode("utf-8", "replace")
    return parse_qsl(said, keep_blank_values=True, errors="replace")


# -- bodies -----------------------------------------------------------------------------------------


def short_body(request: ProxyRequest) -> bytes:
    """The body of a request.

    :raises llmproxy.errors.Refusal: ``body_too_large``.
    """
    if request.body.size > LARGEST_BODY:
        raise evolve(body_too_large(LARGEST_BODY), hint=None)
    return request.body.whole()


def no_body(request: ProxyRequest, query: Sequence[str]) -> None:
    """Refuse a body where none is read: whoever sends one believes that it counts.

    :param query: the parameters that the path takes instead.
    :raises llmproxy.errors.Refusal: ``invalid_request``.
    """
    # Some clients send an empty object with every POST.  A long body may be in a file, and is not looked at.
    if request.body.size and (request.body.size > 16 or request.body.whole().strip() not in (b"", b"{}")):
        instead = f"What it takes stands in the query: {', '.join(query)}." if query else None
        raise invalid_request("This path takes no body.", hint=instead)


# -- answers ----------------------------------------------------------------------------------------


def in_thread(request: ProxyRequest, work: Callable[[], _T]) -> Deferred[_T]:
    """Do what takes long, or may block, in a thread of the reactor; at once where it has none."""
    reactor = request.site.clock
    if IReactorThreads.providedBy(reactor):
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)
    return execute(work)


def failed(failure: Failure, request: ProxyRequest) -> None:
    """The errback of what was done in a thread: answer with an error."""
    request.processingFailed(failure)
