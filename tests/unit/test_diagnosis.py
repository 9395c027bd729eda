"""What a failed start is told to be: the lines are those of vLLM, PyTorch, the hub and Docker themselves."""

from __future__ import annotations

import time

import pytest
from docker.errors import APIError, ImageNotFound
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.engines.diagnosis import diagnose, refusal_hint
from llmproxy.runtimes.docker_create import start_hint


def log(*lines: str) -> str:
    prefix = "(EngineCore pid=123) ERROR 11-23 09:15:10 [core.py:386] "
    return "".join(f"{prefix}{line}\n" for line in lines)


UPWARDS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            "ValueError: Free memory on device (1.2/23.7 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 21.3 GiB).",
            "Free GPU memory",
        ),
        (
            "Free memory on device (1.2/23.7 GiB) on startup. Desired GPU memory utilization is (0.9",
            "Free GPU memory",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "does not fit"),
        (
            "AssertionError: Error in memory profiling. Initial free memory 1, current free memory 2",
            "one model",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "Raise"),
        ("ValueError: To serve at least one request with the model's max seq len (32768), (4 GiB", "Lower"),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy"
            " requests. Please try"
            " lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
            "--max-num-seqs",
        ),
        (
            "To serve at least one request with the models's max seq len (40960), (5.62 GiB KV cache"
            " is needed, which"
            " is larger than the available KV cache memory (4.50 GiB). Based on the available"
            " memory, the estimated"
            " maximum model length is 32768. Try increasing `gpu_memory_utilization`",
            "--max-model-len to 32768 at most",
        ),
        (
            "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens"
            " that can be"
            " stored in KV cache (22032). Try increasing `gpu_memory_utilization` or decreasing"
            " `max_model_len`",
            "--max-model-len to 22032 at most",
        ),
        (
            "  Value error, User-specified max_model_len (65536) is greater than the derived max_model_len"
            " (max_position_embeddings=32768.0 or model_max_length=None in model's config.json).",
            "--max-model-len",
        ),
        ("RuntimeError: Insufficient space in /dev/shm", "shared memory"),
        ("ERROR: Unexpected bus error encountered in worker. insufficient shared memory (shm).", "shm_size"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", "shared memory"),
        (
            "UserWarning: Not enough free disk space to download the file. The expected file size"
            " is: 4976.70 MB.",
            "disk",
        ),
        ("OSError: [Errno 98] Address already in use", "--port"),
        ("OSError: x/y is not a local folder and is not a valid model identifier", "name"),
        (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or"
            " 'namespace/repo_name': '/no/such/model'. Use `repo_type` argument if needed.",
            "no such model",
        ),
        ("  Value error, Invalid repository ID or local directory specified: '/m'", "no such model"),
        ("You are trying to access a gated repo.", "HF_TOKEN"),
        (
            "Access to model meta-llama/Llama-3.1-8B is restricted. You must have access to it and be"
            " authenticated to access it. Please log in.",
            "licence",
        ),
        (
            "401 Client Error: Unauthorized for url: https://huggingface.co/org/m/resolve/main/config.json",
            "HF_TOKEN",
        ),
        (
            "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1-6)",
            "no such model",
        ),
        ("RuntimeError: Cannot find any model weights with `/models/m`", "--load-format"),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and"
            " couldn't find them in"
            " the cached files.",
            "network",
        ),
        (
            "HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url:"
            " /o/m/config.json"
            " (Caused by NewConnectionError('Temporary failure in name resolution'))",
            "network",
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to"
            " locate the file on"
            " the Hub and we cannot find the requested files in the local cache.",
            "cache",
        ),
        (
            "  Value error, The repository org/m contains custom code which must be executed to"
            " correctly load the"
            " model. Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
            "--trust-remote-code",
        ),
        (
            "ValueError: Model architectures ['NewForCausalLM'] are not supported for now.",
            "newer image",
        ),
        (
            "The checkpoint you are trying to load has model type `new` but Transformers does not"
            " recognize this"
            " architecture.",
            "newer image",
        ),
        (
            "  Value error, Unknown quantization method: nope. Must be one of ['awq', 'fp8', 'gptq'].",
            "--quantization",
        ),
        (
            "ValueError: Quantization method specified in the model config (fp8) does not match the"
            " quantization"
            " method specified in the `quantization` argument (gguf).",
            "--quantization",
        ),
        (
            "ImportError: Please install bitsandbytes>=0.45.3 via `pip install bitsandbytes>=0.45.3` to use"
            " bitsandbytes quantizer.",
            "bitsandbytes",
        ),
        (
            "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum"
            " capability: 89."
            " Current capability: 86.",
            "too old",
        ),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0."
            " Your Tesla T4"
            " GPU has compute capability 7.5. You can use float16 instead",
            "--dtype half",
        ),
        (
            "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes:",
            "--dtype half",
        ),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "generation"),
        (
            "  Value error, Total number of attention heads (28) must be divisible by tensor"
            " parallel size (8).",
            "--tensor-parallel-size",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please"
            " update your",
            "driver",
        ),
        ("api_server.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto')", "flag"),
        ("api_server.py: error: unrecognized arguments: --nope", "flag"),
        ("RuntimeError: No CUDA GPUs are available", "GPU"),
        ("RuntimeError: Failed to infer device type", "GPU"),
        ("Value error, Sleep mode is not supported on current platform.", "--enable-sleep-mode"),
        (
            "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len"
            " (max_position_embeddings=8192.0 or model_max_length=None in model's config.json).",
            "--max-model-len to 8192 at most",
        ),
        ("  Value error, Cannot find the config file for awq", "Remove --quantization"),
        (
            "  Value error, torch.float32 is not supported for quantization method mxfp4. Supported dtypes:"
            " [torch.bfloat16]",
            "--dtype bfloat16",
        ),
        (
            "  Value error, ('The quantization method %s is deprecated and will be removed in future versions"
            " of vLLM. To bypass, set `--allow-deprecated-quantization`.', 'fp_quant')",
            "--allow-deprecated-quantization",
        ),
        (
            "ValueError: Available memory on node 0 (12.69/14.59 GiB) on kv cache allocation is less than"
            " requested memory for kv (100.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE,"
            " or reduce CPU memory used by other processes.",
            "Lower VLLM_CPU_KVCACHE_SPACE",
        ),
        (
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete"
            " metadata, file not fully covered",
            "download the model again",
        ),
        (
            "OSError: It looks like the config file at '/models/tiny/config.json' is not a valid JSON file.",
            "download the model again",
        ),
        (
            "vllm.exceptions.VLLMValidationError: The supplied chat template string (/no/such/template.jinja)"
            " appears path-like, but doesn't exist! Tried: /no/such/template.jinja and"
            " /no/such/template.jinja (parameter=chat_template)",
            "Check the path",
        ),
        ("ValueError: Loading lora a failed: No adapter found for /no/such/lora", "Check the path"),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot"
            " folder for the specified revision on the local disk and outgoing traffic has been disabled.",
            "HF_HUB_OFFLINE",
        ),
        ("TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser", "check args"),
        ("KeyError: 'invalid tool call parser: zork (chose from { hermes,internlm })'", "check args"),
        ("KeyError: \"Reasoning parser 'zork' not found. Available parsers: qwen3\"", "check args"),
        ("ValueError: Load format `zork` is not supported", "check args"),
        ("OSError: [Errno 99] Cannot assign requested address", "--host"),
    ],
)
def test_known_causes(line: str, hint: str) -> None:
    """The line that tells the cause is found above the last words, without its prefix, and has a hint."""
    cause, found = diagnose(1, False, log("starting", line, "at exit", UPWARDS))
    assert cause in line
    assert len(cause) > 10
    assert found is not None
    assert hint in found


