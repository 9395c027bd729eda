"""The Docker SDK in threads of its own, and its many errors as our two."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.tls import TLSConfig
from docker.transport import UnixHTTPAdapter
from docker.utils import kwargs_from_env
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.docker_state import Json, is_called
from llmproxy.runtimes.docker_threads import Lane
from llmproxy.runtimes.interface import RuntimeUnavailable

__all__ = ["CALL_TIMEOUT", "Engine", "describe", "find_container", "make_client", "unavailable"]

T = TypeVar("T")

CALL_TIMEOUT = 30.0
"""Seconds for one call: an engine under load has been seen to stall for 20 s and then to answer."""


class _Adapter(UnixHTTPAdapter):
    """The SDK's own, but that a connection which is kept is one for all calls.

    It keeps them by URL: 25 for each client, so for each of our threads, of which hardly one is used again.
    """

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The connections that are kept."""
        return super().get_connection("http+docker://localhost", proxies)


def make_client(settings: DockerSettings, timeout: float = CALL_TIMEOUT) -> APIClient:
    """A client that speaks the newest version that both sides know (engines from 20.10, API 1.41, on).

    :param timeout: seconds for each call.
    :raises OSError: nobody listens there.
    :raises DockerException: the engine does not answer.
    """
    host = docker_host(settings)
    if host.startswith("unix:"):
        # The SDK would leave its socket to the garbage collector when nobody listens.
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(timeout)
            probe.connect(urlsplit(host).path)
    if host.startswith("ssh:"):
        from llmproxy.runtimes.docker_ssh import ssh_client

        return ssh_client(host, timeout)
    seconds = max(1, round(timeout))
    client = APIClient(base_url=host, version="auto", timeout=seconds, tls=_tls_for(settings, host))
    if host.startswith("unix:"):
        theirs = client.get_adapter(client.base_url)
        client.mount("http+docker://", _Adapter(f"http+{host}", seconds))
        theirs.close()
    return client


def _tls_for(settings: DockerSettings, host: str) -> bool | TLSConfig:
    if settings.tls is not None:
        ca, cert, key = (
            os.path.expanduser(each) for each in (settings.tls.ca, settings.tls.cert, settings.tls.key)
        )
        for file in (ca, cert, key):
            # The SDK does not say which one it misses.
            with open(file, "rb"):
                pass
        return TLSConfig(client_cert=(cert, key), ca_cert=ca, verify=True)
    if settings.name or not host.startswith(("tcp:", "https:")):
        return False
    # DOCKER_TLS_VERIFY and DOCKER_CERT_PATH mean what they mean to the docker command.
    return kwargs_from_env().get("tls") or False


def find_container(client: APIClient, name: str) -> Json | None:
    """All that the engine knows of the container of that name; None when there is no such container."""
    try:
        info: Json = client.inspect_container(name)
    except NotFound:
        return None
    return info if is_called(info, name) else None


def describe(error: BaseException) -> str:
    """The cause in one line: the innermost one, as the layers around it only repeat it."""
    if isinstance(error, APIError):
        return " ".join(str(error.explanation or error).split())
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        error, cause = cause, cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _membership(host: str) -> str:
    """Whose the socket is, who we are, and what to do about it."""
    try:
        group = os.stat(urlsplit(host).path).st_gid
    except OSError as error:
        return str(error.strerror)
    groups = sorted({os.getegid(), *os.getgroups()})
    return (
        f"its socket belongs to group {group}, and user {os.geteuid()} (groups {', '.join(map(str, groups))})"
        f" is not in it. With the launcher put DOCKER_GID={group} into .env and bring it up again; else add"
        " the user to that group"
    )


def unavailable(host: str, error: BaseException) -> RuntimeUnavailable:
    """Our word for an engine that does not answer, or whose socket we may not use."""
    if isinstance(error, PermissionError) and host.startswith("unix:"):
        return RuntimeUnavailable(f"the Docker engine at {host} may not be used: {_membership(host)}")
    return RuntimeUnavailable(f"the Docker engine at {host} does not answer: {describe(error)}")


@define(eq=False)
class Engine:
    """Calls to one Docker engine.

    Each thread has a client of its own (``requests`` promises nothing about sharing one), made when it is
    first needed and thrown away when a call finds the engine gone.

    ``calls`` are the short ones; ``starts`` may take long (a GPU's first use), ``slow`` very long (pulls,
    Compose), and neither may keep a ``kill`` waiting.
    """

    settings: DockerSettings
    _reactor: IReactorFromThreads
    host: str = field(init=False)
    calls: Lane = field(init=False)
    starts: Lane = field(init=False)
    slow: Lane = field(init=False)
    _mine: threading.local = field(factory=threading.local, init=False)

    def __attrs_post_init__(self) -> None:
        self.host = docker_host(self.settings)
        # Each thread has a connection: by ssh one more process here and one there, and sshd takes in ten at
        # once (MaxStartups).
        part = 2 if self.host.startswith("ssh:") else 1
        self.calls = Lane(self._reactor, "llmproxy-docker", 8 // part, self._forget)
        self.starts = Lane(self._reactor, "llmproxy-docker-start", 4 // part, self._forget)
        self.slow = Lane(self._reactor, "llmproxy-docker-slow", 4 // part, self._forget)

    def close(self) -> None:
        """Let the threads go."""
        for lane in (self.calls, self.starts, self.slow):
            lane.close()

    def call(
        self, job: Callable[[APIClient], T], *, lane: Lane | None = None, timeout: float = CALL_TIMEOUT
    ) -> Deferred[T]:
        """Have ``job`` talk to the engine in a thread.

        :param timeout: seconds that each of its calls may wait for bytes.
        :raises RuntimeUnavailable: the engine does not answer, or answers with a server error.
        :raises docker.errors.APIError: it says no (4xx); what that means is for the caller to say.
        """
        return (lane or self.calls).run(lambda: self.blocking(job, timeout))

    def blocking(self, job: Callable[[APIClient], T], timeout: float = CALL_TIMEOUT) -> T:
        """The same in the present thread, which must not be the reactor's."""
        client: APIClient | None = getattr(self._mine, "client", None)
        fresh = client is None
        try:
            if client is None:
                client = self._mine.client = make_client(self.settings)
            client.timeout = max(1, round(timeout))
            return job(client)
        except APIError:
            raise
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self._forget()
            if not fresh and _stale(error):
                # The connection had been kept from before the engine was restarted: once more, anew.
                return self.blocking(job, timeout)
            raise unavailable(self.host, error) from error

    def _forget(self) -> None:
        client: APIClient | None = getattr(self._mine, "client", None)
        self._mine.client = None
        if client is not None:
            client.close()


def _stale(error: BaseException) -> bool:
    """Whether a kept connection was found closed: the request never reached the engine."""
    text = describe(error)
    return isinstance(error, requests.ConnectionError) and (
        "RemoteDisconnected" in text
        or "without response" in text
        or "Connection reset" in text
        or "Broken pipe" in text
    )
