"""Clients that try again by themselves: told by Retry-After when, they get through with no error seen."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import anthropic
import openai

from tests.integration.clients import HELLO, WORDS, curl, stumbling
from tests.integration.conftest import Launch
from tests.integration.proxy import KEY, Proxy, at_once, demo


def of_openai(proxy: Proxy, model: str) -> str:
    """A chat completion; two retries are its default."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY) as client:
        answer = client.chat.completions.create(model=model, messages=WORDS)
    return answer.choices[0].message.content or ""


def of_openai_streaming(proxy: Proxy, model: str) -> str:
    """A streamed chat completion."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY) as client:
        stream = client.chat.completions.create(model=model, messages=WORDS, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def of_anthropic(proxy: Proxy, model: str) -> str:
    """A message; two retries are its default."""
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{proxy.port}", api_key=KEY) as client:
        message = client.messages.create(model=model, messages=WORDS, max_tokens=100)
    return "".join(block.text for block in message.content if block.type == "text")


def of_curl(proxy: Proxy, model: str) -> str:
    """``curl --retry 2``."""
    url = f"http://127.0.0.1:{proxy.port}/v1/chat/completions"
    fields = ("-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json")
    body = json.dumps({"model": model, "messages": WORDS})
    done: subprocess.CompletedProcess[str] = curl("--retry", "2", "-f", *fields, "-d", body, url)
    assert done.returncode == 0, done
    return str(json.loads(done.stdout)["choices"][0]["message"]["content"])


CLIENTS: list[Callable[[Proxy, str], str]] = [of_openai, of_openai_streaming, of_anthropic, of_curl]


def test_retries(launch: Launch, tmp_path: Path) -> None:
    """A start that failed (503), and a wait that was too long (504), are behind the client after its own
    retries; they come when they were told to and not before."""
    proxy = launch(
        {
            "stumbles": stumbling(tmp_path, "0.1"),
            "waits": demo("--start-delay", "0.7", max_wait="0.3s"),
        }
    )

    def one(number: int) -> float:
        began = time.monotonic()
        client = [*CLIENTS, of_openai][number]
        assert HELLO in client(proxy, "waits-model" if number == len(CLIENTS) else "stumbles-model")
        return time.monotonic() - began

    *stumbled, _ = at_once(len(CLIENTS) + 1, one)
    assert all(4.5 < took < 15 for took in stumbled), stumbled  # the cool-down, and not half a second
    assert (proxy.world.starts("stumbles"), proxy.world.starts("waits")) == (1, 1)
