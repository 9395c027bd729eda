"""LiteLLM through the proxy: the library, and its own proxy in front of ours.

It lives in a virtual environment of its own (``scripts/litellm.sh``); without one these tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import anthropic
import openai
import pytest
import yaml
from attrs import frozen

from tests.integration.clients import HELLO, WORDS, cold, serving
from tests.integration.proxy import KEY, Proxy
from tests.integration.world import ROOT, until

VENV = Path(os.environ.get("LITELLM_VENV") or "/var/tmp/llmproxy-ci/litellm")
MASTER = "sk-master-key-for-tests"
ROUTES = ("a", "beats", "late", "broken", "slow")


@pytest.fixture(scope="module")
def venv() -> Path:
    """Where LiteLLM is."""
    if not (VENV / ".version").exists():
        why = f"no LiteLLM in {VENV}: scripts/litellm.sh DIR makes one, LITELLM_VENV=DIR says where"
        if os.environ.get("LLMPROXY_REQUIRE_LITELLM"):
            pytest.fail(why)
        pytest.skip(why)
    return VENV


def environment(folder: Path) -> dict[str, str]:
    """A small environment, in which it asks nobody elsewhere for prices."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="module")
def proxy(kind: str, venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """See :func:`tests.integration.clients.backends`."""
    with serving(kind, tmp_path_factory.mktemp("clients")) as proxy:
        yield proxy


# -- the library ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(proxy: Proxy, front: Front) -> dict[str, Any]:
    """What became of the library's calls: see :mod:`tests.integration.litellm_calls`."""
    return front.told.result(60)


WORKS = ("cold stream", "cold", "warm stream", "response", "message")


@pytest.mark.parametrize("call", WORKS)
def test_library(told: dict[str, Any], call: str) -> None:
    """Whole and streamed answers, of the three APIs, cold and warm."""
    assert HELLO in told[call].get("answer", told[call])


def test_library_embedding(told: dict[str, Any]) -> None:
    """Embeddings are numbers."""
    assert sum(number**2 for number in told["embedding"]["answer"]) == pytest.approx(1)


def test_library_async(told: dict[str, Any]) -> None:
    """Many asynchronous calls at once."""
    for number, text in enumerate(told["many"]["answer"]):
        assert text.startswith(f"You said: number {number}\n")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("broken", "ServiceUnavailableError", "the last words"),
        ("unknown", "NotFoundError", "does not exist"),
        ("full", "RateLimitError", "are waiting"),
        # Those of streams that had begun; a router falls back to another model then.
        ("late", "MidStreamFallbackError", "exit status 3"),
        ("dies", "MidStreamFallbackError", "broke its answer off"),
    ],
)
def test_library_errors(told: dict[str, Any], call: str, error: str, says: str) -> None:
    """Every failure is LiteLLM's own exception of that kind, with the cause in its message."""
    assert told[call]["error"] == error
    assert says in told[call]["message"]


# -- its proxy ------------------------------------------------------------------------------------


@frozen
class Front:
    """LiteLLM's proxy, and what the library's calls were meanwhile.

    :ivar url: where it listens.
    """

    url: str
    told: Future[dict[str, Any]]


def library(proxy: Proxy, venv: Path) -> dict[str, Any]:
    """Make the library's calls while a request waits for the backend that has room for one."""
    with proxy.wire() as waits:
        waits.post("/slow/v1/completions", b"{}")
        proxy.until_waiting("slow", 1)
        done = subprocess.run(
            [
                str(venv / "bin" / "python"),
                str(ROOT / "tests" / "integration" / "litellm_calls.py"),
                f"http://127.0.0.1:{proxy.port}",
                KEY,
            ],
            env=environment(proxy.folder),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-5000:]
    # It prints advice when a call fails.
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def front(proxy: Proxy, venv: Path) -> Iterator[Front]:
    """LiteLLM's proxy in front of ours; it takes seconds to start, in which the library's calls are made."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = {"api_base": f"http://127.0.0.1:{proxy.port}/v1", "api_key": KEY}
    models = [
        {"model_name": route, "litellm_params": {"model": f"openai/{route}-model", **target}}
        for route in ROUTES
    ]
    settings = {
        "model_list": models,
        "general_settings": {"master_key": MASTER},
        "router_settings": {"num_retries": 0},
    }
    file, log = proxy.folder / "litellm.yaml", proxy.folder / "litellm.log"
    file.write_text(yaml.safe_dump(settings))
    with open(log, "wb") as output, ThreadPoolExecutor(1) as pool:
        process = subprocess.Popen(
            [
                str(venv / "bin" / "litellm"),
                "--config",
                str(file),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ],
            env=environment(proxy.folder),
            cwd=proxy.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            told = pool.submit(library, proxy, venv)
            opener = build_opener(ProxyHandler({}))

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    with opener.open(f"http://127.0.0.1:{port}/health/liveliness", timeout=5) as answer:
                        return bool(answer.status == 200)
                except (URLError, ConnectionError):
                    return False

            until(answers, 60, 0.1)
            told.exception(60)
            yield Front(f"http://127.0.0.1:{port}", told)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            print(f"--- the log of LiteLLM's proxy\n{log.read_text()[-20_000:]}")


@pytest.fixture
def client(front: Front) -> Iterator[openai.OpenAI]:
    """OpenAI's client of LiteLLM's proxy."""
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=MASTER, max_retries=0, timeout=20) as client:
        yield client


def streamed(client: openai.OpenAI, model: str) -> str:
    """The text of a streamed chat completion."""
    stream = client.chat.completions.create(model=model, messages=WORDS, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_front_cold_and_warm(proxy: Proxy, client: openai.OpenAI) -> None:
    """Two proxies in a row: whole and streamed, cold and warm, and with heartbeats between the two."""
    cold(proxy)
    answer = client.chat.completions.create(model="a", messages=WORDS)
    text = answer.choices[0].message.content or ""
    assert HELLO in text
    assert streamed(client, "a") == text
    cold(proxy, "beats")
    assert HELLO in streamed(client, "beats")


def test_front_messages(proxy: Proxy, front: Front) -> None:
    """Anthropic's client of LiteLLM's proxy, which speaks another API with ours."""
    cold(proxy)
    with anthropic.Anthropic(base_url=front.url, api_key=MASTER, max_retries=0, timeout=20) as client:
        message = client.messages.create(model="a", max_tokens=200, messages=WORDS)
    assert HELLO in "".join(block.text for block in message.content if block.type == "text")


def test_front_errors(proxy: Proxy, client: openai.OpenAI) -> None:
    """Our refusals come through with their status and cause."""
    proxy.act("broken", "reset")
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="broken", messages=WORDS)
    assert failed.value.status_code == 503
    assert "the last words" in failed.value.message
    with proxy.wire() as waits:
        waits.post("/slow/v1/completions", b"{}")
        proxy.until_waiting("slow", 1)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="slow", messages=WORDS)
    proxy.until_waiting("slow", 0)
    proxy.act("late", "reset")
    with pytest.raises(openai.APIError) as late:
        streamed(client, "late")
    assert "exit status 3" in late.value.message