PYDANTIC = "    For further information visit https://errors.pydantic.dev/2.14/v/"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (
            "gpu_memory_utilization",
            "Input should be less than or equal to 1 [type=less_than_equal, input_value=1.5,"
            " input_type=float]",
        ),
        (
            "max_num_seqs",
            "Input should be greater than or equal to 1 [type=greater_than_equal, input_value=0,"
            " input_type=int]",
        ),
    ],
)
def test_a_setting_that_is_out_of_its_bounds_is_named(field: str, said: str) -> None:
    """Its name, which stands in the line above, is told with what is wrong with it."""
    error = "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig"
    tail = "\n".join([error, field, f"  {said}", f"{PYDANTIC}less_than_equal"])
    cause, hint = diagnose(1, False, tail)
    assert cause == f"{field}: {said.partition(' [type')[0]}"
    assert hint is not None
    assert "flag of that name" in hint


def test_a_tokenizer_that_is_missing() -> None:
    """The first of its lines is the cause."""
    tail = (
        "ValueError: Couldn't instantiate the backend tokenizer from one of: \n"
        "(1) a `tokenizers` library serialization file, \n"
        "(2) a slow tokenizer instance to convert or \n"
        "(3) an equivalent slow tokenizer class to instantiate and convert. \n"
        "You need to have sentencepiece or tiktoken installed to convert a slow tokenizer to a fast one.\n"
    )
    cause, hint = diagnose(1, False, tail)
    assert cause == "ValueError: Couldn't instantiate the backend tokenizer from one of:"
    assert hint is not None
    assert "--tokenizer" in hint


