"""``/api/prometheus``: where Prometheus finds the backends' own metrics (its HTTP service discovery).

Backends come and go, and listen where only the proxy reaches them.  So what is told are paths of the proxy,
at the address by which Prometheus has just reached it: that one is right whatever names, ports and other
proxies there are in between.  A scrape of a path that only looks wakes nothing and keeps nothing awake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llmproxy.backend.backend import Backend
from llmproxy.errors import invalid_request
from llmproxy.http.headers import authority
from llmproxy.runtimes.interface import Address
from llmproxy.web.api.answers import Ask, flag
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json

__all__ = ["show_targets"]

_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
"""A name or an address, and a port (RFC 3986 section 3.2)."""

_PORTS = {"http": 80, "https": 443}


def show_targets(ask: Ask) -> None:
    """All backends that are ready, a group for each; with ``?direct=1`` at their own addresses.

    :raises llmproxy.errors.Refusal: ``invalid_request``: it cannot be said where the proxy is.
    """
    request = ask.request
    ready = [one for one in ask.fleet.backends.values() if one.state == "ready" and one.address is not None]
    if flag(request, b"direct"):
        groups = [group for one in ready for group in _groups(one)]
    else:
        scheme = "https" if request.channel.origin.secure else "http"
        target = _reached_at(request, scheme)
        groups = [_group(one, target, scheme, f"/{one.name}/metrics") for one in ready]
    # The list is the whole document, and an empty one is right when there are no targets.
    answer_json(request, 200, groups)


def _groups(backend: Backend) -> Iterator[dict[str, Any]]:
    """At its own address, or at that of each of its tasks that is healthy."""
    known = backend.replication
    if known is None:
        assert backend.address is not None, "it is ready"
        yield _group(backend, *_direct(backend.address))
        return
    for task in known.tasks:
        if task.state in ("ready", "resting"):
            group = _group(backend, *_direct(task.address))
            group["labels"] |= {"task": task.id, "node": task.node}
            yield group


def _group(backend: Backend, target: str, scheme: str, path: str) -> dict[str, Any]:
    return {
        "targets": [target],
        "labels": {
            "__scheme__": scheme,
            "__metrics_path__": path,
            # To choose by; Prometheus drops them after relabelling.
            "__meta_llmproxy_engine": backend.spec.engine,
            "__meta_llmproxy_runtime": backend.spec.runtime,
            "backend": backend.name,
            "route": backend.name,
            "model": backend.models[0] if backend.models else "",
        },
    }


def _direct(address: Address) -> tuple[str, str, str]:
    scheme = "https" if address.tls else "http"
    return authority(address.host, address.port, 0).decode(), scheme, f"{address.prefix}/metrics"


def _reached_at(request: ProxyRequest, scheme: str) -> str:
    """``host:port`` by which whoever asks has reached the proxy, or the trusted proxy in front of it."""
    told = request.channel.origin.host
    said = (request.fields.get(b"host", b"") if told is None else told).decode("latin-1").strip()
    if not said:
        # HTTP/1.0 may leave it away; then it is the address that the connection came to.
        here = request.getHost()
        host, port = getattr(here, "host", None), getattr(here, "port", None)
        said = "" if host is None or port is None else authority(host, port, 0).decode()
    found = _AUTHORITY.fullmatch(said)
    if found is None:
        raise invalid_request(
            "Where llmproxy is reached cannot be told from this request's Host.",
            hint="Ask by http://<host>:<port>/api/prometheus.",
        )
    return f"{found['host']}:{found['port'] or _PORTS[scheme]}"
