"""What is read from vLLM's command line and from its last words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.engines.flags import VllmFlags, read_command, read_flags
from llmproxy.engines.vllm import redact

TYPICAL = VllmFlags(
    model="org/m",
    served_model_names=("a", "b"),
    port=8001,
    gpu_memory_utilization=0.45,
    tensor_parallel_size=2,
    gpus=2,
    sleep_mode=True,
    max_model_len=32768,
)

FLAGS = (
    "--served-model-name a b --port=8001 --gpu_memory_utilization 0.45 --enable-sleep-mode "
    "--tensor-parallel-size 2 --max-model-len 32K"
)


@pytest.mark.parametrize(
    "args",
    [
        ("vllm", "serve", "org/m", *FLAGS.split()),
        ("/usr/bin/vllm", "serve", *FLAGS.replace(" --port", " --seed 1 --port").split(), "org/m"),
        (
            "vllm",
            "serve",
            "--enforce-eager",
            "org/m",
            *FLAGS.replace("--tensor-parallel-size", "-tp").split(),
        ),
        ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/m", *FLAGS.split()),
        ("org/m", *FLAGS.split()),
        ("--model=org/m", *FLAGS.split()),
        ("sh", "-c", f"vllm serve org/m {FLAGS}"),
        ("/bin/bash", "-lc", f"source /venv && exec vllm serve $MODEL {FLAGS}; echo 'it ended'"),
        ("tini", "--", "bash", "-ec", f"vllm serve ${{NONE:-org/m}} \\\n  {FLAGS}"),
        ("vllm", "serve", "org/m", *FLAGS.replace("utilization", "util").split()),
        ("vllm", "serve", "org/m", *FLAGS.replace("--tensor-parallel-size 2", "-tp=2").split()),
        ("/usr/bin/env", "A=b", "vllm", "serve", "org/m", *FLAGS.split()),
    ],
)
def test_all_forms_of_the_command_line(args: Sequence[str]) -> None:
    """The whole command, the module, flags alone and a shell's command are read alike."""
    assert read_flags(args, {"MODEL": "org/m"}) == TYPICAL


def test_the_compose_stacks_command_line() -> None:
    """The model may stand between the flags of the entrypoint and those of the command."""
    args = ["vllm", "serve", "--host", "0.0.0.0", "--dtype", "auto", "--max-num-seqs", "16"]
    flags = read_flags([*args, "Qwen/Qwen2.5", "--served-model-name=coder3b", "--port=8001"], {})
    assert (flags.model, flags.served_model_names, flags.port) == ("Qwen/Qwen2.5", ("coder3b",), 8001)


def test_what_is_not_said() -> None:
    """The served name is the model's own, and the rest is not known."""
    assert read_flags(["vllm", "serve", "/models/x"], {}) == VllmFlags("/models/x", ("/models/x",))
    assert read_flags(["llama-server", "-m", "model.gguf"], {}) == VllmFlags()
    assert read_flags([], {}) == VllmFlags()


def test_the_key() -> None:
    """The flag comes before the environment, and the key is not printed."""
    assert read_flags([], {"VLLM_API_KEY": "k-env"}).api_key == "k-env"
    flags = read_flags(["--api-key", "k-one", "k-two"], {"VLLM_API_KEY": "k-env"})
    assert flags.api_key == "k-one"
    assert "k-one" not in repr(flags)


@pytest.mark.parametrize(
    ("written", "tokens"), [("8192", 8192), ("32k", 32000), ("1.5k", 1500), ("auto", None)]
)
def test_lengths(written: str, tokens: int | None) -> None:
    """Lengths have vLLM's units: k is a thousand, K is 1024."""
    assert read_flags(["--max-model-len", written], {}).max_model_len == tokens


@pytest.mark.parametrize("flag", ["--port", "--gpu-memory-utilization", "--tensor-parallel-size"])
def test_wrong_values_are_left_out(flag: str) -> None:
    """A wrong flag is for vLLM to complain of."""
    assert read_flags([flag, "x"], {}) == read_flags([flag], {}) == VllmFlags()
    assert not read_flags(["--enable-sleep-mode", "--no-enable-sleep-mode"], {}).sleep_mode