def test_what_is_put_around_a_message_is_not_told() -> None:
    """Nor is pydantic's pointer to its own pages, below an error that nobody knows."""
    value_error = (
        "  Value error, invalid literal for int() with base 10: 'many' [type=value_error,"
        " input_value=ArgsKwargs((), {'model_co... 'shutdown_timeout': 0}), input_type=ArgsKwargs]"
    )
    head = "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig"
    tail = "\n".join([head, value_error, f"{PYDANTIC}value_error"])
    assert diagnose(1, False, tail) == ("invalid literal for int() with base 10: 'many'", None)
    short = "Available memory on node 0 (1.2/14.59 GiB) on kv cache allocation is less than requested memory"
    around = (
        f"RuntimeError: Worker failed with error '{short} for kv (9.0 GiB).', please check the stack trace"
        " above for the root cause"
    )
    assert diagnose(1, False, log(around, UPWARDS))[0] == f"{short} for kv (9.0 GiB)."


def test_an_unknown_error_of_a_worker_is_found_above_what_came_of_it() -> None:
    """The error is told, and neither what the other processes made of it nor the warnings at the end."""
    worker = "RuntimeError: start (0) + length (256) exceeds dimension size (128)."
    came_of_it = (
        "Exception: WorkerProc initialization failed due to an exception in a background process. See stack"
        " trace for root cause."
    )
    tail = (
        log("WorkerProc failed to start.", "    raise e", worker, "")
        + log("EngineCore failed to start.", "    raise e from None", came_of_it)
        + f"Process EngineCore:\n    raise e from None\n{came_of_it}\n"
        + f"    wait_for_engine_startup(\n    raise RuntimeError(\n{UPWARDS}\n"
        + "multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1"
        " leaked shared_memory objects to clean up at shutdown\n"
        "  warnings.warn('resource_tracker: There appear to be %d '\n"
    )
    assert diagnose(1, False, tail) == (worker, None)
    assert diagnose(1, False, " [type=value_error, input_value=1]") == (
        "[type=value_error, input_value=1]",
        None,
    )


def test_a_warning_about_a_machine_without_ipv6_is_no_cause() -> None:
    """PyTorch's own words for it are like those of an address that cannot be bound."""
    warning = (
        "[W socket.cpp:200] The client socket has failed to connect to [localhost]:29500 (errno: 99 - Cannot"
        " assign requested address)."
    )
    assert diagnose(1, False, log(warning, "ValueError: something else"))[0] == "ValueError: something else"


def test_unknown_causes() -> None:
    """Otherwise the last line says it, or the way it ended does."""
    assert diagnose(1, False, log("it broke", UPWARDS) + "\n\n") == ("it broke", None)
    assert diagnose(1, False, log(UPWARDS)) == (UPWARDS, None)
    assert diagnose(3, False, "\n") == ("It wrote no log.", None)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (0, "by itself"),
        (126, "cannot be executed"),
        (127, "no such command"),
        (132, "illegal instruction"),
        (134, "aborted"),
        (135, "bus error"),
        (137, "killed"),
        (139, "segmentation fault"),
        (143, "TERM"),
    ],
)
def test_how_it_ended_tells_where_the_log_does_not(code: int, cause: str) -> None:
    """An exit status that has a meaning has a fix, too; a cause in the log counts more."""
    for last in ("", log("loading")):
        told, hint = diagnose(code, False, last)
        assert cause in told
        assert hint is not None
    assert "CUDA out of memory" in diagnose(code, False, log("CUDA out of memory. Tried"))[0]


def test_what_the_kernel_killed_lacked_memory() -> None:
    """Whatever those wrote that were left."""
    cause, hint = diagnose(1, True, log("OSError: [Errno 98] Address already in use", UPWARDS))
    assert cause == "The kernel killed it for lack of memory."
    assert hint is not None
    assert "more memory" in hint


