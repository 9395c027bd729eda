"""A service's output: the end of it, and as it comes, of all its tasks together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import requests
import urllib3
from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, DockerException
from docker.types import CancellableStream
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_client import CALL_TIMEOUT, make_client, unavailable
from llmproxy.runtimes.docker_events import drop_stream, end_stream
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.lines import Lines
from llmproxy.runtimes.swarm_calls import find, list_nodes, list_tasks
from llmproxy.runtimes.swarm_frames import Frames, Line, read_line
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture

__all__ = ["Follower", "read_tail", "read_task_tail"]

LINGER = 0.5
"""Seconds for which lines may still come of a task that has ended: they come by way of the manager."""


MOST_TASKS = 20
"""Tasks whose output is read: the newest, of which there are some for each that runs."""


def _open(client: APIClient, what: str, *, follow: bool, tail: int) -> requests.Response:
    answer: requests.Response = client.get(
        f"{client.base_url}/v{client.api_version}/{what}/logs",
        params={
            "stdout": "1",
            "stderr": "1",
            "timestamps": "1",
            "details": "1",
            "follow": str(int(follow)),
            "tail": str(tail),
        },
        stream=True,
        timeout=(CALL_TIMEOUT, None) if follow else client.timeout,
    )
    answer.raise_for_status()
    return answer


def read_tail(client: APIClient, name: str, tail: int) -> str:
    """The last lines, by their time; empty when there is no such service.

    Asked for the service's output the engine would wait for each task that has yet to start; of tasks whose
    node does not answer nobody can say anything.
    """
    if tail <= 0:
        return ""
    service = find(client, name)
    if service is None:
        return ""
    tasks = list_tasks(client, [service.id]).get(service.id, ())
    began = [task for task in tasks if task.container and (task.over or task.state == "running")]
    if began:
        nodes = list_nodes(client)
        picture = Picture(service, tasks, nodes)
        began = [task for task in began if not picture.lost(task)]
    began.sort(key=lambda task: (task.created_ns, task.id), reverse=True)
    found: list[Line] = []
    for task in began[:MOST_TASKS]:
        if task.over and len(found) >= tail:
            break
        found += read_task_tail(client, task.id, tail, raw=bool(service.container.get("TTY")))
    found.sort(key=lambda line: line.at)
    return "\n".join(line.text for line in found[-tail:])


def read_task_tail(client: APIClient, task: str, tail: int, *, raw: bool) -> list[Line]:
    """The last lines of one task.

    :param raw: it has a terminal.
    """
    try:
        answer = _open(client, f"tasks/{task}", follow=False, tail=tail)
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            return []
        return [Line(f"(no log: {_said(error)})")]
    lines: list[str] = []
    frames = Frames(Lines(lines.append).feed, raw=raw)
    frames.feed(answer.content)
    return [read_line(line) for line in lines]


def _said(error: requests.HTTPError) -> str:
    try:
        return str(error.response.json()["message"]) if error.response is not None else str(error)
    except (ValueError, KeyError, TypeError):
        return str(error)


@define(eq=False)
class Follower:
    """Reads one service's output in a daemon thread of its own.  A
    :class:`~llmproxy.runtimes.swarm_monitor.Subject`, as the stream itself does not end with the run.

    :ivar ended: fires when the run has ended, fails with ``RuntimeUnavailable``; cancel it to stop.
    """

    _reactor: Any
    _settings: DockerSettings
    name: str
    _tail: int
    _line: Callable[[str], None]
    busy: bool = field(default=False, init=False)
    ended: Deferred[None] = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _stream: CancellableStream[bytes] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _last: bool = field(default=False, init=False)
    # Tasks that had ended before: their lines are of an earlier run.
    _before: frozenset[str] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.ended = Deferred(lambda _: self.close())

    def close(self) -> None:
        """No more lines from now on."""
        self._closed = True
        with self._lock:
            if self._stream is not None:
                end_stream(self._stream)

    def unseen(self, reason: Failure) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        if self._before is None:
            self._finish(reason)

    def seen(self, picture: Picture, here: Here) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        first, runs = self._before is None, bool(picture.running)
        if first:
            self._before = frozenset(task.id for task in picture.tasks if task.over) if runs else frozenset()
            threading.Thread(target=self._work, args=(runs,), name="llmproxy-swarm-logs", daemon=True).start()
        elif not runs and not self._last:
            self._last = True
            clock: IReactorTime = self._reactor
            clock.callLater(LINGER, self._finish, None)

    def _work(self, follow: bool) -> None:
        error: Exception | None = None
        try:
            self._read(follow)
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
            # A service that is removed while we read has ended.
            if not isinstance(problem, (APIError, requests.HTTPError)):
                error = unavailable(docker_host(self._settings), problem)
        self._reactor.callFromThread(self._finish, error)

    def _read(self, follow: bool) -> None:
        client = make_client(self._settings)
        try:
            service = find(client, self.name)
            if service is None:
                return
            answer = _open(client, f"services/{service.id}", follow=follow, tail=max(0, self._tail))
            stream: CancellableStream[bytes] = CancellableStream(answer.iter_content(chunk_size=None), answer)
            with self._lock:
                self._stream = stream
                if self._closed:
                    return
            lines = Lines(lambda text: self._reactor.callFromThread(self._pass_on, text))
            frames = Frames(lines.feed, raw=bool(service.container.get("TTY")))
            for data in stream:
                frames.feed(data)
        finally:
            with self._lock:
                stream_to_drop, self._stream = self._stream, None
            if stream_to_drop is not None:
                drop_stream(stream_to_drop)
            client.close()

    def _pass_on(self, text: str) -> None:
        line = read_line(text)
        if not self._closed and line.task not in (self._before or ()):
            self._line(line.text)

    def _finish(self, result: Any) -> None:
        if not self.ended.called:
            self.close()
            if result is None:
                self.ended.callback(None)
            else:
                self.ended.errback(result)
