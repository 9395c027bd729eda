"""The resource at ``/api``: which path does what."""

from __future__ import annotations

from llmproxy.backend.backend import Backend
from llmproxy.errors import invalid_request
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.api.answers import need, not_found
from llmproxy.web.api.backends import VERBS, act
from llmproxy.web.api.following import Events, Logs
from llmproxy.web.api.leases import end_lease, show_lease, show_leases, take_lease
from llmproxy.web.api.scheduling import show_advice, show_gpus, show_plan, show_why
from llmproxy.web.api.until import Waiting
from llmproxy.web.api.views import backend_view
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import ProxyResource, answer_json, require_admin

__all__ = ["ApiResource"]


class ApiResource(ProxyResource):
    """The admin API; every path needs an administrator's key."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self._waiting = Waiting(fleet)

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        require_admin(request)
        path = [segment.decode("utf-8", "replace") for segment in request.postpath or ()]
        if path[-1:] == [""]:
            path.pop()
        match path:
            case ["backends", *rest]:
                self._backends(request, rest)
            case ["leases", *rest]:
                self._leases(request, rest)
            case ["events"]:
                need(request, b"GET")
                Events(request, self._fleet).send()
            case ["plan"]:
                need(request, b"GET")
                show_plan(request, self._fleet, self._asked(request))
            case ["gpus"]:
                need(request, b"GET")
                show_gpus(request, self._fleet)
            case ["advice"]:
                need(request, b"GET")
                show_advice(request, self._fleet)
            case _:
                raise _no_such_path()

    def _backends(self, request: ProxyRequest, path: list[str]) -> None:
        fleet, now = self._fleet, request.site.clock.seconds()
        match path:
            case []:
                need(request, b"GET")
                views = [backend_view(fleet, backend, now) for backend in fleet.backends.values()]
                answer_json(request, 200, {"backends": views})
            case [name]:
                need(request, b"GET")
                answer_json(request, 200, backend_view(fleet, self._backend(name), now))
            case [name, "logs"]:
                need(request, b"GET")
                Logs(request, self._backend(name)).send()
            case [name, "why"]:
                need(request, b"GET")
                show_why(request, fleet, self._backend(name))
            case [name, verb] if verb in VERBS:
                need(request, b"POST")
                act(request, fleet, self._waiting, self._backend(name), verb)
            case _:
                raise _no_such_path()

    def _leases(self, request: ProxyRequest, path: list[str]) -> None:
        match path, request.method:
            case [], b"POST":
                take_lease(request, self._fleet, self._waiting)
            case [], _:
                need(request, b"GET", b"POST")
                show_leases(request, self._fleet)
            case [name], b"DELETE":
                end_lease(request, self._fleet, name)
            case [name], _:
                need(request, b"GET", b"DELETE")
                show_lease(request, self._fleet, self._waiting, name)
            case _:
                raise _no_such_path()

    def _backend(self, name: str) -> Backend:
        backend = self._fleet.route(name)
        if backend is None:
            known = ", ".join(sorted(self._fleet.backends)) or "none"
            raise not_found(f"There is no backend {name!r}. Backends: {known}.")
        return backend

    def _asked(self, request: ProxyRequest) -> Backend | None:
        names: list[bytes] = request.args.get(b"backend", [])
        if len(names) > 1:
            raise invalid_request("backend was given more than once.", param="backend")
        return self._backend(names[0].decode("utf-8", "replace")) if names else None


def _no_such_path() -> Exception:
    return not_found("There is no such path under /api.")
