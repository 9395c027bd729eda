"""Demands for backends by requests that do not wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmproxy.errors import Refusal

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.backend.gate import Lease
    from llmproxy.config.model import Key

__all__ = ["Heralds"]


class Heralds:
    """One for each backend at most: however many requests want it for later, it is started once."""

    def __init__(self) -> None:
        self._sent: dict[Backend, _Herald] = {}

    def send(self, backend: Backend, key: Key) -> Refusal | None:
        """Have the backend started, by the rights of this key.

        :return: why it is not, as far as that is known at once.
        """
        if backend in self._sent:
            return None
        herald = self._sent[backend] = _Herald(self, backend, key)
        backend.enter(herald)
        return herald.refusal

    def recall(self, backend: Backend) -> None:
        """Somebody waits for it after all."""
        herald = self._sent.pop(backend, None)
        if herald is not None:
            backend.leave(herald)

    def _told(self, backend: Backend) -> None:
        self._sent.pop(backend, None)


class _Herald:
    """A :class:`~llmproxy.backend.gate.Waiter` who only wants to see it ready."""

    def __init__(self, heralds: Heralds, backend: Backend, key: Key) -> None:
        self.priority = key.priority
        self.may_evict = key.may_evict
        self.refusal: Refusal | None = None
        self._heralds = heralds
        self._backend = backend

    def affinity(self) -> bytes | None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        return None

    def admitted(self, lease: Lease) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        self._heralds._told(self._backend)
        lease.release()

    def refused(self, refusal: Refusal) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""
        self.refusal = refusal
        self._heralds._told(self._backend)

    def cut(self, reason: str) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`."""

    def handed_on(self, route: str | None) -> None:
        """See :class:`~llmproxy.backend.gate.Waiter`.  Whoever wants the other one asks for it."""
        self._heralds._told(self._backend)
