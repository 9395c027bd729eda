"""Backends that are always on elsewhere: nothing starts or stops them here."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from attrs import define
from twisted.internet.defer import Deferred, fail, succeed

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Address, Exit, Facts, Instance, StartRefused, Step, Watcher, unheard

__all__ = ["UrlRuntime", "read_url"]


def read_url(url: str) -> Address:
    """Where that URL is.

    :raises ValueError: it is no ``http`` or ``https`` URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http:// or https:// URL")
    tls = parts.scheme == "https"
    return Address(parts.hostname, parts.port or (443 if tls else 80), "url", tls, parts.path.rstrip("/"))


@define(eq=False)
class UrlRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime`; a backend here runs for ever."""

    def start(self) -> None:
        """Nothing to do."""

    def close(self) -> Deferred[None]:
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return succeed(None)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        try:
            instance = _instance(spec)
        except StartRefused:
            # The start tells the cause; nothing runs at an address that cannot be.
            watcher.gone(None, Exit())
        else:
            watcher.running(instance)
        return succeed(None)

    def unwatch(self, route: str) -> None:
        """Nothing to do."""

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        try:
            return succeed(_instance(spec))
        except StartRefused:
            return fail()

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        return succeed(None)

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return succeed(Facts())

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        return succeed("")

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        return succeed(None)


def _instance(spec: BackendSpec) -> Instance:
    try:
        return Instance(f"url:{spec.url}", (read_url(spec.url or ""),))
    except ValueError as error:
        raise StartRefused(f"backend {spec.route!r}: {error}", "Set `url` to http://host:port") from error
