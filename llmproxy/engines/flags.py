"""The flags of ``vllm serve``: vLLM's engine and server arguments (``vllm/engine/arg_utils.py``).  Pure.

What cannot be read is left out: a wrong flag is for vLLM to complain of.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from attrs import field, frozen

__all__ = ["VllmFlags", "read_command", "read_flags"]


@frozen
class VllmFlags:
    """What a vLLM server was told by its command line and environment.

    :ivar served_model_names: the names that it answers to; the model's own name when none is given.
    :ivar gpu_memory_utilization: fraction of a GPU, when it was given.
    :ivar gpu_memory_bytes: the same as a size: ``--gpu-memory-utilization-gb``, no flag of vLLM's own but of
        a patch that is much used on machines whose CPU and GPU share their memory.
    :ivar kv_cache_memory: bytes for the KV cache, when they were given.
    :ivar gpus: how many it uses in this container or process.
    :ivar device: ``--device``, which older versions have.
    :ivar device_ids: GPUs by name, of those that the container or the machine has.
    :ivar config: a file with more flags, which is not read here.
    """

    model: str | None = None
    served_model_names: tuple[str, ...] = ()
    port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    gpu_memory_utilization: float | None = None
    gpu_memory_bytes: int | None = None
    kv_cache_memory: int | None = None
    tensor_parallel_size: int | None = None
    gpus: int = 1
    device: str | None = None
    device_ids: tuple[str, ...] = ()
    sleep_mode: bool = False
    max_model_len: int | None = None
    config: str | None = None


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
        "enable-expert-parallel",
        "enable-prefix-caching",
        "enable-sleep-mode",
        "enforce-eager",
        "trust-remote-code",
    )
)
"""Common flags that take none, so that the model may stand behind them."""

_SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-pcp": "prefill-context-parallel-size",
    "-dp": "data-parallel-size",
    "-dpl": "data-parallel-size-local",
    "-dpn": "data-parallel-rank",
    "-ep": "enable-expert-parallel",
    "-q": "quantization",
}

_SHORTENED = (
    "served-model-name",
    "gpu-memory-utilization",
    "kv-cache-memory-bytes",
    "tensor-parallel-size",
    "pipeline-parallel-size",
    "enable-sleep-mode",
    "max-model-len",
)
"""Flags that are known by their beginnings as well, as argparse allows: vLLM itself proposes
``--kv-cache-memory`` in its log."""
_SHORTEST = 8
"""Characters of a beginning that can be meant for none but these."""

_SHELLS = ("sh", "bash", "dash", "ash", "zsh")

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_BEFORE_COMMANDS = ("env", "exec", "export")


def read_flags(args: Sequence[str], environment: Mapping[str, str]) -> VllmFlags:
    """Read a whole command line: ``vllm serve MODEL ...``, the module form, flags alone, or one of these
    inside ``sh -c "..."``."""
    words, environment = read_command(args, environment)
    values: dict[str, list[str]] = {}
    positional: list[str] = []
    name: str | None = None
    for word in words:
        flag, equals, value = word.partition("=")
        flag = _SHORT.get(flag) or (_whole_name(flag[2:]) if flag.startswith("--") else "")
        if flag:
            values[flag] = [value] if equals else []
            name = None if equals or flag in _SWITCHES or flag.startswith("no-") else flag
        elif name is not None and not word.startswith("-"):
            values[name].append(word)
            name = name if name in _SEVERAL else None
        else:
            if not word.startswith("-"):
                positional.append(word)
            name = None
    model = _served_positional(positional) or _first(values, "model")
    names = tuple(values.get("served-model-name", ()))
    if not names and model:
        names = (model,)
    return VllmFlags(
        model=model,
        served_model_names=names,
        port=_whole(_first(values, "port")),
        api_key=_first(values, "api-key") or environment.get("VLLM_API_KEY") or None,
        gpu_memory_utilization=_fraction(_first(values, "gpu-memory-utilization")),
        gpu_memory_bytes=_gibibytes(_first(values, "gpu-memory-utilization-gb")),
        kv_cache_memory=_whole(_first(values, "kv-cache-memory-bytes")),
        tensor_parallel_size=_whole(_first(values, "tensor-parallel-size")),
        gpus=_gpus(values),
        device=_first(values, "device"),
        device_ids=tuple(
            part.strip() for part in (_first(values, "device-ids") or "").split(",") if part.strip()
        ),
        sleep_mode="enable-sleep-mode" in values and "no-enable-sleep-mode" not in values,
        max_model_len=_whole(_first(values, "max-model-len")),
        config=_first(values, "config"),
    )


def read_command(
    args: Sequence[str], environment: Mapping[str, str]
) -> tuple[Sequence[str], Mapping[str, str]]:
    """The words of the server's own command, and its environment: a shell may start it, and it or ``env`` may
    set variables before."""
    words = list(args)
    own = dict(environment)
    for index, word in enumerate(words[:-1]):
        # -c, and what it is combined with, as in -lc and -ec.
        if re.fullmatch("-[a-z]*c", word) and index and words[index - 1].rpartition("/")[2] in _SHELLS:
            # Behind the script stand its name and its parameters (POSIX sh, -c).
            parameters = words[index + 3 :]
            for command in _commands(words[index + 1], environment):
                filled = [one for word in command for one in (parameters if word == "$@" else [word])]
                words = _take_assignments(filled, own)
                # Of several, the one that speaks of vLLM.
                if "vllm" in " ".join(words):
                    return words, own
            return (), own
    return _take_assignments(words, own), own


def _take_assignments(words: list[str], environment: dict[str, str]) -> list[str]:
    """The words without what is set in front of them, which goes to ``environment``."""
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word)
        if match is not None:
            environment[match[1]] = match[2]
        elif word.rpartition("/")[2] not in _BEFORE_COMMANDS:
            return words[index:]
    return []


def _commands(script: str, environment: Mapping[str, str]) -> list[list[str]]:
    """The simple commands of a shell script, best effort: split at operators, variables filled in."""

    def fill(match: re.Match[str]) -> str:
        return environment.get(match[1] or match[3]) or match[2] or ""

    reader = shlex.shlex(
        _VARIABLE.sub(fill, script.replace("\\\n", " ")), posix=True, punctuation_chars=";&|"
    )
    reader.whitespace_split = True
    commands: list[list[str]] = [[]]
    try:
        for word in reader:
            if word.strip(";&|"):
                commands[-1].append(word)
            else:
                commands.append([])
    except ValueError:  # a quote that is not closed
        return []
    return commands


def _whole_name(flag: str) -> str:
    flag = flag.replace("_", "-")
    if len(flag) >= _SHORTEST:
        meant = [name for name in _SHORTENED if name.startswith(flag)]
        if len(meant) == 1:
            return meant[0]
    return flag


def _served_positional(words: Sequence[str]) -> str | None:
    """MODEL of ``vllm serve MODEL``; the flags in between have been taken out.

    An image whose entrypoint is ``vllm serve`` gets ``MODEL`` as its first word: ``organisation/name`` is
    taken for one, while a path or a bare word may as well be a program.
    """
    for index, word in enumerate(words[:-1]):
        if word == "serve":
            return words[index + 1]
    if words and re.fullmatch(r"[\w.-]+/[\w.-]+", words[0]) and not words[0].startswith("."):
        return words[0]
    return None


def _gpus(values: Mapping[str, Sequence[str]]) -> int:
    """One for each worker: the world size (``vllm/config/parallel.py``) times the replicas that run here.
    With a rank of its own, it is one replica of several that are started one by one."""
    each = 1
    for name in ("tensor-parallel-size", "pipeline-parallel-size", "prefill-context-parallel-size"):
        each *= _whole(_first(values, name)) or 1
    local = _whole(_first(values, "data-parallel-size-local"))
    if local is not None:
        return each * local
    if "data-parallel-rank" in values:
        return each
    return each * (_whole(_first(values, "data-parallel-size")) or 1)


def _first(values: Mapping[str, Sequence[str]], name: str) -> str | None:
    found = values.get(name)
    return found[0] if found else None


_UNITS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 1024, "M": 1024**2, "G": 1024**3}
"""vLLM's own (``human_readable_int``): small letters are decimal, capitals binary."""


def _whole(text: str | None) -> int | None:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kmgKMG]?)", text or "")
    if match is None or ("." in match[1] and not match[2]):
        return None
    return int(float(match[1]) * _UNITS[match[2]])


def _fraction(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def _gibibytes(text: str | None) -> int | None:
    match = re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", text or "")
    return int(float(match[0]) * 1024**3) or None if match else None
