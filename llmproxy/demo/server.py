"""The demo server's HTTP face: vLLM's paths, and some of its own for trying a proxy.

================================  =======================================================================
``GET /demo/stats``               requests, running, aborted, per path, starts
``ANY /echo...``                  method, raw target, headers in order, the body's length and SHA-256
``GET /big?bytes=N[&chunked=1]``  N bytes, with back-pressure
``POST /upload``                  the body's length and SHA-256
``GET /ws...``                    a WebSocket handshake, then raw bytes are echoed
``GET /websocket``                a WebSocket: each message is echoed
``POST /demo/sleep-faults``       see :mod:`llmproxy.demo.faults`
``POST /demo/ail``                see :mod:`llmproxy.demo.ailments`
================================  =======================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NoReturn

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.server import Request as SiteRequest

from llmproxy.demo import completions, faults, messages, responses, shapes, singles
from llmproxy.demo.ailments import Ailments
from llmproxy.demo.control import Control
from llmproxy.demo.extras import Flood, digest, tunnel
from llmproxy.demo.generation import Generation, abort
from llmproxy.demo.memory import Memory
from llmproxy.demo.power import Power
from llmproxy.demo.settings import Settings
from llmproxy.demo.websocket import websocket
from llmproxy.demo.work import Requests, Stats

__all__ = ["DemoRequest", "DemoResource", "Stats", "exhaust_memory", "site"]

# The paths that vLLM guards with its key (facts of vLLM 0.32: everything else is open).
_GUARDED = (b"/v1", b"/v2", b"/inference", b"/cohere")
_EXHAUST_LIMIT = 8 * 1024**3

_Planner = Callable[[Mapping[str, Any], Sequence[str], str, int], shapes.Plan]
_GENERATED: Mapping[bytes, _Planner] = {
    b"/v1/chat/completions": completions.plan_chat,
    b"/v1/completions": completions.plan_text,
    b"/v1/messages": messages.plan_message,
    b"/v1/responses": responses.plan_response,
    b"/v1/embeddings": singles.plan_embeddings,
    b"/v1/rerank": singles.plan_rerank,
    b"/v1/score": singles.plan_score,
}


def exhaust_memory() -> NoReturn:
    """Take memory until the kernel ends the process.  Where nothing limits it, the process ends itself as if
    it had been killed, before the machine suffers."""
    held: list[bytes] = []
    while len(held) * 2**26 < _EXHAUST_LIMIT:
        held.append(b"\x01" * 2**26)  # written to, so that the pages are really there
    os._exit(137)


class DemoRequest(SiteRequest):
    """A request that remembers its headers as they came, in order and spelling, for ``/echo``."""

    received: list[tuple[str, str]]


class _Channel(HTTPChannel):
    """HTTP/1.1 that keeps header lines as they came: Twisted's ``Headers`` groups and respells them."""

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        request = self.requests[-1]
        if not hasattr(request, "received"):
            request.received = []
        request.received.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
        return bool(super().headerReceived(line))


def _flag(request: Request, name: bytes) -> bytes:
    values = request.args.get(name) if request.args else None
    return values[0] if values else b""


def _refuse(request: Request, what: shapes.Plan, status: int, message: str) -> None:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    error = what.form.error(shapes.error(status, "InternalServerError", message))
    request.write(json.dumps(error).encode())
    request.finish()


