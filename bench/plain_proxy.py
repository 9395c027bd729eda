"""The obvious proxy of Twisted Web and treq: ``python -m bench.plain_proxy PORT BACKEND_PORT``.

Nothing of llmproxy is in it.  It is what the documentation of both leads to: a leaf resource, a treq client
over a pool that keeps connections, and an unbuffered answer whose pieces go to ``Request.write``.  As such it
has no back-pressure, and does not close the upstream request when the client leaves.
"""

from __future__ import annotations

import sys
from typing import Any

import treq
from treq.client import HTTPClient
from twisted.internet import reactor as installed
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from bench import loops

__all__ = ["main"]

_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))
# treq and Twisted Web set these themselves.
_OF_REQUEST = _HOP_BY_HOP | {b"host", b"content-length"}


def _passed_on(headers: Headers, without: frozenset[bytes]) -> Headers:
    every = headers.getAllRawHeaders()
    return Headers({name: values for name, values in every if values and name.lower() not in without})


class _Forward(Resource):
    isLeaf = True

    def __init__(self, reactor: Any, backend: int) -> None:
        super().__init__()
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = 1024
        self._client = HTTPClient(Agent(reactor, pool=pool))
        self._base = f"http://127.0.0.1:{backend}"

    def render(self, request: Request) -> int:
        asked = self._client.request(
            request.method.decode("ascii"),
            self._base + request.uri.decode("ascii"),
            headers=_passed_on(request.requestHeaders, _OF_REQUEST),
            data=FileBodyProducer(request.content) if request.method == b"POST" else None,
            allow_redirects=False,
            unbuffered=True,
        )
        asked.addCallback(self._relay, request)
        asked.addCallbacks(lambda _: request.finish(), self._failed, errbackArgs=(request,))
        asked.addErrback(lambda _: None)
        return NOT_DONE_YET

    def _relay(self, response: Any, request: Request) -> Any:
        request.setResponseCode(response.code)
        for name, values in _passed_on(response.headers, _HOP_BY_HOP).getAllRawHeaders():
            request.responseHeaders.setRawHeaders(name, values)
        if response.length is not UNKNOWN_LENGTH:
            # Twisted's client takes it out of the headers.
            request.setHeader(b"content-length", b"%d" % response.length)
        return treq.collect(response, request.write)

    def _failed(self, failure: Failure, request: Request) -> None:
        if not request.startedWriting:
            request.setResponseCode(502)
        request.finish()


def main(port: int, backend: int) -> None:
    """Serve until TERM."""
    reactor: Any = installed
    site = Site(_Forward(reactor, backend))
    # twist's own log line for each request would be work that llmproxy alone is to be measured with.
    site.log = lambda request: None  # type: ignore[method-assign]
    reactor.listenTCP(port, site, backlog=4096, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    loops.raise_open_files()
    main(int(sys.argv[1]), int(sys.argv[2]))
