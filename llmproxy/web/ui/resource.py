"""The resource at ``/ui``: pages, their files, who is signed in, and the APIs under the session's cookie."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.web.http import datetimeToString
from twisted.web.resource import Resource

from llmproxy import __version__
from llmproxy.config.model import Key
from llmproxy.errors import Refusal, invalid_request
from llmproxy.http.headers import Fields
from llmproxy.http.openai import parse_body
from llmproxy.web.api.answers import need, not_found, short_body
from llmproxy.web.crosssite import SAFE
from llmproxy.web.resource import ProxyResource, answer_json
from llmproxy.web.ui import cookies
from llmproxy.web.ui.files import Files, page
from llmproxy.web.ui.sessions import Session, Sessions

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest

__all__ = ["HEADERS", "UiResource"]

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    b" base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    # A text that is put into a page cannot become markup there, not even by a mistake of the page's own.
    b" require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = (
    (b"Content-Security-Policy", _POLICY),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Permissions-Policy", b"camera=(), geolocation=(), microphone=()"),
)
"""On every answer under ``/ui``, whoever made it."""

_HTML = b"text/html; charset=utf-8"
_TITLES = {"": "Overview", "requests": "Requests", "usage": "Usage", "playground": "Playground"}
_BYTES_OF_AN_ID = 32


class UiResource(ProxyResource):
    """The dashboard.

    :param inner: the resource for a first path segment outside of ``/ui``.
    """

    def __init__(self, inner: Callable[[bytes, ProxyRequest], Resource]) -> None:
        super().__init__()
        self._inner = inner
        self._files = Files()
        self._sessions = Sessions(lambda: secrets.token_urlsafe(_BYTES_OF_AN_ID))

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        # With the time, so that a page can count from the proxy's and not from its own.
        request.extra = (*HEADERS, (b"Date", datetimeToString(request.arrived)))
        path = [segment.decode("utf-8", "replace") for segment in request.postpath or ()]
        match path:
            case []:
                need(request, ["GET"])
                request.answer(308, b"", [(b"Location", b"/ui/")])
            case ["static", name]:
                need(request, ["GET"])
                self._send_file(request, name)
            case ["session"]:
                need(request, ["POST", "DELETE"])
                self._session(request)
            case ["api" | "v1" as first, *_] if request.path.startswith(b"/ui/%b/" % first.encode("ascii")):
                self._pass_inside(request)
            case [name] if name in _TITLES:
                self._page(request, name or "overview", _TITLES[name], name or "overview")
            case ["backends", name] if name:
                self._page(request, "backend", name, "overview")
            case _:
                raise not_found("There is no such page.")

    # -- files and pages ----------------------------------------------------------------------------

    def _send_file(self, request: ProxyRequest, name: str) -> None:
        file = self._files.get(name)
        if file is None:
            raise not_found("There is no such file.")
        # Asked for anew each time, so that a page never has the scripts of another version.
        headers = [(b"ETag", file.etag), (b"Cache-Control", b"no-cache")]
        asked = b",".join(request.fields.all(b"if-none-match"))
        if file.etag in (tag.strip().removeprefix(b"W/") for tag in asked.split(b",")):
            request.answer(304, b"", headers)
        else:
            request.answer(200, file.data, [(b"Content-Type", file.kind), *headers])

    def _page(self, request: ProxyRequest, name: str, title: str, current: str) -> None:
        need(request, ["GET"])
        try:
            key, session = self._who(request)
        except Refusal as refusal:
            if refusal.status != 401:
                raise
            self._ask_to_sign_in(request)
            return
        body = page(
            name,
            title=title,
            version=__version__,
            who=key.name if session is not None else "",
            current=current,
            signs_out=session is not None,
        )
        request.answer(200, body, [(b"Content-Type", _HTML), (b"Cache-Control", b"no-store")])

    @staticmethod
    def _ask_to_sign_in(request: ProxyRequest) -> None:
        body = page("signin", title="Sign in", version=__version__)
        headers = [
            (b"WWW-Authenticate", b"Bearer"),
            (b"Content-Type", _HTML),
            (b"Cache-Control", b"no-store"),
        ]
        if request.entry is not None:
            request.entry.outcome = "refused"
        request.answer(401, body, headers)

    # -- who is signed in ---------------------------------------------------------------------------

    def _who(self, request: ProxyRequest) -> tuple[Key, Session | None]:
        """The key of a request, and its session where it has no key of its own.

        :raises llmproxy.errors.Refusal: ``invalid_api_key``, ``not_allowed``.
        """
        authenticator, session = request.site.authenticator, None
        fields, token = request.fields, cookies.read(request.fields)
        if not _has_key(fields) and token is not None:
            session = self._sessions.find(token, request.arrived)
            if session is not None:
                fields = cookies.without_credentials(fields, session.secret)
        try:
            request.key = authenticator.authenticate(fields, request.arrived, request.channel.client)
            authenticator.require_admin(request.key)
        except Refusal as refusal:
            if session is not None and refusal.status in (401, 403):
                # The key has been taken away, or has expired.
                self._sessions.close(session)
            raise
        return request.key, session

    def _session(self, request: ProxyRequest) -> None:
        now, fields = request.arrived, request.fields
        if request.method == b"DELETE":
            token = cookies.read(fields)
            session = None if token is None else self._sessions.find(token, now)
            if session is not None:
                self._sessions.close(session)
            request.answer(204, b"", [(b"Set-Cookie", cookies.clearing(fields))])
            return
        _require_json(request)
        told = parse_body(short_body(request)).get("key")
        if not isinstance(told, str) or not told.isprintable():
            raise invalid_request("key must be the administrator's key.", param="key")
        secret = told.strip().encode("utf-8")
        authenticator = request.site.authenticator
        presented = Fields([(b"Authorization", b"Bearer " + secret)])
        # Whoever tries many has to wait, as everywhere.
        request.key = authenticator.authenticate(presented, now, request.channel.client)
        authenticator.require_admin(request.key)
        cookie = cookies.setting(fields, self._sessions.open(secret, now), secure=_is_tls(request))
        request.setHeader(b"Set-Cookie", cookie)
        request.setHeader(b"Cache-Control", b"no-store")
        answer_json(request, 200, {"key": request.key.name})

    # -- the APIs under the cookie ------------------------------------------------------------------

    def _pass_inside(self, request: ProxyRequest) -> None:
        """Serve ``/ui/api/...`` as ``/api/...`` is, and ``/ui/v1/...`` as ``/v1/...``."""
        _, session = self._who(request)
        if request.method not in SAFE and _is_ambient(request.fields):
            _require_json(request, bodiless=request.method == b"DELETE")
        request.fields = cookies.without_credentials(
            request.fields, None if session is None else session.secret
        )
        request.uri, request.path = request.uri[3:], request.path[3:]
        request.postpath = request.postpath[1:]
        first = request.path[1:].partition(b"/")[0]
        request.prepath = [first]
        self._inner(first, request).render(request)


def _has_key(fields: Fields) -> bool:
    return b"authorization" in fields or b"x-api-key" in fields


def _is_ambient(fields: Fields) -> bool:
    """A browser may have added by itself what lets it in: a cookie, or a password that it remembers."""
    return not _has_key(fields) or fields.get(b"authorization", b"").lower().startswith(b"basic")


def _is_tls(request: ProxyRequest) -> bool:
    """The browser speaks TLS, with us or with whoever is in front of us."""
    fields = request.fields
    return bool(request.channel.origin.secure) or fields.get(b"origin", b"").lower().startswith(b"https://")


def _require_json(request: ProxyRequest, *, bodiless: bool = False) -> None:
    """Only what no form of another page can send.

    :param bodiless: it may have no body, and then says nothing of it.
    :raises llmproxy.errors.Refusal: ``invalid_request``.
    """
    if bodiless and not request.length:
        return
    kind = request.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal(
            415,
            "invalid_request",
            "Under /ui, what changes anything is sent as application/json.",
            kind="invalid_request_error",
        )
