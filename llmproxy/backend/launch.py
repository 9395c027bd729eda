"""Has the runtime start and end one backend, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import (
    Instance,
    IReplicator,
    IRuntime,
    RuntimeUnavailable,
    StartRefused,
    Step,
)

__all__ = ["Launcher"]


class Launcher:
    """Starts and ends what one backend is.

    :param predecessor: fires when an earlier backend of the same route has ended; a start waits for it.
    :ivar launching: the runtime has been asked for a start and has not answered.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, runtime: IRuntime, predecessor: Deferred[None] | None) -> None:
        self._clock = clock
        self._runtime = runtime
        self._predecessor = predecessor
        self.launching = False
        self._given_up = False
        self._asked = False
        self._too_late = False
        self._after: list[Callable[[], None]] = []

    def give_up(self) -> None:
        """What has not been asked for yet is not wanted any more."""
        self._given_up = True

    def start(
        self,
        spec: BackendSpec,
        step: Step,
        started: Callable[[Instance], None],
        failed: Callable[[Failure], None],
    ) -> None:
        """Have it started; one of the last two is called."""
        self.launching = True
        before, self._predecessor = self._predecessor, None
        self._asked = False
        if before is None:
            launched = self._ask(spec, step)
        else:
            launched = before.addCallback(lambda _: self._start_after(spec, step))

        def answered(instance: Instance) -> None:
            started(instance)
            self._over()

        def refused(failure: Failure) -> None:
            failed(failure)
            self._over()

        self._answering(launched, answered, refused)

    def _answering(
        self,
        launched: Deferred[Instance],
        answered: Callable[[Instance], None],
        refused: Callable[[Failure], None],
    ) -> None:
        def over(_: object) -> object:
            self.launching = False
            return _

        launched.addBoth(over).addCallbacks(answered, refused)

    def _start_after(self, spec: BackendSpec, step: Step) -> Deferred[Instance]:
        if self._given_up:
            # Its turn has come too late: what would be started now would only be ended again.
            self._too_late = True
            return fail(StartRefused("It is not wanted any more."))
        return self._ask(spec, step)

    def _ask(self, spec: BackendSpec, step: Step) -> Deferred[Instance]:
        self._asked = True
        return self._runtime.ensure_started(spec, step)

    def _over(self) -> None:
        pending, self._after = self._after, []
        for call in pending:
            call()

    def stop(self, spec: BackendSpec, ended: Callable[[float | None], None]) -> None:
        """Have it end.

        :param ended: called with the seconds that its end took, and with None when the runtime cannot say.
        """

        def end() -> None:
            if self._too_late:
                # Nobody has been asked for anything.
                ended(0.0)
                return
            begun = self._clock.seconds()

            def failed(failure: Failure) -> None:
                if not isinstance(failure.value, RuntimeUnavailable):
                    self._log.failure("stopping {backend}", failure, backend=spec.route)

            def seen(_: None) -> float | None:
                return self._clock.seconds() - begun

            stopping = self._runtime.stop(spec, spec.stop_grace)
            stopping.addCallbacks(seen, failed).addCallback(ended)

        if self.launching and not (self._asked and isinstance(self._runtime, IReplicator)):
            # What is being started cannot be stopped yet; but a task may wait for a node for ever.
            self._after.append(end)
        else:
            end()
