"""The admin API as the command uses it: synchronous, with errors that say what to do.

Only the standard library is used: no event loop, nothing to start up, so that ``llmproxy status`` is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from attrs import field, frozen

__all__ = ["Api", "ApiError", "connect", "read_env_file"]

DEFAULT_URL = "http://127.0.0.1:8000"
# The proxy answers at once but where it was told to wait; past this it is taken to be stuck.
TIMEOUT = 30.0


class ApiError(Exception):
    """The command cannot do what it was asked.

    :ivar hint: what to do about it.
    :ivar code: the contract's error code, when the proxy itself refused.
    :ivar body: the proxy's error object, when there is one.
    """

    def __init__(self, message: str, hint: str | None = None, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.body = dict(body or {})
        self.code = self.body.get("code")


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


def connect(url: str | None, environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> Api:
    """The proxy's admin API, where the environment or ``./.env`` say that it is.

    :param url: ``--url``; else ``LLMPROXY_URL``; else :data:`DEFAULT_URL`.
    :raises ApiError: the address is none.
    """
    settings = {**read_env_file((folder or Path()) / ".env"), **environment}
    base = (url or settings.get("LLMPROXY_URL") or DEFAULT_URL).rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ApiError(
            f"LLMPROXY_URL is {base!r}; it must be an address such as {DEFAULT_URL}.", hint="Correct it."
        )
    return Api(base, settings.get("LLMPROXY_ADMIN_KEY") or settings.get("VLLM_API_KEY") or None)


@frozen
class Api:
    """One proxy's admin API."""

    base: str
    _key: str | None = field(repr=False)

    def backends(self) -> list[dict[str, Any]]:
        """All backends."""
        found = self._json("GET", "/api/backends").get("backends")
        return list(found) if isinstance(found, list) else []

    def backend(self, name: str) -> dict[str, Any]:
        """One backend."""
        return self._json("GET", f"/api/backends/{quote(name, safe='')}")

    def act(self, name: str, verb: str, *, wait: bool, force: bool = False) -> dict[str, Any]:
        """``start``, ``stop``, ``sleep``, ``wake``, ``restart`` or ``reset``; with ``wait`` it returns when
        that is done."""
        query = urlencode({key: 1 for key, value in (("wait", wait), ("force", force)) if value})
        path = f"/api/backends/{quote(name, safe='')}/{verb}"
        # How long a start may take is the proxy's business (start_timeout).
        return self._json("POST", f"{path}?{query}" if query else path, timeout=None if wait else TIMEOUT)

    def why(self, name: str) -> dict[str, Any]:
        """Why a backend is as it is."""
        return self._json("GET", f"/api/backends/{quote(name, safe='')}/why")

    def plan(self, name: str | None) -> dict[str, Any]:
        """What is to be done now; with a name: what a request for that backend would do."""
        return self._json("GET", f"/api/plan?{urlencode({'backend': name})}" if name else "/api/plan")

    def gpus(self) -> dict[str, Any]:
        """Who has the GPUs' memory."""
        return self._json("GET", "/api/gpus")

    def advice(self) -> dict[str, Any]:
        """Which settings would have spared starts."""
        return self._json("GET", "/api/advice")

    def leases(self) -> list[dict[str, Any]]:
        """GPU memory that is lent."""
        found = self._json("GET", "/api/leases").get("leases")
        return list(found) if isinstance(found, list) else []

    def lease(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Lend GPU memory; it may have to wait for that."""
        return self._json("POST", "/api/leases", body=asked)

    def lease_held(self, name: str) -> dict[str, Any]:
        """That lease, once its memory is free."""
        return self._json("GET", f"/api/leases/{quote(name, safe='')}?wait=1", timeout=None)

    def release(self, name: str) -> dict[str, Any]:
        """End a lease."""
        return self._json("DELETE", f"/api/leases/{quote(name, safe='')}")

    def logs(self, name: str, tail: int, *, follow: bool) -> Iterator[str]:
        """The lines of a backend's output; with ``follow`` also those to come."""
        query = urlencode({"tail": tail, **({"follow": 1} if follow else {})})
        path = f"/api/backends/{quote(name, safe='')}/logs?{query}"
        with self._open("GET", path, timeout=None if follow else TIMEOUT) as response:
            for line in response:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Every transition and decision, without end."""
        with self._open("GET", "/api/events", timeout=None) as response:
            for line in response:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if isinstance(event, dict):
                        yield event

    def _json(
        self, method: str, path: str, timeout: float | None = TIMEOUT, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._open(method, path, timeout, body) as response:
            try:
                value = json.loads(response.read())
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise ApiError(f"{self.base} does not answer as llmproxy does.", "Check LLMPROXY_URL.")
        return value

    @contextmanager
    def _open(
        self, method: str, path: str, timeout: float | None, body: Mapping[str, Any] | None = None
    ) -> Iterator[HTTPResponse]:
        headers = {"Accept": "application/json, text/plain, text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.base + path, data, method=method, headers=headers)
        # No proxy of the environment: the key is for llmproxy only.
        opener = build_opener(ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as response:
                yield response
        except HTTPError as refused:
            with refused:
                raise self._refusal(refused.code, refused.read(65536)) from None
        except TimeoutError:
            raise ApiError(
                f"llmproxy at {self.base} did not answer within {TIMEOUT:g} s.", "Look at its log."
            ) from None
        except URLError as wrong:
            raise ApiError(
                f"llmproxy is not reachable at {self.base} ({wrong.reason}).",
                "Start it (make run, or docker compose --profile launcher up -d launcher), or set "
                "LLMPROXY_URL.",
            ) from None
        except (OSError, HTTPException) as wrong:
            raise ApiError(
                f"llmproxy at {self.base} broke the connection off ({wrong or type(wrong).__name__}).",
                "It may have been stopped; see its log.",
            ) from None

    def _refusal(self, status: int, raw: bytes) -> ApiError:
        try:
            body = json.loads(raw)["error"]
            message, hint = str(body["message"]), body.get("hint")
        except (ValueError, KeyError, TypeError, AttributeError):
            return ApiError(f"{self.base} answered {status}, not as llmproxy does.", "Check LLMPROXY_URL.")
        if status == 401:
            message = (
                f"llmproxy at {self.base} does not know this key."
                if self._key
                else f"llmproxy at {self.base} asks for a key, and none is set."
            )
            hint = "Set LLMPROXY_ADMIN_KEY (or VLLM_API_KEY) in the environment or in ./.env."
        return ApiError(message, hint, body)
