"""What becomes of a request whose backend is known: which backend answers it, with what body, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmproxy.errors import Refusal, invalid_request, not_allowed, not_running
from llmproxy.http.monitoring import LARGEST_CHECK, is_health_check
from llmproxy.http.openai import is_inference_path
from llmproxy.http.rewriting import rewritten
from llmproxy.web.auth import may_use
from llmproxy.web.exchange import Exchange
from llmproxy.web.heralds import Heralds
from llmproxy.web.hints import ANY_READY, NO_HINTS
from llmproxy.web.learning import LISTING, ListingExchange

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.config.model import Key
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.web.hints import Hints
    from llmproxy.web.request import ProxyRequest

__all__ = ["Handover"]

RETRY_AFTER = 5.0
"""Seconds after which trying again makes sense when nobody knows how long a start takes."""


class Handover:
    """Sends requests on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._heralds = Heralds()

    def serve(
        self,
        request: ProxyRequest,
        key: Key,
        backend: Backend,
        target: bytes,
        path: str,
        model: str | None = None,
    ) -> None:
        """Have the request answered.

        :param target: path and query for the backend, raw.
        :param path: the same path, decoded as Latin-1.
        :param model: the name by which the backend was asked for; None: by its route.
        :raises llmproxy.errors.Refusal: it is not served.
        """
        hints, spec, probes = request.hints, backend.spec, self._fleet.config.probes
        if (
            hints.probe
            or (probes.paths and _among(path, probes.paths))
            or (probes.health_completions == "refuse" and _checks_health(request, path))
        ):
            self.visit(request, backend, target, self._body(request, backend, path, model))
            return
        if key.limited:
            self._limit(request, key, backend)
        answers, body = backend, None
        if hints is not NO_HINTS or spec.fallback or not key.may_start:
            answers = self._settle(request, key, backend, hints, path)
        if model is not None or answers is not backend or spec.request_defaults or spec.request_overrides:
            body = self._body(request, answers, path, model, stands_in=answers is not backend)
        if spec.rewrite_model and model is not None and body is not None and answers is backend:
            served = self._served(backend, model)
            if served is not None:
                # Few want it.
                from llmproxy.web.renaming import RenamingExchange

                RenamingExchange(request, self._fleet, backend, target, body, hints, served, model).begin()
                return
        kind = ListingExchange if path == LISTING and request.method == b"GET" else Exchange
        kind(request, self._fleet, answers, target, body, hints).begin()

    def visit(
        self, request: ProxyRequest, backend: Backend, target: bytes, body: bytes | None = None
    ) -> None:
        """Have a request answered that only looks: it wakes nothing, and keeps nothing awake.

        :raises llmproxy.errors.Refusal: ``not_running``.
        """
        if not Exchange(request, self._fleet, backend, target, body).visit():
            raise _not_running(backend)

    def _limit(self, request: ProxyRequest, key: Key, backend: Backend) -> None:
        """Count the request against what its key may have.

        :raises llmproxy.errors.Refusal: ``rate_limited``.
        """
        limiter, now = request.site.limiter, request.site.clock.seconds()
        forced = backend.spec.request_overrides.get("stream") is True
        streams = key.streams is not None and (forced or request.asks_for_stream())
        limiter.admit(key, now, streams=streams)
        if streams:
            request.notifyFinish().addBoth(lambda _: limiter.ended(key))
        told = limiter.told(key, now)
        # As OpenAI's own API tells it.
        fields = [
            (b"x-ratelimit-%b-%b" % (what, name.encode()), b"%d" % value)
            for name, values in told.items()
            for what, value in zip((b"limit", b"remaining"), values, strict=True)
        ]
        request.extra = (*request.extra, *fields)

    # -- who answers --------------------------------------------------------------------------------

    def _settle(self, request: ProxyRequest, key: Key, backend: Backend, hints: Hints, path: str) -> Backend:
        """The backend that answers: the one that was asked for if it is ready, or is to be waited for."""
        if hints.fallback is not None:
            self._check_routes(hints.fallback, key)
        # It may be ready already, and has only not been asked for some time.
        backend.hurry()
        if backend.state == "ready":
            return backend
        starts = key.may_start and not hints.no_start
        stand_in = self._stand_in(key, backend, hints) if _infers(request, path) else None
        if stand_in is not None:
            if starts:
                self._heralds.send(backend, key)
            request.extra = (*request.extra, (b"X-LLMProxy-Fallback-For", backend.name.encode("utf-8")))
            return stand_in
        if not key.may_start:
            raise not_allowed(
                f"The key {key.name!r} may not start a backend, and this one is {backend.state}."
            ).about(backend.name, backend.state)
        if hints.no_start:
            raise _not_running(backend)
        if hints.max_wait is not None:
            self._wait_or_refuse(key, backend, hints)
        return backend

    def _check_routes(self, names: tuple[str, ...], key: Key) -> None:
        """Routes that a client names are there, and it may use them."""
        mine = [name for name in self._fleet.backends if may_use(key, name)]
        unknown = [name for name in names if name not in mine and name not in ANY_READY]
        if unknown:
            raise invalid_request(
                f"X-LLMProxy-Fallback names {', '.join(unknown)}, which is not allowed;"
                f" use {', '.join(sorted(mine))}, any-ready or none.",
                param="X-LLMProxy-Fallback",
            )

    def _stand_in(self, key: Key, asked: Backend, hints: Hints) -> Backend | None:
        names = asked.spec.fallback if hints.fallback is None else hints.fallback
        backends = self._fleet.backends
        for name in names:
            if name in backends:
                candidates = [backends[name]]
            elif name in ANY_READY:
                # Of its kind, and none that is not shown to everybody.
                candidates = [
                    one
                    for one in backends.values()
                    if one.spec.engine == asked.spec.engine and not one.spec.hidden
                ]
            else:
                candidates = []
            for one in candidates:
                if one is not asked and one.models and one.roomy and may_use(key, one.name):
                    return one
        return None

    def _wait_or_refuse(self, key: Key, backend: Backend, hints: Hints) -> None:
        """Refuse at once whom the start takes too long, as far as that is known; it begins all the same."""
        refusal = self._heralds.send(backend, key)
        if refusal is not None:
            raise refusal
        wait, eta = hints.longest(None) or 0.0, backend.forecast().eta
        if backend.state != "ready" and (wait == 0 or (eta is not None and eta > wait)):
            told = hints.too_long(None, backend.retry_after(RETRY_AFTER))
            raise told.about(backend.name, backend.state)
        self._heralds.recall(backend)

    # -- with what body -----------------------------------------------------------------------------

    @staticmethod
    def _served(backend: Backend, model: str | None) -> str | None:
        """The engine's own name of the model, where it was asked for by another one: it knows no other."""
        served = backend.models
        return served[0] if model is not None and served and model not in served else None

    def _body(
        self,
        request: ProxyRequest,
        backend: Backend,
        path: str,
        model: str | None,
        *,
        stands_in: bool = False,
    ) -> bytes | None:
        """What the backend gets instead of the client's own body; None: that."""
        spec = backend.spec
        name = backend.models[0] if stands_in else self._served(backend, model)
        if name is None and not spec.request_defaults and not spec.request_overrides:
            return None
        if not _infers(request, path):
            return None
        kind = request.fields.get(b"content-type", b"").decode("latin-1")
        try:
            return rewritten(kind, request.body.whole(), name, spec.request_defaults, spec.request_overrides)
        except Refusal:
            # What else it is, is for the backend to say.
            return None


def _not_running(backend: Backend) -> Refusal:
    """Who only looks is told when it will be ready, if it is on its way."""
    coming = backend.state in ("starting", "waking")
    later = backend.retry_after(RETRY_AFTER) if coming else None
    return not_running(backend.state, later).about(backend.name)


def _infers(request: ProxyRequest, path: str) -> bool:
    return request.method == b"POST" and is_inference_path(path)


def _checks_health(request: ProxyRequest, path: str) -> bool:
    return (
        _infers(request, path)
        and request.body.size <= LARGEST_CHECK
        and is_health_check(request.body.whole())
    )


def _among(path: str, patterns: tuple[str, ...]) -> bool:
    return any(
        path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern for pattern in patterns
    )
