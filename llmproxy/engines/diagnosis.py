"""What a start failed of, and what helps: read from the log, the exit status and what Docker says.  Pure.

The lines are vLLM's, PyTorch's, the hub's and Docker's own messages, whose words differ between versions, so
that they are matched loosely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from attrs import frozen

from llmproxy.engines.vllm import redact

__all__ = ["diagnose", "refusal_hint"]

_WSL = "On WSL: raise memory in .wslconfig."

_GPU_ACCESS = (
    "Install the NVIDIA Container Toolkit and restart Docker (on WSL: update the Windows driver), and check"
    " that nvidia-smi works on the host."
)

_DRIVER = "Update the NVIDIA driver of the host (on WSL: the Windows driver), or take an older image."


@frozen
class _Cause:
    """A line that tells why.

    :ivar hint: the fix, with what the pattern's groups have found.
    :ivar crowded: other models on the GPU may be a part of it.
    """

    pattern: str
    hint: str
    crowded: bool = False


_LOG = (
    # -- GPU memory
    _Cause(
        # With "Actual usage is" it is an ordinary start's remark on --kv-cache-memory (gpu_worker.py).
        r"Free memory on device(?!.*Actual usage is).*(?:less than desired|Desired GPU memory utilization)",
        "Free GPU memory first (stop what else uses the GPU), or lower --gpu-memory-utilization.",
        crowded=True,
    ),
    _Cause(
        r"CUDA out of memory occurred when warming up",
        "Lower --max-num-seqs or --gpu-memory-utilization.",
        crowded=True,
    ),
    _Cause(
        r"(?:torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory)",
        "The model does not fit: lower --max-model-len, or use a smaller or quantized model.",
        crowded=True,
    ),
    _Cause(
        r"Error in memory profiling",
        "Something else used the GPU while the model started: start one model at a time.",
        crowded=True,
    ),
    _Cause(
        r"No available memory for the cache blocks",
        "Raise --gpu-memory-utilization, or lower --max-model-len.",
    ),
    _Cause(
        r"To serve at least one request with the models?'s max seq len.*estimated maximum model length is"
        r" (?P<most>[\d,]{1,12}\d)?",
        "Lower --max-model-len to {most} at most, or raise --gpu-memory-utilization.",
    ),
    _Cause(
        r"(?:To serve at least one request with the models?'s max seq len|the estimated maximum model length"
        r" is)",
        "Lower --max-model-len, or raise --gpu-memory-utilization.",
    ),
    _Cause(
        r"The model's max seq len .*stored in KV cache \((?P<most>\d{1,12})\)",
        "Lower --max-model-len to {most} at most, or raise --gpu-memory-utilization.",
    ),
    # -- other memory, and disks
    _Cause(
        r"Available memory on node .* less than requested memory",
        "Lower VLLM_CPU_KVCACHE_SPACE or --kv-cache-memory-bytes, or stop what else uses the memory.",
    ),
    _Cause(
        r"(?:Insufficient space in /dev/shm|No space left on device.*shm|shm.*No space left on device"
        r"|unable to (?:open|write to) (?:shared memory|file </torch_)|insufficient shared memory|Bus error)",
        "Give the container more shared memory: ipc: host, or shm_size.",
    ),
    _Cause(
        r"(?:No space left on device|[Nn]ot enough free disk space|Disk quota exceeded)",
        "The disk is full: docker system df shows what Docker takes, and the hub's cache holds old models.",
    ),
    # -- the model
    _Cause(
        # Of a model that is not there the hub says, too: "a private or gated repo, make sure ...".
        r"(?:gated repo(?!, make sure)|401 Client Error|403 Client Error.*huggingface"
        r"|Access to model .* is restricted)",
        "The model is gated: accept its licence on its page and set HF_TOKEN.",
    ),
    _Cause(
        r"is not a local folder and is not a valid model identifier",
        "Check the model's name, or set HF_TOKEN if it is private.",
    ),
    _Cause(
        # How the hub answers to the path of a folder that is not there.
        r"Repo id must be in the form 'repo_name' or 'namespace/repo_name'"
        r"|Invalid repository ID or local directory specified"
        r"|(?:RepositoryNotFoundError|404 Client Error.*huggingface|Repository Not Found)",
        "There is no such model: check its name, or its path (with a config.json) and the volume it lies on;"
        " if it is a private one, set HF_TOKEN.",
    ),
    _Cause(
        r"Cannot find any model weights|No (?:safetensors|model) weights? (?:files? )?found",
        "The model's folder has no weights that vLLM reads: see --load-format and its download.",
    ),
    _Cause(
        r"(?:SafetensorError: |config file at .* is not a valid JSON file)",
        "A file of the model is cut short or broken: download the model again.",
    ),
    _Cause(
        r"Couldn't instantiate the backend tokenizer",
        "The model's folder lacks its tokenizer: complete its download, or name one by --tokenizer.",
    ),
    _Cause(
        r"(?:supplied chat template .* doesn't exist|Loading lora .* failed: No adapter found)",
        "Check the path, and the volume that it lies on.",
    ),
    _Cause(
        r"(?:We couldn't connect to .*huggingface|Max retries exceeded with url.*huggingface"
        r"|(?:huggingface\.co|hf\.co).*(?:Max retries exceeded|Network is unreachable|timed out)"
        r"|name resolution|LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled"
        r"|cannot find the (?:requested files|appropriate snapshot folder))",
        "The model is in no cache here and cannot be downloaded: check its name, the network, the proxy and"
        " HF_HUB_OFFLINE, or mount a cache that has it.",
    ),
    _Cause(
        r"(?:[Pp]lease pass the argument `?trust_remote_code=True|requires you to execute the configuration"
        r" file|contains custom code which must be executed|set the option `?trust_remote_code)",
        "If you trust the model's own code, add --trust-remote-code.",
    ),
    _Cause(
        r"(?:Model architectures? .*(?:not supported|failed to be inspected)"
        r"|does not recognize this architecture|has no vLLM implementation)",
        "This vLLM does not know the model's kind: take a newer image.",
    ),
    _Cause(
        r"User-specified max_model_len (?:.*?derived max_model_len \(\w+=(?P<most>\d{1,12}))?",
        "Lower --max-model-len to {most} at most: the model was made for no more.",
    ),
    # -- quantisation and types
    _Cause(
        r"(?:Unknown quantization method|[Ii]nvalid quantization method|Quantization method specified in the"
        r" model config|Cannot find the config file for \w+)",
        "Remove --quantization (the model says what it is), or take an image whose vLLM knows the method.",
    ),
    _Cause(
        r"(?:install bitsandbytes|No module named 'bitsandbytes')",
        "This image has no bitsandbytes: take one that has, or a model that needs none (AWQ, GPTQ, FP8).",
    ),
    _Cause(
        r"quantization method .* is not supported for the current GPU",
        "The GPU is too old for this quantisation: take the model in another one, AWQ or GPTQ.",
    ),
    _Cause(
        r"quantization method .* is deprecated",
        "Take the model in another quantisation, or add --allow-deprecated-quantization.",
    ),
    _Cause(
        r"is not supported for quantization method .*dtypes: \[torch\.bfloat16\]",
        "Add --dtype bfloat16.",
    ),
    _Cause(
        r"(?:[Bb]float16 is only supported on GPUs|torch\.\w+ is not supported for quantization method)",
        "Add --dtype half.",
    ),
    _Cause(r"does not support float16", "Add --dtype bfloat16, or --dtype float32 on an old GPU."),
    _Cause(
        r"no kernel image is available for execution",
        "The image is not built for this GPU: take one for its generation (older or newer).",
    ),
    # -- flags and settings
    _Cause(
        r"(?:attention heads?|[Vv]ocab).{0,60} (?:must be|not) divisible by",
        "Choose a --tensor-parallel-size that divides the model's attention heads: 1, 2, 4 or 8.",
    ),
    _Cause(
        r"(?:World size .*is larger than the number of available GPUs"
        r"|tensor.parallel.size.*(?:exceeds|greater than|larger than).*GPU|invalid device ordinal)",
        "The container sees fewer GPUs than it shall use: lower --tensor-parallel-size, or give it more.",
    ),
    _Cause(r"Sleep mode is not supported on current platform", "Remove --enable-sleep-mode."),
    _Cause(
        r"(?:error: (?:unrecognized arguments|argument -|the following arguments are required|invalid choice"
        r"|ambiguous option)|--enable-auto-tool-choice requires|invalid tool call parser"
        r"|Reasoning parser .* not found|Load format .* is not supported)",
        "vLLM does not take this flag like that: check args, and that the image is of the right version.",
    ),
    _Cause(
        r"^\w+: Input should be ",
        "vLLM does not take this value: correct the flag of that name.",
    ),
    # -- the machine
    _Cause(
        r"(?:NVIDIA driver on your system is too old|driver version is insufficient|forward compatibility was"
        r" attempted|libcudart\.so[\d.]*: cannot open)",
        _DRIVER,
    ),
    _Cause(
        r"(?:No CUDA GPUs are available|Failed to infer device type|libcuda\.so\.1: (?:cannot open|file too)"
        r"|Found no NVIDIA driver|Device string must not be empty|NVML Shared Library Not Found)",
        "The container sees no GPU: install nvidia-container-toolkit and request the GPU.",
    ),
    _Cause(
        r"(?:[Aa]ddress already in use|EADDRINUSE)",
        "The port is taken where the server runs (network_mode: host: on the host): choose another --port.",
    ),
    _Cause(
        # Not "(errno: 99 - ...": with that PyTorch warns of a machine without IPv6.
        r"\[Errno 99\] Cannot assign requested address",
        "--host names no address of where the server runs: 0.0.0.0 is all of them.",
    ),
)

_REFUSALS = (
    _Cause(
        r"port is already allocated|address already in use|ports are not available",
        "Something else listens on a port that this container publishes; stop it or change the port.",
    ),
    _Cause(r"requirement error: unsatisfied condition", _DRIVER),
    _Cause(
        r"could not select device driver|nvidia-container|unknown (?:or invalid )?runtime|cdi device"
        r"|libnvidia-ml",
        _GPU_ACCESS,
    ),
    _Cause(
        r"toomanyrequests|pull rate limit", "The registry limits pulls: try again later, or `docker login`."
    ),
    _Cause(
        r"pull access denied|denied: (?:requested|permission_denied)|unauthorized|authentication required"
        r"|no basic auth",
        "Check the image's name; if it is private, `docker login` to its registry.",
    ),
    _Cause(
        r"manifest (?:for .* not found|unknown)|not found: manifest|name unknown|invalid reference format"
        r"|repository name must",
        "There is no such image: check its name and tag.",
    ),
    _Cause(
        r"no matching manifest for|exec format error",
        "The image is not made for this machine's processor: take one that is.",
    ),
    _Cause(
        r"no such host|dial tcp|i/o timeout|tls handshake|network is unreachable|connection reset"
        r"|temporary failure in name resolution|client\.timeout|context deadline exceeded",
        "Docker does not reach the registry: check the network, DNS and Docker's proxy settings.",
    ),
    _Cause(r"no space left|disk quota", "The disk is full: docker system df shows what takes the space."),
    _Cause(r"no such image", "Pull or build the image."),
    _Cause(
        r"executable file not found|no such file or directory|not a directory|mounts denied",
        "The command or a mounted path does not exist; check the image, its command and its volumes.",
    ),
    _Cause(
        r"network .*not found",
        "The network that it was created on is gone: create the container anew (docker compose up).",
    ),
    _Cause(r"memory", "Not enough memory for this container; check its limits."),
)


@cache
def _compiled(causes: tuple[_Cause, ...]) -> tuple[tuple[re.Pattern[str], _Cause], ...]:
    """Made when they are first needed: they take half a megabyte, and most proxies see no start fail."""
    return tuple((re.compile(cause.pattern), cause) for cause in causes)


_PREFIX = re.compile(
    r"^\s*(?:\([^)]*\)\s*)?(?:(?:DEBUG|CRITICAL|INFO|WARNING|ERROR)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?"
)

_BEGIN = ("vLLM API server version", "non-default args:")
"""What a run of vLLM writes first: a container's log holds its earlier runs as well."""

