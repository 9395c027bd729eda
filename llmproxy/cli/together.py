"""Doing something to several backends at once, and what has become of each."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llmproxy.cli.client import Api, ApiError

__all__ = ["Done", "together"]

# Between two looks at how far they are; a phase of a start takes longer.
LOOK_EVERY = 0.4


class Done(NamedTuple):
    """What has become of one backend.

    :ivar backend: as the proxy shows it; None: it could not be done.
    :ivar line: the same for a person.
    :ivar well: whether it is as it was to be.
    :ivar error: why it could not be done.
    """

    name: str
    backend: dict[str, Any] | None
    line: str
    well: bool
    error: ApiError | None = None


def together(
    api: Api,
    names: Sequence[str],
    one: Callable[[str], Done],
    show: Callable[[dict[str, dict[str, Any]], dict[str, Done]], object] | None,
) -> Iterator[Done]:
    """Do it to all at the same time; what has become of each, as soon as it is known.

    :param one: does it to one, and waits for it.
    :param show: told again and again of how they are, and of what is done.
    """
    news: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()

    def run(name: str) -> None:
        try:
            news.put(one(name))
        except ApiError as wrong:
            if wrong.hint:
                # A hint that the proxy has for whichever backend it is.
                wrong.hint = wrong.hint.replace("<backend>", name)
            news.put(Done(name, None, f"{name}: {wrong}", well=False, error=wrong))
        except BaseException as bug:  # it is told where somebody sees it
            news.put(bug)

    for name in names:
        # They may be left behind at Ctrl-C: what they wait for is the proxy's business.
        threading.Thread(target=run, args=(name,), daemon=True).start()
    done: dict[str, Done] = {}
    look = 0.0
    views: dict[str, dict[str, Any]] = {}
    while len(done) < len(names):
        try:
            found = news.get(timeout=LOOK_EVERY if show else None)
        except queue.Empty:
            found = None
        if isinstance(found, BaseException):
            raise found
        if found is not None:
            done[found.name] = found
            yield found
        if show is not None and time.monotonic() >= look:
            views = _views(api) or views
            look = time.monotonic() + LOOK_EVERY
        if show is not None:
            show(views, done)


def _views(api: Api) -> dict[str, dict[str, Any]]:
    try:
        return {str(backend["name"]): backend for backend in api.backends()}
    except ApiError:
        # Whoever waits for a backend is told of it, too.
        return {}
