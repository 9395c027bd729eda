"""What of a backend serves, where it runs as several tasks: a Swarm's service."""

from __future__ import annotations

from llmproxy.backend.lifecycle import Lifecycle
from llmproxy.backend.replica import Replica
from llmproxy.backend.scaler import Scaler
from llmproxy.backend.serving import TaskState
from llmproxy.backend.tasks import Tasks
from llmproxy.runtimes.interface import Instance

__all__ = ["Together"]


class Together:
    """Several tasks, as many as the load asks for."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        tasks: Tasks,
        scaler: Scaler,
    ) -> None:
        self._lifecycle = lifecycle
        self._tasks = tasks
        self._scaler = scaler

    def probe(self, attempt: int, known: Instance, *, found: bool, patient: bool) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.begin(known.tasks, lambda: self._lifecycle.healthy(attempt), patient=patient)

    def open(self) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.open()
        self._scaler.begin()

    def ask_no_more(self) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.end()
        self._scaler.over()

    def hurry(self) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.hurry()

    @property
    def patient(self) -> bool:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        return self._tasks.patient

    def suspect(self, replica: Replica) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.suspect(replica)

    def follow(self, known: Instance | None) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.follow(() if known is None else known.tasks)
        if known is not None:
            self._scaler.look()

    def retuned(self) -> None:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        self._tasks.resized()
        self._scaler.look()

    def tasks(self) -> tuple[TaskState, ...]:
        """See :class:`~llmproxy.backend.serving.Serving`."""
        return self._tasks.states()
