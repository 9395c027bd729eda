"""The resource tree: one lazy resource for each route, and the paths of the proxy's own."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource

from llmproxy.backend.backend import Backend
from llmproxy.config.model import Key
from llmproxy.errors import (
    Refusal,
    invalid_request,
    model_not_found,
    response_not_placed,
    route_not_found,
)
from llmproxy.fleet.fleet import Fleet
from llmproxy.http.multipart import is_form, multipart_model
from llmproxy.http.openai import glance_at, is_inference_path, model_object, requested_model
from llmproxy.http.paths import is_control, is_passive, is_stored
from llmproxy.web.auth import may_use, route_refusal
from llmproxy.web.cors import PreflightResource, is_preflight, speak_of_origin
from llmproxy.web.crosssite import refuse_cross_site
from llmproxy.web.handover import Handover
from llmproxy.web.hints import NO_HINTS, read_hints
from llmproxy.web.ownhost import require_own_host
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import ProxyResource, answer_json

__all__ = ["RootResource"]

LOST = "What it had stored is lost when it stops; while it only sleeps, a completion request wakes it."
"""What to do about a stored response of a backend that is not ready."""


def _client_key(request: ProxyRequest, fleet: Fleet) -> Key:
    """The key of a request to a model; what else the client says of it is put into ``request.hints``.

    :raises llmproxy.errors.Refusal: ``invalid_api_key``, ``not_allowed``, ``invalid_request``.
    """
    authenticator, channel = request.site.authenticator, request.channel
    key: Key
    if channel.known is not None and channel.known[0] is authenticator and channel.known[1] is request.fields:
        # The same fields as in the connection's last request, and nobody has changed the keys since.
        key, hints = channel.known[2:]
        if hints is not NO_HINTS:
            request.hints = hints
        authenticator.require_current(key, request.arrived)
    else:
        key = request.key = authenticator.authenticate(request.fields, request.arrived, channel.client)
        request.hints = read_hints(request.fields, fleet.config.probes)
        channel.known = (authenticator, request.fields, key, request.hints)
    request.key = key
    authenticator.require_client(key)
    return key


class RootResource(Resource):
    """``/``: the proxy's own paths by name, and every other first segment as a route."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self._handover = Handover(fleet)
        self._inference = InferenceResource(fleet, self._handover)
        self._preflight = PreflightResource()
        self._routes: dict[str, BackendResource] = {}
        self.putChild(b"healthz", HealthResource(fleet))
        self.putChild(b"readyz", ReadyResource(fleet))

    def getChild(self, path: bytes, request: Any) -> Resource:
        """The resource for a first path segment."""
        keyed = bool(self._fleet.config.keys)
        if not keyed or path in (b"api", b"ui"):
            require_own_host(request, keyed=keyed)
        if path in (b"api", b"ui"):
            # Neither is for any page of others.
            refuse_cross_site(request.method, request.fields, request.channel.origin.host)
            return self._ui if path == b"ui" else self._api
        origins = self._fleet.config.cors.origins
        if origins:
            speak_of_origin(request, origins)
            if is_preflight(request):
                return self._preflight
        return self._inside(path, request)

    def _inside(self, path: bytes, request: Any) -> Resource:
        if is_inference_path(request.path.decode("latin-1")):
            return self._inference
        if path == b"api":
            return self._api
        if path == b"v1":
            return ModelsResource(self._fleet)
        backend = self._fleet.route(path.decode("utf-8", "replace"))
        return UnknownResource(self._fleet) if backend is None else self._route(backend)

    @cached_property
    def _api(self) -> Resource:
        # Most proxies are never asked; it takes a third of a megabyte.
        from llmproxy.web.api.resource import ApiResource

        return ApiResource(self._fleet)

    @cached_property
    def _ui(self) -> Resource:
        from llmproxy.web.ui.resource import UiResource

        return UiResource(self._inside)

    def _route(self, backend: Backend) -> BackendResource:
        # A route may have another backend after each reading of the configuration.
        resource = self._routes.get(backend.name)
        if resource is None or resource.backend is not backend:
            resource = self._routes[backend.name] = BackendResource(self._fleet, backend, self._handover)
        return resource


class HealthResource(ProxyResource):
    """``/healthz``: the reactor turns, and the scheduler, which lives in it, decides."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def serve(self, request: ProxyRequest) -> None:
        """Say so, and what time it is here: keys expire by it, and the doctor compares it."""
        request.setHeader(b"Date", datetimeToString(request.arrived))
        if self._fleet.scheduler.sound:
            answer_json(request, 200, {"status": "ok"})
        else:
            answer_json(request, 503, {"status": "the scheduler fails; the log says why"})


class ReadyResource(ProxyResource):
    """``/readyz``: the configuration is loaded and what runs the backends answers."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def serve(self, request: ProxyRequest) -> None:
        """Ask the runtimes."""
        if self._fleet.closing:
            answer_json(request, 503, {"status": "shutting down"})
            return

        def failed(failure: Failure) -> None:
            answer_json(request, 503, {"status": "not ready", "reason": str(failure.value)})

        pong: Deferred[None] = self._fleet.ping()
        pong.addTimeout(5, request.site.clock)
        pong.addCallbacks(lambda _: answer_json(request, 200, self._ready()), failed)

    def _ready(self) -> dict[str, Any]:
        """One lost host makes nobody unready, and is told."""
        away = {host.name: host.away for host in self._fleet.hosts() if host.away and host.expected}
        return {"status": "ready", "away": away} if away else {"status": "ready"}


