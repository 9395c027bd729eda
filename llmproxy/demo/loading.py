"""The phases of a start: vLLM's lines, one after the other, and the memory that each phase takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from llmproxy.demo.ledger import GIB, GpuError
from llmproxy.demo.memory import Memory

__all__ = ["Loading"]

_SHARDS = 4
_GRAPHS = 4
_TOKEN = 16 * 1024  # bytes of KV cache that a token of a small model takes
_CONTEXT = 131072
_Step = tuple[int, Callable[[], None]]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


@define
class Loading:
    """One start.

    :param seconds: what it takes.
    :param say: takes a line of the engine's log.
    :param draw: takes a line that has no prefix: a progress bar.
    :param ready: called at the end.
    :param failed: called instead of it when the GPU is too full, after the log has told.
    """

    _reactor: IReactorTime
    _memory: Memory
    _model: str
    _seconds: float
    _say: Callable[[str], object]
    _draw: Callable[[str], object]
    _ready: Callable[[], object]
    _failed: Callable[[], object]
    _began: float = field(init=False, default=0.0)
    _steps: Iterator[_Step] = field(init=False)

    def start(self) -> None:
        """Begin, with what is done at once."""
        self._began = self._reactor.seconds()
        self._say(f"Initializing a V1 LLM engine (v0.32.0+demo) with config: model={self._model!r}")
        self._say(f"Using max model len {_CONTEXT}")
        self._steps = iter(self._all())
        self._go_on()

    def _all(self) -> list[_Step]:
        """What is done, and when: in hundredths of the whole."""
        shards = [(10 + 40 * n // _SHARDS, lambda n=n: self._shard(n)) for n in range(1, _SHARDS + 1)]
        return [
            (0, self._look),
            (10, self._load),
            *shards,
            (60, self._loaded),
            (80, self._profile),
            (82, lambda: self._graphs(1)),
            (86, lambda: self._graphs(2)),
            (90, self._capture),
            (100, self._end),
        ]

    def _go_on(self) -> None:
        for hundredths, act in self._steps:
            wait = self._began + hundredths * self._seconds / 100 - self._reactor.seconds()
            if wait > 0:
                self._reactor.callLater(wait, self._then, act)
                return
            if not self._do(act):
                return

    def _then(self, act: Callable[[], None]) -> None:
        if self._do(act):
            self._go_on()

    def _do(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except GpuError as wrong:
            self._say(f"ERROR {wrong}")
            self._draw("RuntimeError: Engine core initialization failed. See root cause above.")
            self._failed()
            return False
        return True

    def _taken(self) -> float:
        return self._reactor.seconds() - self._began

    def _look(self) -> None:
        self._memory.check_room()
        self._say(f"Starting to load model {self._model}...")

    def _load(self) -> None:
        self._memory.load_weights()
        self._shard(0)

    def _shard(self, number: int) -> None:
        taken = _clock(self._taken())
        left = _clock(self._seconds * 0.4 * (1 - number / _SHARDS))
        pace = _SHARDS / (self._seconds * 0.4 or 1)
        self._draw(
            f"\rLoading safetensors checkpoint shards: {100 * number // _SHARDS:3d}% Completed | "
            f"{number}/{_SHARDS} [{taken}<{left}, {pace:.2f}it/s]"
        )

    def _loaded(self) -> None:
        self._say(f"Loading weights took {0.4 * self._seconds:.2f} seconds")
        weights = self._memory.weights / GIB
        self._say(f"Model loading took {weights:.2f} GiB memory and {self._taken():.6f} seconds")
        self._say(f"Dynamo bytecode transform time: {0.02 * self._seconds:.2f} s")

    def _profile(self) -> None:
        self._say(f"torch.compile took {0.2 * self._seconds:.2f} s in total")
        self._memory.profile()
        cache = self._memory.cache
        self._say(f"Available KV cache memory: {cache / GIB:.2f} GiB")
        tokens = cache // _TOKEN
        self._say(
            f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {_CONTEXT:,} tokens per request: "
            f"{tokens / _CONTEXT:.2f}x"
        )

    def _graphs(self, number: int) -> None:
        bar = ("#" * (10 * number // _GRAPHS)).ljust(10)
        part = f"{100 * number // _GRAPHS:3d}%|{bar}| {number}/{_GRAPHS}"
        self._draw(f"\rCapturing CUDA graphs (mixed prefill-decode, PIECEWISE): {part}")

    def _capture(self) -> None:
        took = 0.1 * self._seconds
        self._graphs(_GRAPHS)
        self._say(f"Graph capturing finished in {took:.0f} secs, took {self._memory.graphs / GIB:.2f} GiB")
        self._say(f"init engine (profile, create kv cache, warmup model) took {0.4 * self._seconds:.2f} s")

    def _end(self) -> None:
        self._ready()
