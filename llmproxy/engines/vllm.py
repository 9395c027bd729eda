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

_SHORT = {"-tp": "--tensor-parallel-size"}

_SHELLS = ("sh", "bash", "dash", "ash", "zsh")

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")


def read_flags(args: Sequence[str], environment: Mapping[str, str]) -> VllmFlags:
    """Read a whole command line: ``vllm serve MODEL ...``, the module form, flags alone, or one of these
    inside ``sh -c "..."``.

    What cannot be read is left out: a wrong flag is for vLLM to complain of.
    """
    words = _unwrap(list(args), environment)
    values: dict[str, list[str]] = {}
    positional: list[str] = []
    name: str | None = None
    for word in words:
        word = _SHORT.get(word, word)
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            flag = flag.replace("_", "-")
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
        tensor_parallel_size=_whole(_first(values, "tensor-parallel-size")),
        sleep_mode="enable-sleep-mode" in values and "no-enable-sleep-mode" not in values,
        max_model_len=_whole(_first(values, "max-model-len")),
    )


def _unwrap(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """The command inside ``sh -c "..."``: of several, the one that speaks of vLLM."""
    for index, word in enumerate(words[:-1]):
        # -c, and what it is combined with, as in -lc and -ec.
        if re.fullmatch("-[a-z]*c", word) and index and words[index - 1].rpartition("/")[2] in _SHELLS:
            commands = _commands(words[index + 1], environment)
            return next((command for command in commands if "vllm" in " ".join(command)), [])
    return words


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


_SHAPES = re.compile(
    r"""\b(?:hf_|sk-)[A-Za-z0-9_-]{8,}
      | (?P<before>\bBearer\s+
          # --api-key X, --api-key=X, api_key='X', "api_key": ["X", and '--api-key', 'X'
          | \b(?:api[-_]key|hf[-_]token)['"]?\s*[=:,]?\s*\[?\s*)
        (?:"[^"\r\n]*"?|'[^'\r\n]*'?|[^\s'",\]})]+)""",
    re.VERBOSE | re.IGNORECASE,
)

HIDDEN = "***"


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of the known secrets and of what has the shape of one.

    Secrets of fewer than four characters are left: to replace them would shred the text and tell them.
    """
    for secret in sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(lambda match: (match["before"] or "") + HIDDEN, text)


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
    (
        # How the hub answers to the path of a folder that is not there.
        r"Repo id must be in the form 'repo_name' or 'namespace/repo_name'.*"
        r"|Invalid repository ID or local directory specified.*",
        "There is no such model: check its name, or its path and the volume that it lies on.",
    ),
    (r".*error: unrecognized arguments.*", "vLLM does not know this flag: check args."),
    (
        r".*(?:No CUDA GPUs are available|Failed to infer device type|libcuda\.so\.1: cannot open).*",
        "The container sees no GPU: install nvidia-container-toolkit and request the GPU.",
    ),
    (r".*Sleep mode is not supported on current platform.*", "Remove --enable-sleep-mode."),
)

_COMPILED = tuple((re.compile(pattern), hint) for pattern, hint in _CAUSES)

_PREFIX = re.compile(
    r"^\s*(?:\([^)]*\)\s*)?(?:(?:DEBUG|CRITICAL|INFO|WARNING|ERROR)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?"
)


def diagnose(exit_code: int | None, oom: bool, log_tail: str) -> tuple[str, str | None]:
    """What a start that ended most likely failed of.

    :param log_tail: the last lines of its output.
    :return: the cause in one line, and a hint that names the fix (None when none is known).
    """
    lines = [_PREFIX.sub("", line).strip() for line in re.split(r"[\r\n]+", redact(log_tail, ()))]
    # From the end: a container's log holds its earlier runs as well.
    for line in reversed(lines):
        for pattern, hint in _COMPILED:
            found = pattern.search(line)
            if found:
                return _gist(found[0]), hint
    if oom:
        return "The kernel killed it for lack of memory.", "Give the container or the machine more memory."
    said = [line for line in lines if line]
    # This one only points upwards; it is told when there is nothing else.
    told = [line for line in said if "See root cause above" not in line] or said
    if told:
        return _gist(told[-1]), None
    if exit_code == 137:
        return "It was killed.", "Somebody stopped it, or the machine is short of memory."
    return "It wrote no log.", None


_GIST = 300
"""Characters of a log line that make a cause: enough for vLLM's longest message with its numbers."""


def _gist(line: str) -> str:
    line = line.strip()
    return line if len(line) <= _GIST else line[:_GIST].rstrip() + "..."
