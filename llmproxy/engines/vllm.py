"""What is known of vLLM beside its flags: its secrets, and what its last words mean.  Pure.

The lines of failed starts are vLLM's own messages, whose words differ between versions, so that they are
matched loosely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmproxy.engines.flags import VllmFlags, read_flags

__all__ = ["VllmFlags", "diagnose", "read_flags", "redact"]


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
        # With "Actual usage is" it is an ordinary start's remark on --kv-cache-memory (gpu_worker.py).
        r"Free memory on device(?!.*Actual usage is).*(?:less than desired|Desired GPU memory utilization).*",
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
