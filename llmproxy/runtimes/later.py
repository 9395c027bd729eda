"""A runtime that stands for another one, which is loaded when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Facts, Instance, IRuntime, Step, Watcher, unheard

__all__ = ["IRealRuntime", "Later"]


class IRealRuntime(IRuntime, Protocol):
    """A runtime whose backends may tell by labels that they are routes."""

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when such labels are others than before."""


R = TypeVar("R", bound=IRealRuntime)


@define(eq=False, slots=False)
class Later(Generic[R]):
    """What is asked of a backend is asked of the real one, which is made by the first question.

    Whoever derives from it says how it is made (``_runtime``), and when nobody asks (``start``, ``close``).
    """

    _real: R | None = field(default=None, init=False)
    _catalogue_changed: list[Callable[[], None]] = field(factory=list, init=False)

    def _runtime(self) -> R:
        raise NotImplementedError

    def ping(self) -> Deferred[None]:
        return self._runtime().ping()

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        return self._runtime().watch(spec, watcher)

    def unwatch(self, route: str) -> None:
        if self._real is not None:
            self._real.unwatch(route)

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        return self._runtime().ensure_started(spec, step)

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        return self._runtime().stop(spec, grace)

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return self._runtime().facts(spec)

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        return self._runtime().logs(spec, tail)

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        return self._runtime().follow_logs(spec, tail, line)

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when labels of routes are others than before."""
        self._catalogue_changed.append(callback)
        if self._real is not None:
            self._real.on_catalogue_change(callback)