def test_others_on_the_gpu_are_named() -> None:
    """Where it is its memory that is short, and there are any."""
    full = log("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    _, hint = diagnose(1, False, full, ("chat", "coder"))
    assert hint is not None
    assert hint.endswith("llmproxy runs there as well: chat, coder.")
    assert "as well" not in (diagnose(1, False, full)[1] or "")
    assert "as well" not in (
        diagnose(1, False, log("error: unrecognized arguments: --x"), ("chat",))[1] or ""
    )


def test_an_earlier_run_in_the_same_log_says_nothing() -> None:
    """It ends where the last one begins."""
    begin = "INFO 11-23 09:15:10 [utils.py:233] non-default args: {'model': 'm'}"
    lines = log("torch.OutOfMemoryError: CUDA out of memory") + begin + "\n" + log("something new")
    assert diagnose(1, False, lines) == ("something new", None)


def test_a_long_line_is_told_from_its_sign_on() -> None:
    """And is not searched beyond what any message has, however often it seems to begin."""
    cause, _ = diagnose(1, False, "x" * 500 + " CUDA out of memory. Tried to allocate")
    assert cause.startswith("CUDA out of memory")
    began = time.process_time()
    for piece in (
        "Free memory on device ",
        "shm ",
        "Access to model ",
        "Model architectures ",
        "huggingface.co ",
        "User-specified max_model_len ",
        "quantization method ",
        "x",
    ):
        diagnose(1, False, "\n".join([piece * 20_000] * 20))
    assert time.process_time() - began < 10


@given(st.none() | st.integers(-1, 300), st.booleans(), st.text(), st.lists(st.text(), max_size=2))
def test_any_end_has_a_cause(code: int | None, oom: bool, tail: str, others: list[str]) -> None:
    """A line for a person, whatever was written."""
    cause, hint = diagnose(code, oom, tail, others)
    assert cause
    assert "\n" not in cause
    assert hint is None or hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "driver failed programming external connectivity on endpoint coder3b (1f): Bind for"
            " 0.0.0.0:8001 failed:"
            " port is already allocated",
            "listens",
        ),
        ('could not select device driver "" with capabilities: [[gpu]]', "Container Toolkit"),
        (
            "OCI runtime create failed: container_linux.go:380: starting container process caused:"
            " process_linux.go:545: container init caused: Running hook #0:: error running hook:"
            " exit status 1,"
            " stdout: , stderr: nvidia-container-cli: initialization error: nvml error: driver not"
            " loaded: unknown",
            "nvidia-smi",
        ),
        (
            "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please"
            " update your driver",
            "driver",
        ),
        ("failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all", "Container Toolkit"),
        ("unknown or invalid runtime name: nvidia", "Container Toolkit"),
        (
            "pull access denied for org/x, repository does not exist or may require 'docker login': denied:"
            " requested access to the resource is denied",
            "docker login",
        ),
        ("manifest for vllm/vllm-openai:nope not found: manifest unknown: manifest unknown", "tag"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "processor"),
        (
            "toomanyrequests: You have reached your unauthenticated pull rate limit.",
            "later",
        ),
        (
            'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on'
            " 127.0.0.53:53: no such"
            " host",
            "network",
        ),
        ("failed to register layer: write /x: no space left on device", "disk"),
        ("No such image: x:latest", "image"),
        ('exec: "vlm": executable file not found in $PATH: unknown', "command"),
        ("network 0123 not found", "network"),
        ("Minimum memory limit allowed is 6MB", "memory"),
    ],
)
def test_what_docker_refuses(said: str, hint: str) -> None:
    """It has a fix, whether a container is created or started, or its image pulled."""
    assert hint in (refusal_hint(said) or "")
    assert start_hint(said, APIError(said)) == refusal_hint(said)


def test_other_refusals() -> None:
    """An image that is missing is known by its kind of error; of what nobody knows nothing is said."""
    assert start_hint("404", ImageNotFound("404")) == "Pull or build the image."
    assert start_hint("something else") is None


def test_a_cause_is_short_and_has_no_secret() -> None:
    """A cause goes to clients."""
    cause, _ = diagnose(1, False, log("token hf_abcdefghijkl " + "x" * 1000))
    assert "hf_" not in cause
    assert len(cause) < 310


def test_the_last_run_counts() -> None:
    """A container's log holds its earlier runs as well."""
    lines = ("torch.OutOfMemoryError: CUDA", "No available memory for the cache blocks 1", "shutting down")
    assert diagnose(1, False, log(*lines))[0] == lines[1]


def test_the_remark_of_an_ordinary_start_is_no_cause() -> None:
    """vLLM tells what memory it has used in words like those of a GPU that is full."""
    remark = (
        "INFO 11-23 09:15:10 [gpu_worker.py:400] Free memory on device (22.1/23.7 GiB) on startup. Desired"
        " GPU memory utilization is (0.9, 21.3 GiB). Actual usage is 5.2 GiB for weight. Replace"
        " gpu_memory_utilization config with `--kv-cache-memory=1`"
    )
    cause, hint = diagnose(1, False, f"{remark}\nValueError: something else")
    assert (cause, hint) == ("ValueError: something else", None)
