"""One demo server's GPU memory, from the check before it loads to its sleep and back.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from attrs import define, field, frozen

from llmproxy.demo.ledger import GIB, GpuError, Ledger, Part

__all__ = ["KEEPS", "TAGS", "WEIGHTS", "Gpus", "Memory", "OwnGpus", "Plan"]

TAGS = frozenset(("weights", "kv_cache"))
"""What vLLM puts to sleep and wakes by name."""

WEIGHTS = Part(0.5)
KEEPS = Part(0.05)  # the CUDA context, the graphs, what the process itself needs
_GRAPHS = 0.02  # of the share: CUDA graphs are small


class Gpus(Protocol):
    """The GPUs that a server sees, and its claim on them."""

    @property
    def owner(self) -> str:
        """The server's name in the ledger."""

    def change(self, act: Callable[[Ledger], Ledger]) -> Ledger:
        """Change the own claim, with nobody changing theirs meanwhile."""

    def note(self, wrong: GpuError) -> None:
        """Remember an error for those who look on."""


@define
class OwnGpus:
    """GPUs that nobody else uses."""

    _ledger: Ledger
    owner: str = "self"

    def change(self, act: Callable[[Ledger], Ledger]) -> Ledger:
        self._ledger = act(self._ledger)
        return self._ledger

    def note(self, wrong: GpuError) -> None:
        pass


@frozen
class Plan:
    """How much a server takes.

    :ivar gpus: those it takes it of.
    :ivar utilization: of each, as ``--gpu-memory-utilization`` says.
    :ivar weights: of its share.
    :ivar keeps: of its share, while it sleeps.
    """

    gpus: tuple[str, ...] = ("0",)
    utilization: float = 0.92
    weights: Part = WEIGHTS
    keeps: Part = KEEPS


@define
class Memory:
    """What the server has on each of its GPUs.

    :ivar share: bytes when it is ready.
    :ivar weights: bytes of these that the model takes.
    :ivar graphs: bytes that its CUDA graphs take.
    """

    _gpus: Gpus
    _plan: Plan
    share: int = field(init=False, default=0)
    weights: int = field(init=False, default=0)
    graphs: int = field(init=False, default=0)
    _before: dict[str, int] = field(init=False, factory=dict)
    _held: int = field(init=False, default=0)
    _total: int = field(init=False, default=0)

    @classmethod
    def alone(cls, plan: Plan, total: int = 24 * GIB) -> Memory:
        """The memory of a server that is ready, on GPUs that nobody else uses."""
        memory = cls(OwnGpus(Ledger(total)), plan)
        memory.check_room()
        memory.profile()
        return memory

    @property
    def cache(self) -> int:
        """Bytes for the KV cache."""
        return self.share - self.weights - self.graphs

    # A start, in order.

    def check_room(self) -> None:
        """See that there is room, and remember what others have.

        :raises NoRoom: there is not.
        """
        plan = self._plan

        def act(ledger: Ledger) -> Ledger:
            ledger.check_room(plan.gpus, plan.utilization)
            self._before = ledger.others(self._gpus.owner, plan.gpus)
            return ledger

        self._total = self._change(act).total
        self.share = Ledger(self._total).share(plan.utilization)
        self.weights = plan.weights.of(self.share)
        self.graphs = int(_GRAPHS * (self.share - self.weights))

    def load_weights(self) -> None:
        """:raises OutOfMemory: they do not fit."""
        self._claim(self.weights)

    def profile(self) -> None:
        """See that others have what they had at the start, and take the rest of the share.

        :raises NeighbourChanged: they have not.
        :raises OutOfMemory: it is no longer there.
        """

        def act(ledger: Ledger) -> Ledger:
            ledger.check_neighbours(self._gpus.owner, self._before)
            return ledger.claimed(self._gpus.owner, self._plan.gpus, self.share)

        self._change(act)
        self._held = self.share

    # Sleep.

    def sleep(self) -> tuple[int, int]:
        """Give back all but what a sleeper keeps; tells the bytes freed, and those that all servers still use
        on the first GPU, as vLLM's line does."""
        before, keeps = self._held, self._plan.keeps.of(self.share)
        ledger = self._claim(min(keeps, before))
        return before - self._held, ledger.used(self._plan.gpus[0])

    def wake(self, away: Collection[str]) -> None:
        """Take back what is not among the tags that stay away.

        :raises OutOfMemory: it is no longer there.
        """
        keeps = self._plan.keeps.of(self.share)
        back = {"weights": self.weights, "kv_cache": self.share - self.weights}
        held = self.share if not away else sum(back[tag] for tag in TAGS - set(away))
        self._claim(max(held, keeps, self._held))

    def _claim(self, amount: int) -> Ledger:
        ledger = self._change(lambda found: found.claimed(self._gpus.owner, self._plan.gpus, amount))
        self._held = amount
        return ledger

    def _change(self, act: Callable[[Ledger], Ledger]) -> Ledger:
        try:
            return self._gpus.change(act)
        except GpuError as wrong:
            self._gpus.note(wrong)
            raise

    def __str__(self) -> str:
        return f"{self._held / GIB:.2f} GiB of {self._total / GIB:.2f} GiB on {', '.join(self._plan.gpus)}"
