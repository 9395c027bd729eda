"""What the admin API can do: a line for each method of each path.

``openapi.yaml`` describes the same to its users; ``tests/unit/test_openapi.py`` holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from attrs import frozen

from llmproxy.web.api.answers import Ask, text
from llmproxy.web.api.backends import VERBS, act
from llmproxy.web.api.document import show_document
from llmproxy.web.api.following import Events, Logs
from llmproxy.web.api.keys import add_key, revoke_key, rotate_key, show_keys
from llmproxy.web.api.leases import end_lease, show_lease, show_leases, take_lease
from llmproxy.web.api.prometheus import show_targets
from llmproxy.web.api.requests import rates, show_requests, show_usage
from llmproxy.web.api.scheduling import show_advice, show_gpus, show_hosts, show_plan, show_why
from llmproxy.web.api.upgrade import upgrade
from llmproxy.web.api.views import backend_view
from llmproxy.web.resource import answer_json

__all__ = ["OPERATIONS", "Operation"]


@frozen
class Operation:
    """One method of one path.

    :ivar path: below ``/api``; a segment in braces stands for any name.
    :ivar answer: answers a request, now or later.
    :ivar query: the parameters that it takes there.
    :ivar body: it reads a body.
    """

    method: str
    path: str
    answer: Callable[[Ask], None]
    query: tuple[str, ...] = ()
    body: bool = False

    def match(self, path: Sequence[str]) -> str | None:
        """Whether that is its path, in segments: what stands for the name there, empty when none does."""
        wanted = self.path[1:].split("/")
        if len(wanted) != len(path):
            return None
        name = ""
        for one, given in zip(wanted, path, strict=True):
            if one.startswith("{"):
                name = given
            elif one != given:
                return None
        return name


def _show_backends(ask: Ask) -> None:
    now = ask.request.site.clock.seconds()
    speeds = rates(ask)
    views = [
        {**backend_view(ask.fleet, backend, now), "tokens_per_second": speeds.get(backend.name, 0.0)}
        for backend in ask.fleet.backends.values()
    ]
    answer_json(ask.request, 200, {"backends": views})


def _show_backend(ask: Ask) -> None:
    now = ask.request.site.clock.seconds()
    view = backend_view(ask.fleet, ask.backend, now)
    answer_json(ask.request, 200, {**view, "tokens_per_second": rates(ask).get(ask.backend.name, 0.0)})


def _act(verb: str, ask: Ask) -> None:
    act(ask.request, ask.fleet, ask.waiting, ask.backend, verb)


def _show_plan(ask: Ask) -> None:
    name = text(ask.request, b"backend")
    show_plan(ask.request, ask.fleet, None if name is None else ask.find(name))


OPERATIONS = (
    Operation("GET", "/backends", _show_backends),
    Operation("GET", "/backends/{backend}", _show_backend),
    *(
        Operation("POST", f"/backends/{{backend}}/{verb}", partial(_act, verb), query)
        for verb, query in VERBS.items()
    ),
    Operation("GET", "/backends/{backend}/why", lambda ask: show_why(ask.request, ask.fleet, ask.backend)),
    Operation(
        "GET",
        "/backends/{backend}/logs",
        lambda ask: Logs(ask.request, ask.backend).send(),
        ("tail", "follow"),
    ),
    Operation(
        "GET",
        "/events",
        lambda ask: Events(ask.request, ask.fleet).send(),
        ("backend", "tail", "follow"),
    ),
    Operation("GET", "/plan", _show_plan, ("backend",)),
    Operation("GET", "/gpus", lambda ask: show_gpus(ask.request, ask.fleet)),
    Operation("GET", "/hosts", lambda ask: show_hosts(ask.request, ask.fleet)),
    Operation("GET", "/advice", lambda ask: show_advice(ask.request, ask.fleet)),
    Operation("GET", "/leases", lambda ask: show_leases(ask.request, ask.fleet)),
    Operation(
        "POST", "/leases", lambda ask: take_lease(ask.request, ask.fleet, ask.waiting), ("wait",), body=True
    ),
    Operation(
        "GET",
        "/leases/{lease}",
        lambda ask: show_lease(ask.request, ask.fleet, ask.waiting, ask.name),
        ("wait",),
    ),
    Operation("DELETE", "/leases/{lease}", lambda ask: end_lease(ask.request, ask.fleet, ask.name)),
    Operation("GET", "/prometheus", show_targets, ("direct",)),
    Operation("GET", "/requests", show_requests, ("limit", "before", "backend", "key", "outcome")),
    Operation("GET", "/usage", show_usage, ("by", "since", "until", "format")),
    Operation("GET", "/keys", show_keys),
    Operation("POST", "/keys", add_key, body=True),
    Operation("POST", "/keys/{key}/rotate", rotate_key, ("overlap",)),
    Operation("DELETE", "/keys/{key}", revoke_key),
    Operation("POST", "/upgrade", upgrade),
    Operation("GET", "/openapi.json", lambda ask: show_document(ask.request)),
)
"""All of them, in the order in which their users meet them."""
