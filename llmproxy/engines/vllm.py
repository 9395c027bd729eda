"""What is known of vLLM: its flags, its secrets, and what its last words mean.  Pure.

The flags are those of ``vllm serve`` (vLLM's engine and server arguments); the lines of failed starts are
vLLM's own messages, whose words differ between versions, so that they are matched loosely.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from attrs import field, frozen

__all__ = ["VllmFlags", "diagnose", "read_flags", "redact"]


@frozen
class VllmFlags:
    """What a vLLM server was told by its command line and environment.

    :ivar served_model_names: the names that it answers to; the model's own name when none is given.
    :ivar gpu_memory_utilization: fraction of a GPU, when it was given.
    """

    model: str | None = None
    served_model_names: tuple[str, ...] = ()
    port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    sleep_mode: bool = False
    max_model_len: int | None = None


_SEVERAL = frozenset(
    ("served-model-name", "api-key", "lora-modules", "middleware", "allowed-local-media-path")
)
"""Flags that take several values."""

_SWITCHES = frozenset(
    (
        "disable-log-requests",
        "disable-log-stats",
        "enable-auto-tool-choice",
        "enable-chunked-prefill",
        "enable-prefix-caching",
        "enable-sleep-mode",
        "enforce-eager",
        "trust-remote-code",
    )
)
"""Common flags that take none, so that the model may stand behind them."""


def read_flags(args: Sequence[str], environment: Mapping[str, str]) -> VllmFlags:
    """Read a whole command line: ``vllm serve MODEL ...``, the module form, or flags alone.

    What cannot be read is left out: a wrong flag is for vLLM to complain of.
    """
    words = _unwrap(list(args))
    values: dict[str, list[str]] = {}
    positional: list[str] = []
    name: str | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            flag = flag.replace("_", "-")
            values[flag] = [value] if equals else []
            name = None if equals or flag in _SWITCHES else flag
        elif name is not None and not word.startswith("-"):
            values[name].append(word)
            name = name if name in _SEVERAL else None
        else:
            positional.append(word)
            name = None
    model = _first(values, "model") or _served_positional(positional)
    names = tuple(values.get("served-model-name", ()))
    if not names and model:
        names = (model,)
    return VllmFlags(
        model=model,
        served_model_names=names,
        port=_whole(_first(values, "port")),
        api_key=_first(values, "api-key") or environment.get("VLLM_API_KEY") or None,
        gpu_memory_utilization=_fraction(_first(values, "gpu-memory-utilization")),
        tensor_parallel_size=_whole(_first(values, "tensor-parallel-size")),
        sleep_mode="enable-sleep-mode" in values,
        max_model_len=_whole(_first(values, "max-model-len")),
    )


def _unwrap(words: list[str]) -> list[str]:
    """The command inside ``sh -c "..."``."""
    for index, word in enumerate(words[:-1]):
        if word == "-c" and index and words[index - 1].rpartition("/")[2] in ("sh", "bash", "dash"):
            try:
                return shlex.split(words[index + 1])
            except ValueError:
                return []
    return words


def _served_positional(words: Sequence[str]) -> str | None:
    """MODEL of ``vllm serve MODEL``; the flags in between have been taken out."""
    for index, word in enumerate(words[:-1]):
        if word == "serve":
            return words[index + 1]
    return None


def _first(values: Mapping[str, Sequence[str]], name: str) -> str | None:
    found = values.get(name)
    return found[0] if found else None


def _whole(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d{1,12})([kK]?)", text or "")
    return int(match[1]) * (1000 if match[2] else 1) if match else None


def _fraction(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


_SHAPES = re.compile(
    r"""(hf_|sk-)[A-Za-z0-9_-]{8,}
      | (?<=Bearer\ )[^\s'",]+
      | (?<=--api-key[ =])[^\s'",]+
      | (?<=api_key=['"])[^'"]+
      | (?<=api_key=\[['"])[^'"]+""",
    re.VERBOSE,
)

HIDDEN = "***"


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of the known secrets and of what has the shape of one.

    Secrets of fewer than four characters are left: to replace them would shred the text and tell them.
    """
    for secret in sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Free memory on device.*(?:less than desired|Desired GPU memory utilization).*",
        "Free GPU memory first (stop what else uses the GPU), or lower --gpu-memory-utilization.",
    ),
    (
        r"(?:torch\.OutOfMemoryError|CUDA out of memory).*",
        "The model does not fit: lower --max-model-len, or use a smaller or quantized model.",
    ),
    (
        r"Error in memory profiling.*",
        "Something else used the GPU while the model started: start one model at a time.",
    ),
    (
        r"No available memory for the cache blocks.*",
        "Raise --gpu-memory-utilization, or lower --max-model-len.",
    ),
    (
        r"To serve at least one request with the model's max seq len.*",
        "Lower --max-model-len, or raise --gpu-memory-utilization.",
    ),
    (
        r".*(?:Insufficient space in /dev/shm|No space left on device).*",
        "Give the container more shared memory (ipc: host or shm_size), or free disk space.",
    ),
    (r".*Address already in use.*", "The port is taken: choose another --port."),
    (
        r".*(?:gated repo|401 Client Error|Access to model .* is restricted).*",
        "The model is gated: accept its licence and set HF_TOKEN.",
    ),
    (
        r".*is not a local folder and is not a valid model identifier.*",
        "Check the model's name, or set HF_TOKEN if it is private.",
    ),
    (r".*error: unrecognized arguments.*", "vLLM does not know this flag: check args."),
    (
        r".*(?:No CUDA GPUs are available|Failed to infer device type|libcuda\.so\.1: cannot open).*",
        "The container sees no GPU: install nvidia-container-toolkit and request the GPU.",
    ),
    (r".*Sleep mode is not supported on current platform.*", "Remove --enable-sleep-mode."),
)

_COMPILED = tuple((re.compile(pattern), hint) for pattern, hint in _CAUSES)

_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)?(?:(?:INFO|WARNING|ERROR)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?")


def diagnose(exit_code: int | None, oom: bool, log_tail: str) -> tuple[str, str | None]:
    """What a start that ended most likely failed of.

    :param log_tail: the last lines of its output.
    :return: the cause in one line, and a hint that names the fix (None when none is known).
    """
    lines = [_PREFIX.sub("", line).strip() for line in re.split(r"[\r\n]+", log_tail)]
    for pattern, hint in _COMPILED:
        for line in lines:
            found = pattern.search(line)
            if found:
                return found[0].strip(), hint
    if oom:
        return "The kernel killed it for lack of memory.", "Give the container or the machine more memory."
    last = next((line for line in reversed(lines) if line), "")
    if last:
        return last, None
    if exit_code == 137:
        return "It was killed.", "Somebody stopped it, or the machine is short of memory."
    return "It wrote no log.", None
