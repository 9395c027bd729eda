"""The admin API as the command uses it: synchronous, with errors that say what to do.

Only the standard library is used: no event loop, nothing to start up, so that ``llmproxy status`` is quick.
For the same reason nothing here is an attrs class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["DEFAULT_URL", "Api", "ApiError", "connect", "read_env_file"]

DEFAULT_URL = "http://127.0.0.1:8000"
# The proxy answers at once but where it was told to wait; past this it is taken to be stuck.
TIMEOUT = 30.0


class ApiError(Exception):
    """The command cannot do what it was asked.

    :ivar hint: what to do about it.
    :ivar code: the contract's error code, when the proxy itself refused.
    :ivar body: the proxy's error object, when there is one.
    :ivar status: the answer's status, when there was one.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        body: Mapping[str, Any] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.body = dict(body or {})
        self.code = self.body.get("code")
        self.status = status

    def view(self) -> dict[str, Any]:
        """What ``--json`` shows of it."""
        return self.body or {"message": str(self), "hint": self.hint}


def read_env_file(path: Path) -> dict[str, str]:
    """The ``NAME=value`` lines of an ``.env`` file, quotes removed; empty when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[name.strip()] = value
    return found


def connect(
    url: str | None,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    timeout: float = TIMEOUT,
) -> Api:
    """The proxy's admin API, where the environment or ``./.env`` say that it is.

    :param url: ``--url``; else ``LLMPROXY_URL``; else :data:`DEFAULT_URL`.
    :param timeout: seconds after which it is taken not to answer.
    :raises ApiError: the address is none.
    """
    settings = {**read_env_file((folder or Path()) / ".env"), **environment}
    named = "--url" if url else "LLMPROXY_URL"
    base = (url or settings.get("LLMPROXY_URL") or DEFAULT_URL).rstrip("/")
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ApiError(f"{named} is {base!r}; it must be an address such as {DEFAULT_URL}.", "Correct it.")
    key = settings.get("LLMPROXY_ADMIN_KEY") or settings.get("VLLM_API_KEY") or None
    return Api(base, key, timeout)


class Api:
    """One proxy's admin API.  It may be used from several threads."""

    def __init__(self, base: str, key: str | None = None, timeout: float = TIMEOUT) -> None:
        self.base = base
        self._key = key
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"Api({self.base!r})"

    # -- backends -----------------------------------------------------------------------------------

    def backends(self) -> list[dict[str, Any]]:
        """All backends."""
        return self._list("/api/backends", "backends")

    def backend(self, name: str) -> dict[str, Any]:
        """One backend."""
        return self._json("GET", _backend(name))

    def act(self, name: str, verb: str, *, wait: bool, force: bool = False) -> dict[str, Any]:
        """``start``, ``stop``, ``sleep``, ``wake``, ``restart`` or ``reset``; with ``wait`` it returns when
        that is done."""
        query = _query(wait=int(wait) or None, force=int(force) or None)
        # How long a start may take is the proxy's business (start_timeout).
        return self._json("POST", f"{_backend(name)}/{verb}{query}", forever=wait)

    def why(self, name: str) -> dict[str, Any]:
        """Why a backend is as it is."""
        return self._json("GET", f"{_backend(name)}/why")

    def logs(
        self,
        name: str,
        tail: int,
        *,
        follow: bool,
        can_end: Callable[[Callable[[], None]], object] | None = None,
    ) -> Iterator[str]:
        """The lines of a backend's output; with ``follow`` also those to come.

        :param can_end: is given what ends it from another thread, however silent it is.
        """
        path = f"{_backend(name)}/logs{_query(tail=tail, follow=int(follow) or None)}"
        with self._open("GET", path, forever=follow, can_end=can_end) as response:
            for line in response:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    # -- what happens -------------------------------------------------------------------------------

    def events(
        self,
        *,
        tail: int | None = None,
        follow: bool = False,
        backend: str | None = None,
        can_end: Callable[[Callable[[], None]], object] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Transitions and decisions: those that are remembered, and with ``follow`` those to come.

        :param tail: how many of the remembered ones at most.
        :param backend: only what is about that one.
        :param can_end: as in :meth:`logs`.
        """
        path = f"/api/events{_query(tail=tail, follow=int(follow), backend=backend)}"
        with self._open("GET", path, forever=follow, can_end=can_end) as response:
            for line in response:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if isinstance(event, dict):
                        yield event

    def requests(self, limit: int) -> dict[str, Any]:
        """Requests that are open, and the last ones that are over."""
        return self._json("GET", f"/api/requests{_query(limit=limit)}")

    def usage(self, by: str, since: str | None, until: str | None) -> dict[str, Any]:
        """Requests, tokens and time by key, backend or day."""
        return self._json("GET", f"/api/usage{_query(by=by, since=since, until=until)}")

    def usage_csv(self, by: str, since: str | None, until: str | None) -> str:
        """The same as CSV."""
        path = f"/api/usage{_query(by=by, since=since, until=until, format='csv')}"
        with self._open("GET", path) as response:
            return response.read().decode("utf-8", "replace")

    # -- what is shared -----------------------------------------------------------------------------

    def plan(self, name: str | None) -> dict[str, Any]:
        """What is to be done now; with a name: what a request for that backend would do."""
        return self._json("GET", f"/api/plan{_query(backend=name)}")

    def gpus(self) -> dict[str, Any]:
        """Who has the GPUs' memory."""
        return self._json("GET", "/api/gpus")

    def hosts(self) -> list[dict[str, Any]]:
        """The machines that backends run on, where there are several."""
        return self._list("/api/hosts", "hosts")

    def advice(self) -> dict[str, Any]:
        """Which settings would have spared starts."""
        return self._json("GET", "/api/advice")

    def leases(self) -> list[dict[str, Any]]:
        """GPU memory that is lent."""
        return self._list("/api/leases", "leases")

    def lease(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Lend GPU memory; it may have to wait for that."""
        return self._json("POST", "/api/leases", body=asked)

    def lease_held(self, name: str) -> dict[str, Any]:
        """That lease, once its memory is free."""
        return self._json("GET", f"/api/leases/{quote(name, safe='')}?wait=1", forever=True)

    def release(self, name: str) -> dict[str, Any]:
        """End a lease."""
        return self._json("DELETE", f"/api/leases/{quote(name, safe='')}")

    def keys(self) -> list[dict[str, Any]]:
        """All keys that count, without their secrets."""
        return self._list("/api/keys", "keys")

    def add_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Give out a new key; what is answered has its secret."""
        return self._json("POST", "/api/keys", body=asked)

    def rotate_key(self, name: str, overlap: str | None) -> dict[str, Any]:
        """Give a key a new secret; what is answered has it."""
        return self._json("POST", f"/api/keys/{quote(name, safe='')}/rotate{_query(overlap=overlap)}")

    def revoke_key(self, name: str) -> dict[str, Any]:
        """Refuse a key from now on."""
        return self._json("DELETE", f"/api/keys/{quote(name, safe='')}")

    # -- asking -------------------------------------------------------------------------------------

    def upgrade(self) -> dict[str, Any]:
        """Have another process take the proxy's place."""
        return self._json("POST", "/api/upgrade", forever=True)

    def _list(self, path: str, name: str) -> list[dict[str, Any]]:
        found = self._json("GET", path).get(name)
        return list(found) if isinstance(found, list) else []

    def _json(
        self, method: str, path: str, *, forever: bool = False, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._open(method, path, body, forever=forever) as response:
            try:
                value = json.loads(response.read())
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise ApiError(f"{self.base} does not answer as llmproxy does.", "Check LLMPROXY_URL.")
        return value

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        forever: bool = False,
        can_end: Callable[[Callable[[], None]], object] | None = None,
    ) -> Iterator[HTTPResponse]:
        headers = {"Accept": "application/json, text/plain, text/event-stream, text/csv"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        connection = self._connection()
        try:
            self._connect(connection)
            if forever:
                connection.sock.settimeout(None)
            if can_end is not None:
                can_end(partial(_end, connection.sock))
            connection.request(method, urlsplit(self.base).path + path, data, headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise self._refusal(response.status, response.read(65536))
            yield response
        except TimeoutError:
            raise ApiError(
                f"llmproxy at {self.base} did not answer within {self._timeout:g} s.", "Look at its log."
            ) from None
        except (OSError, HTTPException) as wrong:
            raise ApiError(
                f"llmproxy at {self.base} broke the connection off ({wrong or type(wrong).__name__}).",
                "It may have been stopped; see its log.",
            ) from None
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        # Straight there, without the environment's proxy: the key is for llmproxy only.
        parts = urlsplit(self.base)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self._timeout)

    def _connect(self, connection: HTTPConnection) -> None:
        try:
            connection.connect()
        except OSError as wrong:
            told = getattr(wrong, "verify_message", None) or wrong.strerror or wrong
            raise ApiError(
                f"llmproxy is not reachable at {self.base} ({told}).",
                "Start it (make run, or docker compose --profile launcher up -d launcher), or set "
                "LLMPROXY_URL.",
            ) from None

    def _refusal(self, status: int, raw: bytes) -> ApiError:
        try:
            body = json.loads(raw)["error"]
            message, hint = str(body["message"]), body.get("hint")
        except (ValueError, KeyError, TypeError, AttributeError):
            return ApiError(
                f"{self.base} answered {status}, not as llmproxy does.", "Check LLMPROXY_URL.", status=status
            )
        if status == 401:
            message = (
                f"llmproxy at {self.base} does not know this key."
                if self._key
                else f"llmproxy at {self.base} asks for a key, and none is set."
            )
            hint = "Set LLMPROXY_ADMIN_KEY (or VLLM_API_KEY) in the environment or in ./.env."
        return ApiError(message, hint, body, status)


def _end(connected: socket) -> None:
    # It may have ended by itself.
    with suppress(OSError):
        connected.shutdown(SHUT_RDWR)


def _backend(name: str) -> str:
    return f"/api/backends/{quote(name, safe='')}"


def _query(**said: str | int | None) -> str:
    """A query of what is said."""
    query = urlencode({name: value for name, value in said.items() if value is not None})
    return f"?{query}" if query else ""