@pytest.mark.parametrize(
    ("written", "gpus"),
    [
        ("", 1),
        ("-tp 2 -pp 2", 4),
        ("-tp=2 --pipeline_parallel_size=3", 6),
        ("-pcp 2 --tensor-parallel-size 2", 4),
        ("-tp 2 --data-parallel-size 4", 8),
        ("-tp 2 -dp 4 -dpl 2", 4),
        ("-dp 8 --data-parallel-rank 3 -tp 2", 2),
        ("-dp 2 --data-parallel-size-local 0", 0),
        ("-tp 0", 1),
        ("-tp x", 1),
    ],
)
def test_number_of_gpus(written: str, gpus: int) -> None:
    """Each worker that runs here has a GPU."""
    assert read_flags(["vllm", "serve", "m", *written.split()], {}).gpus == gpus


def test_memory_and_devices() -> None:
    """The other flags about GPUs are read, and those that are not vLLM's own."""
    written = (
        "--kv-cache-memory=25G --device cpu --device-ids 2,GPU-5 --gpu-memory-utilization-gb 96 "
        "--config /etc/vllm.yaml"
    )
    assert read_flags(written.split(), {}) == VllmFlags(
        kv_cache_memory=25 * 1024**3,
        device="cpu",
        device_ids=("2", "GPU-5"),
        gpu_memory_bytes=96 * 1024**3,
        config="/etc/vllm.yaml",
    )


@pytest.mark.parametrize(
    "args",
    [
        ("env", "CUDA_VISIBLE_DEVICES=1", "vllm", "serve", "m"),
        ("sh", "-c", "CUDA_VISIBLE_DEVICES=1 exec vllm serve m"),
        ("bash", "-lc", "cd /srv; export CUDA_VISIBLE_DEVICES=1 && vllm serve m"),
    ],
)
def test_what_a_command_sets_for_itself(args: Sequence[str]) -> None:
    """Variables that are set in front of the command belong to its environment."""
    words, environment = read_command(args, {"A": "b"})
    assert (words, environment) == (["vllm", "serve", "m"], {"A": "b", "CUDA_VISIBLE_DEVICES": "1"})


@given(st.lists(st.text()), st.dictionaries(st.text(), st.text()))
def test_any_command_line_is_read(args: list[str], environment: dict[str, str]) -> None:
    """Nothing that stands on a command line is an error."""
    read_flags(args, environment)
    read_flags(["sh", "-c", " ".join(args)], environment)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer XSECRETX",
        "authorization: bearer  XSECRETX.",
        "--api-key XSECRETX --port 1",
        "--api_key=XSECRETX",
        "api_key='XSECRETX'",
        "non-default args: {'api_key': ['XSECRETX'], 'port': 1}",
        '{"api_key": "XSECRETX y"}',
        "['--api-key', 'XSECRETX', '--port', '1']",
        "api_key=['XSECRETX with a blank']",
        "HF_TOKEN=XSECRETX",
        "token hf_XSECRETX.",
        "(sk-XSECRETX)",
    ],
)
def test_what_looks_like_a_secret_is_removed(text: str) -> None:
    """Keys and tokens are found by their shape, in flags, dictionaries, lists and headers."""
    shown = redact(text, ())
    assert "SECRET" not in shown
    assert "blank" not in shown
    assert "***" in shown
    assert redact(shown, ()).count("***") == shown.count("***")


def test_what_is_no_secret_stays() -> None:
    """Ordinary words are left as they are."""
    text = "task-forceabcdefgh ran at risk-adjusted rates: --port 8001, the half_lifetimes of bearers"
    assert redact(text, ("abc", "")) == text


@given(st.text(min_size=4), st.text(), st.text())
def test_known_secrets_are_removed(secret: str, before: str, after: str) -> None:
    """A known secret does not survive, whatever stands around it."""
    assert secret in "***" or secret not in redact(before + secret + after, [secret]).replace("***", "")


def test_the_parameters_of_a_script_are_its_command() -> None:
    """As in images whose entrypoint prepares something and then becomes what it was given."""
    script = 'mkdir -p /cache && exec "$@"'
    flags = read_flags(
        ["sh", "-c", script, "sh", "vllm", "serve", "m", "--gpu-memory-utilization", "0.4"], {}
    )
    assert (flags.model, flags.gpu_memory_utilization) == ("m", 0.4)
