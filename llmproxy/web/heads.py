"""What an exchange says in heads: that of the request, and lines of its own in that of the answer.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmproxy.http import headers

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.relay.upstream import ResponseHead
    from llmproxy.runtimes.interface import Address
    from llmproxy.web.request import ProxyRequest

__all__ = ["own_lines", "request_head"]


def request_head(
    request: ProxyRequest,
    backend: Backend,
    address: Address,
    target: bytes,
    *,
    length: int | None,
    upgrade: bytes | None,
) -> bytes:
    """The head of the request as the backend gets it.

    :param target: path and query for the backend, raw.
    :param length: bytes of the body; None: it has none.
    :param upgrade: the protocol that the connection shall switch to.
    """
    if backend.hands_on is not None:
        return backend.hands_on.head(request, target, length, upgrade)
    spec, origin, tracer = backend.spec, request.channel.origin, request.site.tracer
    host = headers.authority(address.host, address.port, 443 if address.tls else 80)
    return headers.request_head(
        request.method,
        address.prefix.encode("ascii") + target,
        request.fields if tracer is None else tracer.handed(request),
        client=origin.forwarded_for,
        scheme=b"https" if origin.secure else b"http",
        asked=origin.host,
        request_id=request.request_id,
        length=length,
        # Servers elsewhere choose by name; one of our own is known by its address alone.
        host=host if spec.runtime == "url" or request.fields.get(b"host") is None else None,
        authorization=backend.authorization,
        passthrough=spec.auth == "passthrough",
        upgrade=upgrade,
    )


def own_lines(request: ProxyRequest, backend: Backend, head: ResponseHead | None, held: float) -> bytes:
    """The proxy's own lines in the head of the answer.

    :param head: of the backend's answer, where it has come.
    :param held: seconds that the request was held.
    """
    if backend.hands_on is not None and head is not None:
        return backend.hands_on.lines(head.fields)
    own = b"X-LLMProxy-Backend: %b\r\nX-LLMProxy-Cold-Start: %.3f\r\nX-Request-ID: %b\r\n" % (
        backend.name.encode("utf-8"),
        held,
        request.request_id,
    )
    extra = request.extra
    return own + b"".join(b"%b: %b\r\n" % field for field in extra) if extra else own