_POINTERS = (
    "See root cause above",
    "See stack trace",
    "For further information visit https://errors.pydantic",
)
"""What only points elsewhere is told when there is nothing else."""

_RAISED = re.compile(r"Value error, |[\w.]*(?:Error|Exception)(?:: |$)|\S.* \[type=\w+, input_value=")
"""A line by which Python, or pydantic, tells an error: warnings and ends of tracebacks stand below it."""

_FIELD = re.compile(r"^(\w+)\n(?=Input should be )", re.MULTILINE)
"""pydantic tells the setting in one line, and what is wrong with it in the next."""

_WRAPPING = re.compile(
    r"^Value error, | ?\[type=\w+, input_value=.*|^RuntimeError: Worker failed with error '"
    r"|', please check the stack trace above.*"
)
"""What pydantic and vLLM put around a message."""

LONGEST = 2000
"""Characters of a line that are searched."""

_GIST = 300
"""Characters of a log line that make a cause: enough for vLLM's longest message with its numbers."""


def diagnose(
    exit_code: int | None, oom: bool, log_tail: str, neighbours: Sequence[str] = ()
) -> tuple[str, str | None]:
    """What a start that ended most likely failed of.

    :param oom: the kernel killed it, or a part of it, for memory.
    :param log_tail: the last lines of its output.
    :param neighbours: what else runs on its GPUs.
    :return: the cause in one line, and a hint that names the fix (None when none is known).
    """
    if oom:
        # Whatever it wrote then is of those that were left.
        return "The kernel killed it for lack of memory.", (
            f"Give the container or the machine more memory. {_WSL}"
        )
    lines = _last_run(redact(log_tail, ()))
    for line in reversed(lines):
        for pattern, cause in _compiled(_LOG):
            found = pattern.search(line)
            if found is not None:
                return _gist(line, found.start()), _told(cause, found.groupdict(), neighbours)
    ended = _ENDS.get(exit_code) if exit_code is not None else None
    if ended is not None:
        return ended
    said = [line for line in lines if line]
    told = [line for line in said if not any(pointer in line for pointer in _POINTERS)] or said
    told = [line for line in told if _RAISED.match(line)] or told
    if exit_code == 0:
        return "It ended by itself before it answered.", (
            "Its command is no server, or it was told to end: look at its command and its log."
        )
    return (_gist(told[-1]), None) if told else ("It wrote no log.", None)


