"""How far a start has come, read from vLLM's log.  Pure.

The words differ between versions, so that they are matched loosely; a line that says nothing of it is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from re import Match

from attrs import frozen

__all__ = ["ORDER", "Phase", "read_phase"]

ORDER = (
    "waiting for room",
    "creating",
    "placing",
    "pulling",
    "starting",
    "downloading",
    "loading weights",
    "compiling",
    "profiling",
    "capturing graphs",
)
"""The phases of a start, in their order; a Swarm is ``placing`` a task until it has a node. Few starts have
all of them: images and weights are fetched once, ``--enforce-eager`` compiles and captures nothing, and of
other engines no more than ``starting`` is known."""

LONGEST = 1000
"""Characters of a line that are looked at: vLLM's lines about its start are far shorter."""


@frozen
class Phase:
    """Where a start is.

    :ivar name: one of :data:`ORDER`.
    :ivar progress: the part of it that is done, from 0 to 1; None: not told.
    :ivar took: seconds that it has taken, told at its end.
    :ivar reason: what it waits for, in words; empty: nothing that is known.
    """

    name: str
    progress: float | None = None
    took: float | None = None
    reason: str = ""


_PERCENT = r"(?P<percent>\d{1,3})%"
_TOOK = r"(?:took|takes|finished in)\s+(?P<took>\d{1,7}(?:\.\d{1,9})?)\s*s(?:ec|econd)?s?\b"

_SIGNS: tuple[tuple[str, str], ...] = (
    # The bars of the hub: of all files, or of one that has weights.  Of several parts each has its own bar.
    ("downloading", rf"(?:^|\s)(?:Fetching \d+ files|Downloading(?: shards| bytes)?)\b[^%|]*?{_PERCENT}\|"),
    ("downloading", r"-of-\d{1,9}\.(?:safetensors|bin|gguf|pt|pth): *\d{1,3}%\|"),
    ("downloading", rf"\.(?:safetensors|bin|gguf|pt|pth): *{_PERCENT}\|"),
    ("downloading", r"Time spent downloading weights for .{1,300}?: (?P<took>\d{1,7}(?:\.\d{1,9})?) seconds"),
    # Not "Starting to load model": the weights may have to be fetched after that.
    ("loading weights", rf"[Ll]oading (?:\w+ )?(?:checkpoint )?(?:shards|using [\w ]+):\s*{_PERCENT}"),
    ("loading weights", rf"Loading (?:model )?weights {_TOOK}"),
    ("loading weights", r"(?P<end>(?:Model loading|Loading model weights) took [\d.]+ G)"),
    ("compiling", r"Using cache directory: .{1,500} for vLLM's torch\.compile"),
    ("compiling", r"Dynamo bytecode transform time"),
    ("compiling", r"(?:Compiling|Cache|Directly load) (?:a|the) (?:\S{1,20} )?(?:compiled )?graph"),
    ("compiling", r"Start(?:ing)? compil"),
    ("compiling", rf"torch\.compile {_TOOK} in total"),
    ("profiling", r"Profiling CUDA graph memory|Encoder cache will be initialized"),
    ("profiling", rf"(?:Memory profiling|Initial profiling/warmup run) {_TOOK}"),
    ("profiling", r"Available KV cache memory|# (?:GPU|cuda) blocks: "),
    ("profiling", r"(?P<end>GPU KV cache size|Maximum concurrency for )"),
    ("capturing graphs", rf"Capturing CUDA graphs?\b[^%|]*?{_PERCENT}\|"),
    ("capturing graphs", r"Capturing (?:the model for CUDA graphs|cudagraphs for decoding)"),
    ("capturing graphs", rf"Graph capturing {_TOOK}"),
)

_ANY = re.compile(
    r"load|files|safetensors|\.bin|\.gguf|\.pt|weights|compil|ynamo|graph|profil|KV cache|blocks|concurrency"
    r"|ncoder",
    re.IGNORECASE,
)
"""What each sign holds: most lines hold none, and are looked at once."""


@cache
def _compiled() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Made when the first log is followed."""
    return tuple((name, re.compile(sign)) for name, sign in _SIGNS)


def read_phase(line: str) -> Phase | None:
    """The phase that a line of the log tells; a progress bar's last state counts."""
    shown = line[-LONGEST:].rstrip("\r\n").rpartition("\r")[2]
    if not _ANY.search(shown):
        return None
    for name, sign in _compiled():
        found = sign.search(shown)
        if found is not None:
            return _phase(name, found)
    return None


def _phase(name: str, found: Match[str]) -> Phase:
    told = found.groupdict()
    took = _number(told.get("took"), float)
    percent = _number(told.get("percent"), int)
    if took is not None or told.get("end") is not None:
        return Phase(name, 1.0, took)
    return Phase(name, None if percent is None else min(percent, 100) / 100)


def _number(text: str | None, read: Callable[[str], float]) -> float | None:
    return None if text is None else read(text)
