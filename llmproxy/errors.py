"""Every refusal that a client can meet: status, machine-readable code, and a hint that names the fix.

A :class:`Refusal` is raised or passed along wherever a request cannot be served; exactly one place
(:func:`llmproxy.http.dialects.error_body`) renders it.  The codes are section 10 of the contract; ``type``
follows OpenAI's error object so that OpenAI clients map it to their own exception classes.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve, frozen

__all__ = [
    "ConfigError",
    "Refusal",
    "UpgradeFailed",
    "backend_died",
    "backend_start_failed",
    "backend_start_timeout",
    "backend_unavailable",
    "body_too_large",
    "does_not_fit",
    "hold_timeout",
    "invalid_api_key",
    "invalid_request",
    "model_not_found",
    "not_allowed",
    "not_running",
    "queue_full",
    "rate_limited",
    "response_not_placed",
    "route_not_found",
    "runtime_unavailable",
    "shutting_down",
]


class UpgradeFailed(Exception):
    """Why another process has not taken the place of this one, which goes on."""


class ConfigError(Exception):
    """A setting is unknown, ill-typed or contradictory.

    ``str()`` is one line that names where the setting stands, its key and value, and what is allowed.
    """


@frozen
class Refusal(Exception):
    """A request that is answered with an error instead of being served.

    :ivar status: HTTP status code.
    :ivar code: machine-readable code of the contract's section 10.
    :ivar message: one sentence for a person; never holds a secret.
    :ivar kind: OpenAI's ``type`` of the error object.
    :ivar hint: what to do about it.
    :ivar param: the request parameter at fault, if one is.
    :ivar backend: name of the backend concerned.
    :ivar state: state of that backend when the request was refused.
    :ivar retry_after: seconds after which trying again makes sense; rounded up in ``Retry-After``.
    """

    status: int
    code: str
    message: str
    kind: str = "server_error"
    hint: str | None = None
    param: str | None = None
    backend: str | None = None
    state: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def about(self, backend: str, state: str | None = None) -> Refusal:
        """The same refusal, told of one backend in one state."""
        return evolve(self, backend=backend, state=state if state is not None else self.state)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def route_not_found(name: str, routes: Iterable[str]) -> Refusal:
    """404: the first path segment is no route that this key may use."""
    return Refusal(
        404,
        "route_not_found",
        f"There is no route {name!r}. Routes: {_listed('/' + route for route in routes)}.",
        kind="invalid_request_error",
        hint="Use one of the listed routes, or /v1/... with a model's name in the body.",
    )


def response_not_placed(routes: Iterable[str]) -> Refusal:
    """404: a stored response is asked for by its id alone."""
    return Refusal(
        404,
        "route_not_found",
        "The id of a response does not tell which backend has it: ask for it at /<route>/v1/responses/<id>.",
        kind="invalid_request_error",
        hint="X-LLMProxy-Backend of the answer that brought the id names the route."
        f" Routes: {_listed('/' + route for route in routes)}.",
    )


def model_not_found(model: str, models: Iterable[str]) -> Refusal:
    """404: no route serves a model of that name (OpenAI's own code for it)."""
    return Refusal(
        404,
        "model_not_found",
        f"The model {model!r} does not exist. Models: {_listed(models)}.",
        kind="invalid_request_error",
        param="model",
        hint="GET /v1/models lists the models and their routes.",
    )


def invalid_request(message: str, *, param: str | None = None, hint: str | None = None) -> Refusal:
    """400: the request cannot be understood."""
    return Refusal(400, "invalid_request", message, kind="invalid_request_error", param=param, hint=hint)


def body_too_large(limit: int) -> Refusal:
    """413: the body is larger than ``max_body`` (bytes)."""
    return Refusal(
        413,
        "body_too_large",
        f"The request body is larger than {limit} bytes.",
        kind="invalid_request_error",
        hint="Send less, or raise limits.max_body in llmproxy.yaml.",
    )


def invalid_api_key() -> Refusal:
    """401: no key, or one that is not known."""
    return Refusal(
        401,
        "invalid_api_key",
        "A valid API key is required.",
        kind="authentication_error",
        hint="Send 'Authorization: Bearer <key>' with the key from VLLM_API_KEY (see .env).",
    )


def not_allowed(message: str, *, hint: str | None = None) -> Refusal:
    """403: the key is known and may not do this."""
    return Refusal(403, "not_allowed", message, kind="permission_error", hint=hint)


def rate_limited(message: str, retry_after: float, *, hint: str | None = None) -> Refusal:
    """429: there was too much of it.

    :param retry_after: seconds until there is room again.
    """
    return Refusal(
        429,
        "rate_limited",
        message,
        kind="rate_limit_error",
        hint=hint or "Send less, or raise the limit of the key.",
        retry_after=retry_after,
    )


def queue_full(limit: int, retry_after: float) -> Refusal:
    """429: as many requests as ``max_waiting`` are held already."""
    return Refusal(
        429,
        "queue_full",
        f"{limit} requests are waiting for this backend already.",
        kind="rate_limit_error",
        hint="Try again later, or raise max_waiting.",
        retry_after=retry_after,
    )


def hold_timeout(seconds: float, retry_after: float) -> Refusal:
    """504: the request was held for ``max_wait`` seconds and the backend is still not ready."""
    return Refusal(
        504,
        "hold_timeout",
        f"The backend was not ready within the {seconds:g} s that a request is held.",
        hint="Try again: the start goes on. Raise max_wait to hold requests for longer.",
        retry_after=retry_after,
    )


def backend_start_failed(diagnosis: str, *, hint: str | None, retry_after: float) -> Refusal:
    """503: the start failed; ``diagnosis`` has exit code, OOM flag and log tail, secrets removed."""
    return Refusal(503, "backend_start_failed", diagnosis, hint=hint, retry_after=retry_after)


def backend_start_timeout(seconds: float, diagnosis: str, *, retry_after: float) -> Refusal:
    """503: health did not come within ``start_timeout`` seconds."""
    return Refusal(
        503,
        "backend_start_timeout",
        f"The backend was not healthy within {seconds:g} s. {diagnosis}".rstrip(),
        hint="Raise START_TIMEOUT_SECONDS (start_timeout) if the model needs longer to load; check the log.",
        retry_after=retry_after,
    )


def backend_unavailable(message: str) -> Refusal:
    """502: the backend did not answer the request."""
    return Refusal(
        502,
        "backend_unavailable",
        message,
        hint="Try again; the backend is started anew if it has died.",
        retry_after=1,
    )


def backend_died(message: str) -> Refusal:
    """The backend broke its answer off; told to event-stream clients as an error event."""
    return Refusal(
        502, "backend_died", message, hint="Try again; the backend is started anew.", retry_after=1
    )


def does_not_fit(name: str, sums: str, *, retry_after: float | None) -> Refusal:
    """503: there is no room for it however long it waits.

    :param sums: what it needs, what there is, and who has it.
    :param retry_after: seconds until it could fit, where that is known.
    """
    return Refusal(
        503,
        "does_not_fit",
        f"{name!r} does not fit: {sums}.",
        hint="Stop or unpin what is in its way, end a lease (llmproxy release), or lower its gpu_memory.",
        retry_after=retry_after,
    )


def not_running(state: str, retry_after: float | None = None) -> Refusal:
    """503: the backend is not ready, and the request is one that wakes nothing.

    :param retry_after: seconds until it will be, where it is on its way.
    """
    return Refusal(
        503,
        "not_running",
        f"The backend is {state}; this request does not start it.",
        hint="Send a completion request, or POST /api/backends/<name>/start.",
        state=state,
        retry_after=retry_after,
    )


def shutting_down() -> Refusal:
    """503: the proxy itself is about to end."""
    return Refusal(
        503, "shutting_down", "llmproxy is shutting down.", hint="Try again in a few seconds.", retry_after=5
    )


def runtime_unavailable(message: str) -> Refusal:
    """503: what runs the backends (the Docker engine) does not answer."""
    return Refusal(
        503,
        "runtime_unavailable",
        message,
        hint="Check that Docker is running and that DOCKER_HOST or the mounted socket is right.",
        retry_after=5,
    )