_ENDS: dict[int, tuple[str, str]] = {
    # 128 + signal, as Docker tells it.
    132: (
        "It crashed: its code needs instructions that this processor lacks (illegal instruction).",
        "Take an image that is built for an older processor.",
    ),
    134: ("It crashed (aborted).", "Look at the end of its log; try another version of the image."),
    135: ("It crashed (bus error).", "Give the container more shared memory: ipc: host, or shm_size."),
    137: (
        "It was killed.",
        f"Somebody stopped it, or the machine is short of memory (dmesg tells). {_WSL}",
    ),
    139: (
        "It crashed (segmentation fault).",
        "Try another version of the image, and check that the GPU's driver is as new as the image wants.",
    ),
    143: ("It was told to stop (TERM).", "Somebody stopped it; start it again."),
    125: ("Docker could not run it.", "Look at its log, and at docker inspect."),
    126: ("Its command cannot be executed.", "Check the command, and that the file may be executed."),
    127: ("There is no such command in it.", "Check the image and its command."),
}


def refusal_hint(said: str) -> str | None:
    """The fix for what a runtime says that does not start it or get its image; None: none is known."""
    text = said[:LONGEST].lower()
    for pattern, cause in _compiled(_REFUSALS):
        if pattern.search(text):
            return cause.hint
    return None


def _last_run(log: str) -> list[str]:
    bare = "\n".join(_PREFIX.sub("", line[:LONGEST]).strip() for line in re.split(r"[\r\n]+", log))
    lines = _FIELD.sub(r"\1: ", bare).split("\n")
    for number in range(len(lines) - 1, -1, -1):
        if any(begin in lines[number] for begin in _BEGIN):
            return lines[number:]
    return lines


def _told(cause: _Cause, found: dict[str, str | None], neighbours: Iterable[str]) -> str:
    most = found.get("most")
    hint = cause.hint.format(most=most) if most else cause.hint.replace(" to {most} at most", "")
    others = ", ".join(neighbours)
    return f"{hint} llmproxy runs there as well: {others}." if cause.crowded and others else hint


def _gist(line: str, sign: int = 0) -> str:
    """What is told of a line whose sign stands there."""
    line = (line[sign:] if sign > _GIST // 2 else line).strip()
    line = _WRAPPING.sub("", line).strip() or line
    return line if len(line) <= _GIST else line[:_GIST].rstrip() + "..."
