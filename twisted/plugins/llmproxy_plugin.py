"""Makes ``twistd llmproxy`` known."""

from twisted.application.service import ServiceMaker

llmproxy = ServiceMaker(
    "llmproxy",
    "llmproxy.tap",
    "A lazy reverse proxy that starts, holds, streams and stops vLLM models.",
    "llmproxy",
)