class DemoResource(Resource):
    """All paths; knows nothing of the process it runs in.

    :param exit: ends the process at once with a status.
    :param exhaust: takes memory until the process is killed.
    :param memory: the server's GPU memory; its own if none is given.
    :param say: takes lines of the engine's log.
    :ivar open: every request that is not over, of whatever kind, and its ``X-Request-ID``.
    """

    isLeaf = True

    def __init__(
        self,
        settings: Settings,
        reactor: IReactorTime,
        *,
        exit: Callable[[int], object] = os._exit,
        exhaust: Callable[[], object] = exhaust_memory,
        starts: int = 1,
        memory: Memory | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        super().__init__()
        self.stats = Stats(starts=starts)
        self.work = Requests(reactor, exit, self.stats)
        self.running = self.work.running
        self.open: dict[Request, str] = {}
        self.ailments = Ailments(reactor)
        memory = memory or Memory.alone(settings.plan)
        armed = faults.Armed.parse(settings.sleep_faults)
        self.power = Power(reactor, settings, self.work, memory, say, armed)
        control = Control(self.power, settings.gpu_count, lambda: self.stats.running, self._body)
        self._reactor = reactor
        self._settings = settings
        self._exit = exit
        self._exhaust = exhaust
        self._numbers = count(1)
        self._created = int(reactor.seconds())
        self._get: dict[bytes, Callable[[Request], object]] = {
            b"/health": self._health,
            b"/ping": self._health,
            b"/version": lambda request: {"version": "0.32.0+demo"},
            b"/load": lambda request: {"server_load": self.stats.running},
            b"/metrics": self._metrics,
            b"/v1/models": lambda request: shapes.models(self._settings.models, self._created),
            b"/demo/stats": self._tell_stats,
            b"/big": self._big,
        }
        self._post: dict[bytes, Callable[[Request], object]] = {
            b"/ping": self._health,
            **{path: partial(self._generate, how) for path, how in _GENERATED.items()},
            b"/v1/audio/transcriptions": self._transcribe,
            b"/v1/messages/count_tokens": self._count_tokens,
            b"/tokenize": self._tokenize,
            b"/upload": digest,
            b"/demo/sleep-faults": control.arm,
            b"/demo/ail": self._ail,
        }
        if settings.dev_mode:
            self._get.update(control.get())
            self._post.update(control.post())

    # Dispatch.

    def render(self, request: Request) -> bytes | int:
        self.stats.requests += 1
        self.stats.paths[request.path.decode("latin-1")] += 1
        self.open[request] = (request.getHeader(b"x-request-id") or b"").decode("latin-1")
        request.notifyFinish().addBoth(lambda _: self.open.pop(request, None))
        request.setHeader(b"server", b"uvicorn")
        try:
            answer = self._dispatch(request)
        except shapes.BadRequest as refused:
            request.setResponseCode(refused.status)
            answer = refused.body
        if isinstance(answer, bytes | int):
            return answer
        request.setHeader(b"content-type", b"application/json")
        return json.dumps(answer).encode()

    def _dispatch(self, request: Request) -> object:
        path, method = request.path, request.method
        if path.startswith(_GUARDED) and method != b"OPTIONS" and not self._allowed(request):
            request.setResponseCode(401)
            return {"error": "Unauthorized"}
        if path == b"/echo" or path.startswith(b"/echo/"):
            return self._echo(request)
        if path == b"/ws" or path.startswith(b"/ws/"):
            return tunnel(request)
        if path == b"/websocket":
            return websocket(request)
        table = {b"GET": self._get, b"POST": self._post}.get(method, {})
        if method == b"HEAD" and path in (b"/metrics", b"/big"):  # vLLM answers 405 to HEAD elsewhere
            table = self._get
        if path in table:
            return table[path](request)
        known = [name for name, paths in ((b"GET", self._get), (b"POST", self._post)) if path in paths]
        if not known:
            request.setResponseCode(404)
            return {"detail": "Not Found"}
        request.setResponseCode(405)
        request.setHeader(b"allow", b", ".join(known))
        return {"detail": "Method Not Allowed"}

    def _allowed(self, request: Request) -> bool:
        key = self._settings.api_key
        if not key:
            return True
        given = request.getHeader(b"authorization") or b""
        scheme, _, secret = given.partition(b" ")
        return scheme.lower() == b"bearer" and secret.strip() == key.encode()

    # The paths.

    def _health(self, request: Request) -> bytes | int:
        mode = self.ailments.health or self._settings.health_mode
        if mode == "hang":
            return NOT_DONE_YET
        if mode == "503" or self.work.dead:
            request.setResponseCode(503)
        return b""

    def _metrics(self, request: Request) -> bytes:
        request.setHeader(b"content-type", b"text/plain; version=1.0.0; charset=utf-8")
        labels = f'engine="0",model_name="{self._settings.models[0]}"'
        state = ("awake", "weights_offloaded", "discard_all")[self.power.level if self.power.away else 0]
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {self.stats.running}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{{{labels}}} 0",
            "# TYPE vllm:engine_sleep_state gauge",
            *(
                f'vllm:engine_sleep_state{{{labels},sleep_state="{name}"}} {int(name == state)}'
                for name in ("awake", "weights_offloaded", "discard_all")
            ),
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def _tell_stats(self, request: Request) -> Mapping[str, object]:
        stats = self.stats
        return {
            "requests": stats.requests,
            "running": stats.running,
            "held": stats.held,
            "finished": stats.finished,
            "aborted": stats.aborted,
            "starts": stats.starts,
            "paths": dict(stats.paths),
            "pid": os.getpid(),
            "models": list(self._settings.models),
        }

    def _ail(self, request: Request) -> Mapping[str, object]:
        body = self._body(request)
        self.ailments.ail(body)
        if body.get("reset"):
            for generation in list(self.running):
                generation.reset()
        return {"running": self.stats.running}

    def _echo(self, request: Request) -> Mapping[str, object]:
        return {
            "method": request.method.decode("latin-1"),
            "target": request.uri.decode("latin-1"),
            "version": request.clientproto.decode("latin-1"),
            "headers": getattr(request, "received", []),
            **digest(request),
        }

    def _big(self, request: Request) -> int:
        try:
            size = int(_flag(request, b"bytes"))
        except ValueError:
            raise shapes.BadRequest(400, "BadRequestError", "bytes=N is needed.", "bytes") from None
        request.setHeader(b"content-type", b"application/octet-stream")
        if not _flag(request, b"chunked"):
            request.setHeader(b"content-length", b"%d" % size)
        if request.method == b"HEAD":
            request.finish()
        else:
            Flood(request, size).start()
        return NOT_DONE_YET

    def _body(self, request: Request) -> dict[str, Any]:
        assert request.content is not None
        kind = request.getHeader(b"content-type") or b"application/json"
        if kind.split(b";")[0].strip().lower() != b"application/json":
            message = "Unsupported Media Type: Only 'application/json' is allowed"
            raise shapes.BadRequest(400, "BadRequestError", message)
        try:
            body = json.loads(request.content.read())
        except ValueError as wrong:  # JSONDecodeError, UnicodeDecodeError
            place = f"body.{getattr(wrong, 'pos', 0)}"
            message = f"1 validation error:\n  {{'type': 'json_invalid', 'loc': '{place}'}}"
            raise shapes.BadRequest(400, "Bad Request", message, place) from None
        if not isinstance(body, dict):
            message = "1 validation error:\n  {'type': 'dict_type', 'loc': 'body'}"
            raise shapes.BadRequest(400, "Bad Request", message, "body")
        return body

    def _tokenize(self, request: Request) -> Mapping[str, object]:
        body = self._body(request)
        found = shapes.tokens(str(body.get("prompt") or body.get("messages") or ""))
        numbers = [int.from_bytes(hashlib.sha256(token.encode()).digest()[:2], "big") for token in found]
        return {"count": len(numbers), "max_model_len": 131072, "tokens": numbers, "token_strs": None}

    def _count_tokens(self, request: Request) -> Mapping[str, object]:
        return messages.count_tokens(self._body(request), self._settings.models)

    def _transcribe(self, request: Request) -> int:
        form = {name.decode("latin-1"): values[0] for name, values in (request.args or {}).items()}
        sound = form.pop("file", None)
        asked = {name: value.decode("utf-8", "replace") for name, value in form.items()}
        return self._begin_later(request, singles.plan_transcript, {**asked, "file": sound})

    def _generate(self, how: _Planner, request: Request) -> int:
        return self._begin_later(request, how, self._body(request))

    def _begin_later(self, request: Request, how: _Planner, body: Mapping[str, Any]) -> int:
        given = request.getHeader(b"x-demo-fault") or str(body.get("demo_fault") or "").encode()
        wrong = faults.parse(given.decode("latin-1"))
        pace = request.getHeader(b"x-demo-token-delay") or body.get("demo_token_delay")
        try:
            pause = self._settings.token_delay if pace is None else float(pace)
        except (TypeError, ValueError):
            raise shapes.BadRequest(
                400, "BadRequestError", "The token delay is no number.", "demo_token_delay"
            ) from None
        asked = request.getHeader(b"x-request-id")
        ident = asked.decode("latin-1") if asked else f"{next(self._numbers):016x}"
        what = how(body, self._settings.models, ident, int(self._reactor.seconds()))

        def begin() -> None:
            if request.channel is not None:
                self._begin(request, what, wrong, pause + self.ailments.pace)

        if wrong.head_delay:
            self._reactor.callLater(wrong.head_delay, begin)
        else:
            self.ailments.begin(begin)
        return NOT_DONE_YET

    def _begin(self, request: Request, what: shapes.Plan, wrong: faults.Faults, pause: float) -> None:
        if wrong.exit_code is not None:
            self._exit(wrong.exit_code)
        elif wrong.at_once == "oom":
            self._exhaust()
        elif wrong.at_once == "die-before-head":
            abort(request)
        elif wrong.status is not None:
            _refuse(request, what, wrong.status, "This fault was asked for.")
        elif self.work.dead:
            _refuse(request, what, 500, shapes.ENGINE_DEAD)
        else:
            asleep = self.power.paused  # what it will say depends on how it wakes
            if self.power.spoilt and not asleep:
                what = shapes.garbled(what)
            generation = Generation(self.work, request, what, wrong, pause)
            self.work.begin(generation, hold=asleep, hang=wrong.at_once == "hang")


def site(resource: DemoResource, keep_alive: float = 5.0) -> Site:
    """The HTTP server factory; idle connections are closed after ``keep_alive`` seconds."""
    factory = Site(resource, requestFactory=DemoRequest, timeout=keep_alive)
    factory.protocol = _Channel  # type: ignore[method-assign,assignment]  # HTTP/1.1 only, with no ALPN
    factory.displayTracebacks = False
    return factory
