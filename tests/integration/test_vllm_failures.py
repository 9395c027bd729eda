"""What a held client is told when a real vLLM on the CPU does not start (``make test-vllm``).

Each case is a backend of one proxy, and a start that fails, most within ten seconds: vLLM has no engine then.
A flag and a folder that are not there are cases of ``test_vllm.py``.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen
from openai import InternalServerError, OpenAI

from tests.integration.proxy import KEY, Proxy
from tests.integration.tiny_model import CONTEXT, make_tiny_model
from tests.integration.vllm_world import BACKEND_KEY, VllmWorld, find_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PATIENCE = 240.0
"""Seconds that a start may take on a slow and busy machine."""

Damage = Callable[[Path], None]


def change(**settings: object) -> Damage:
    """Put that into the model's config.json."""

    def do(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return do


def lose(*names: str) -> Damage:
    """Remove files of the model."""

    def do(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return do


def cut(folder: Path) -> None:
    """Leave the first half of the model's weights."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@frozen
class Case:
    """A start that fails.

    :ivar cause: what the line has that tells the client why; ``{model}`` is the model's folder.
    :ivar hint: what the line has that tells what helps.
    :ivar damage: what is wrong with a model of its own.
    :ivar model: the name of a model in place of a folder.
    """

    cause: str
    hint: str
    flags: tuple[str, ...] = ()
    damage: Damage | None = None
    model: str | None = None
    exit_status: int = field(default=1, kw_only=True)


LARGE = {"num_hidden_layers": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072}
"""A model whose context takes 2 GiB, where the backends of these tests have one."""
FOREIGN = {
    "model_type": "zork",
    "architectures": ["ZorkForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_zork.ZorkConfig"},
}

CASES = {
    "quantisation-unknown": Case(
        "Unknown quantization method: nope", "Remove --quantization", ("--quantization", "nope")
    ),
    "quantisation-unfit": Case(
        "Cannot find the config file for awq", "Remove --quantization", ("--quantization", "awq")
    ),
    "quantisation-dtype": Case(
        "torch.float32 is not supported for quantization method mxfp4",
        "--dtype bfloat16",
        damage=change(quantization_config={"quant_method": "mxfp4"}),
    ),
    "dtype": Case("argument --dtype: invalid choice: 'float7'", "flag", ("--dtype", "float7"), exit_status=2),
    "bounds": Case(
        "gpu_memory_utilization: Input should be less than or equal to 1",
        "flag of that name",
        ("--gpu-memory-utilization", "1.5"),
    ),
    "tools": Case(
        "--enable-auto-tool-choice requires --tool-call-parser", "check args", ("--enable-auto-tool-choice",)
    ),
    "context": Case(
        "User-specified max_model_len (100000) is greater",
        f"Lower --max-model-len to {CONTEXT} at most",
        ("--max-model-len", "100000"),
    ),
    "kv-cache": Case(
        "2.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB)",
        "Lower --max-model-len to 65408 at most",
        ("--load-format", "dummy", "--max-model-len", "131072", "--hf-overrides", json.dumps(LARGE)),
    ),
    "template": Case(
        "The supplied chat template string (/no/such.jinja)",
        "Check the path",
        ("--chat-template", "/no/such.jinja"),
    ),
    "name": Case("outgoing traffic has been disabled", "check its name, the network", model="no-such/model"),
    "folder-empty": Case(
        "Invalid repository ID or local directory specified: '{model}'",
        "There is no such model",
        damage=lose("config.json"),
    ),
    "kind-unknown": Case(
        "has model type `zork`", "does not know the model's kind", damage=change(model_type="zork")
    ),
    "code-of-its-own": Case("trust_remote_code=True", "--trust-remote-code", damage=change(**FOREIGN)),
    "tokenizer": Case(
        "Couldn't instantiate the backend tokenizer",
        "lacks its tokenizer",
        damage=lose("tokenizer.json", "tokenizer_config.json"),
    ),
    "weights": Case("Error while deserializing header", "download the model again", damage=cut),
}


@frozen
class Failures:
    """A proxy whose backends cannot start, each named as its case."""

    proxy: Proxy
    world: VllmWorld
    folder: Path
    request: pytest.FixtureRequest

    def refused(self, route: str) -> tuple[str, str]:
        """Start it by a request; the lines that tell the client why it failed, and what helps."""
        began = time.monotonic()
        base = f"http://127.0.0.1:{self.proxy.port}/v1"
        with (
            OpenAI(base_url=base, api_key=KEY, timeout=PATIENCE, max_retries=0) as client,
            pytest.raises(InternalServerError) as refusal,
        ):
            client.completions.create(model=route, prompt="a", max_tokens=1)
        took = time.monotonic() - began
        answer, error = refusal.value.response, refusal.value.body
        assert isinstance(error, dict)
        first, hint = str(error["message"]).splitlines()[0], str(error["hint"])
        plugins = self.request.config.pluginmanager
        with plugins.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n    {route}: refused after {took:.1f} s: {first[:200]!r} ({hint})", end="", flush=True)
        assert (answer.status_code, error["code"]) == (503, "backend_start_failed")
        assert error["backend"] == route
        assert int(answer.headers["retry-after"]) > 0
        assert BACKEND_KEY not in answer.text
        assert "\n" not in hint
        assert not self.world.is_running(route)
        return first, hint


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Somebody who has a port, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken


@pytest.fixture(scope="module")
def failures(
    request: pytest.FixtureRequest, listener: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Failures]:
    """A proxy with a backend for each case, and one whose port is taken."""
    folder, home = tmp_path_factory.mktemp("vllm-failures"), tmp_path_factory.getbasetemp() / "vllm-home"
    home.mkdir(exist_ok=True)
    make_tiny_model(folder / "model")
    world = VllmWorld("process", folder, find_vllm(), folder / "model", home)
    backends: dict[str, dict[str, Any]] = {"port": world.spec("port", port=listener.getsockname()[1])}
    for name, case in CASES.items():
        settings = {"model": case.model} if case.model else {}
        if case.damage is not None:
            make_tiny_model(folder / name)
            case.damage(folder / name)
            settings["model"] = str(folder / name)
        backends[name] = world.spec(name, "--served-model-name", name, *case.flags, **settings)
    proxy = Proxy(folder, world)
    try:
        proxy.configure(backends)
        proxy.start()
        yield Failures(proxy, world, folder, request)
    finally:
        proxy.close()


@pytest.mark.parametrize("name", CASES)
def test_a_client_is_told_why_and_what_helps(failures: Failures, name: str) -> None:
    """The refusal has the cause in its first line, and in its hint the fix."""
    case = CASES[name]
    told, hint = failures.refused(name)
    assert told.startswith(f"The backend ended while it started (exit status {case.exit_status}): ")
    assert case.cause.format(model=failures.folder / name) in told
    assert case.hint in hint
    assert "input_value" not in told, "pydantic's words around the message are left out"


def test_a_port_that_is_taken_is_told(failures: Failures) -> None:
    """Whoever listens on a backend's port is not taken for it, and the port is told to be the cause."""
    told, hint = failures.refused("port")
    assert told.endswith("[Errno 98] Address already in use")
    assert "--port" in hint