class UnknownResource(ProxyResource):
    """A first segment that is no route."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def serve(self, request: ProxyRequest) -> None:
        """Tell those who have a key which routes there are."""
        key = _client_key(request, self._fleet)
        routes = [name for name in self._fleet.backends if may_use(key, name)]
        raise route_not_found((request.prepath or [b""])[0].decode("utf-8", "replace"), routes)


class BackendResource(ProxyResource):
    """``/<route>/...``: the lazy backend of one route."""

    def __init__(self, fleet: Fleet, backend: Backend, handover: Handover) -> None:
        super().__init__()
        self._fleet = fleet
        self._handover = handover
        self.backend = backend

    def serve(self, request: ProxyRequest) -> None:
        """Pass the request on, waking the backend unless the path only looks."""
        key = _client_key(request, self._fleet)
        backend = self.backend
        if not may_use(key, backend.name):
            raise route_refusal(key, backend.name)
        slash = request.uri.find(b"/", 1)
        query = request.uri.find(b"?")
        if slash < 0 or 0 <= query < slash:
            _redirect_to_slash(request)
            return
        target = request.uri[slash:]
        path = request.path[slash:].decode("latin-1")
        control = backend.spec.engine == "vllm" and is_control(path)
        if control:
            request.site.authenticator.require_admin(key)
        if control or is_passive(path) or (path == "/" and request.method in (b"GET", b"HEAD")):
            self._handover.visit(request, backend, target)
        elif is_stored(request.method, path):
            self._serve_stored(request, key, target, path)
        else:
            self._handover.serve(request, key, backend, target, path)

    def _serve_stored(self, request: ProxyRequest, key: Key, target: bytes, path: str) -> None:
        # No other backend has it, and neither has this one after a start.
        request.hints = evolve(request.hints, no_start=True, fallback=())
        try:
            self._handover.serve(request, key, self.backend, target, path)
        except Refusal as refusal:
            if refusal.code != "not_running":
                raise
            raise evolve(refusal, hint=LOST) from None


def _redirect_to_slash(request: ProxyRequest) -> None:
    path, question, query = request.uri.partition(b"?")
    location = path + b"/" + question + query
    request.answer(308, b"", [(b"Location", location)])


class InferenceResource(ProxyResource):
    """Paths without a route, such as ``/v1/chat/completions``: the ``model`` names the backend."""

    def __init__(self, fleet: Fleet, handover: Handover) -> None:
        super().__init__()
        self._fleet = fleet
        self._handover = handover

    def serve(self, request: ProxyRequest) -> None:
        """Find the backend and pass the request on."""
        key = _client_key(request, self._fleet)
        if request.method == b"OPTIONS":
            request.answer(204, b"", [(b"Allow", b"POST, OPTIONS")])
            return
        if request.method != b"POST":
            refusal = invalid_request("This path takes POST requests.")
            request.setHeader(b"Allow", b"POST, OPTIONS")
            raise Refusal(405, refusal.code, refusal.message, kind=refusal.kind)
        model = _model_of(request)
        backend = self._backend_for(model, key)
        self._handover.serve(request, key, backend, request.uri, request.path.decode("latin-1"), model)

    def _backend_for(self, model: str | None, key: Key) -> Backend:
        if model is None:
            default = self._fleet.config.default_route
            usual = None if default is None else self._fleet.route(default)
            if usual is None or not may_use(key, usual.name):
                raise invalid_request(
                    "The request has no 'model'.", param="model", hint="GET /v1/models lists the models."
                )
            return usual
        backend = self._fleet.serving(model)
        if backend is None or not may_use(key, backend.name):
            known = [
                name
                for one in self._fleet.backends.values()
                if may_use(key, one.name) and not one.spec.hidden
                for name in one.models
            ]
            raise model_not_found(model, known)
        return backend


def _model_of(request: ProxyRequest) -> str | None:
    """The name of the model that a request asks for; None when it has none."""
    content = request.body.whole()
    kind = request.fields.get(b"content-type", b"").decode("latin-1")
    if is_form(kind):
        return multipart_model(kind, content)
    return requested_model(glance_at(content))


class ModelsResource(ProxyResource):
    """``/v1/models``: every model of every route that the key may use; wakes none."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def serve(self, request: ProxyRequest) -> None:
        """List the models, or show one."""
        key = _client_key(request, self._fleet)
        path = [segment.decode("utf-8", "replace") for segment in request.postpath or ()]
        if path[:1] == ["responses"] and path[1:]:
            raise response_not_placed(name for name in self._fleet.backends if may_use(key, name))
        if not path or path[0] != "models":
            raise Refusal(
                404,
                "route_not_found",
                "There is no such path under /v1.",
                kind="invalid_request_error",
                hint="Use /v1/chat/completions, /v1/models, or /<route>/v1/...",
            )
        if request.method not in (b"GET", b"HEAD"):
            raise Refusal(405, "invalid_request", "This path takes GET.", kind="invalid_request_error")
        models = [
            model_object(
                name,
                route=backend.name,
                state=backend.state,
                created=int(backend.since),
                context_length=backend.identity.context_length,
            )
            for backend in self._fleet.backends.values()
            if may_use(key, backend.name) and not backend.spec.hidden
            for name in (*backend.models, *backend.spec.aliases)
        ]
        wanted = "/".join(path[1:])
        if not wanted:
            answer_json(request, 200, {"object": "list", "data": models})
            return
        for model in models:
            if model["id"] == wanted:
                answer_json(request, 200, model)
                return
        raise model_not_found(wanted, [model["id"] for model in models])
