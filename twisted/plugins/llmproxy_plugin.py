"""Makes ``twistd llmproxy`` and ``twistd --reactor=uvloop`` known.  ``twistd --help`` imports this."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

llmproxy = ServiceMaker(
    "llmproxy",
    "llmproxy.tap",
    "A lazy reverse proxy that starts, holds, streams and stops vLLM models.",
    "llmproxy",
)

uvloop = Reactor(
    "uvloop",
    "llmproxy.reactors.uvloop",
    "libuv's event loop, for llmproxy; needs the package uvloop.",
)
