"""The paths of vLLM's sleep mode, there with ``VLLM_SERVER_DEV_MODE=1`` only, and then without a key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET

from llmproxy.demo.faults import Armed
from llmproxy.demo.power import EngineDead, Power
from llmproxy.demo.shapes import BadRequest, engine_error

__all__ = ["Control"]

_MODES = ("abort", "wait", "keep")
_Handler = Callable[[Request], object]


def _texts(request: Request, name: bytes) -> list[str]:
    return [value.decode("latin-1") for value in (request.args or {}).get(name, [])]


def _one(request: Request, name: bytes, default: str) -> str:
    return (_texts(request, name) or [default])[-1]


def _answer_later(request: Request, coming: Deferred[Any], shape: Callable[[Any], object]) -> int:
    """Answer when the engine has; a client that has left by then changes nothing of what it asked for."""
    left: list[Failure] = []
    request.notifyFinish().addErrback(left.append)

    def send(status: int, what: object) -> None:
        if not left:
            request.setResponseCode(status)
            request.setHeader(b"content-type", b"application/json")
            request.write(json.dumps(what).encode())
            request.finish()

    def failed(why: Failure) -> None:
        why.trap(EngineDead)
        send(500, engine_error())

    coming.addCallbacks(lambda found: send(200, shape(found)), failed)
    return NOT_DONE_YET


@define
class Control:
    """Handlers by path.

    :param gpus: the number of workers that answer a remote call.
    :param running: tells the number of running requests.
    :param body: reads the request's JSON object.
    """

    _power: Power
    _gpus: int
    _running: Callable[[], int]
    _body: Callable[[Request], Mapping[str, Any]]

    def get(self) -> dict[bytes, _Handler]:
        return {b"/is_sleeping": self._is_sleeping}

    def post(self) -> dict[bytes, _Handler]:
        return {
            b"/sleep": self._sleep,
            b"/wake_up": self._wake_up,
            b"/collective_rpc": self._collective_rpc,
            b"/reset_prefix_cache": self._reset_prefix_cache,
        }

    def arm(self, request: Request) -> object:
        """``POST /demo/sleep-faults``: there in any mode."""
        assert request.content is not None
        self._power.armed = Armed.parse(request.content.read().decode("latin-1"))
        return {"armed": True}

    def _is_sleeping(self, request: Request) -> object:
        return _answer_later(request, self._power.is_sleeping(), lambda found: {"is_sleeping": found})

    def _sleep(self, request: Request) -> object:
        level, mode = _one(request, b"level", "1"), _one(request, b"mode", "abort")
        if level not in ("0", "1", "2"):
            message = f"Invalid sleep level {level!r}. Must be 0, 1 or 2."
            raise BadRequest(400, "BadRequestError", message, "level")
        if mode not in _MODES:
            message = f"Invalid mode {mode!r}. Must be one of {', '.join(_MODES)}."
            raise BadRequest(400, "BadRequestError", message, "mode")
        coming = self._power.sleep(int(level), mode)
        return _answer_later(request, coming, lambda _: {"status": "sleeping", "level": int(level)})

    def _wake_up(self, request: Request) -> object:
        tags = _texts(request, b"tags") or None
        return _answer_later(
            request,
            self._power.wake(tags),
            lambda awake: {"status": "awake" if awake else "sleeping", "tags": tags},
        )

    def _collective_rpc(self, request: Request) -> object:
        method = self._body(request).get("method")
        if not method:
            raise BadRequest(400, "BadRequestError", "Missing 'method' in request body", "method")
        if method != "reload_weights":
            request.setResponseCode(500)
            return engine_error()
        try:
            self._power.reload_weights()
        except EngineDead:
            request.setResponseCode(500)
            return engine_error()
        return {"results": [None] * self._gpus}

    def _reset_prefix_cache(self, request: Request) -> object:
        anyway = _one(request, b"reset_running_requests", "false").lower() in ("1", "true", "yes", "on")
        return {"success": anyway or not self._running()}
