"""Keys of a real proxy: given out by the command, held to their limits, kept over a kill, taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.proxy import ADMIN, KEY, Proxy, chat, demo, running


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Two backends that are quickly ready."""
    with running(kind, tmp_path_factory.mktemp("keys"), {"a": demo(), "b": demo()}) as proxy:
        yield proxy


def llmproxy(proxy: Proxy, *arguments: str, status: int = 0, key: str = ADMIN) -> str:
    """The command's standard output."""
    environment = {
        "PATH": os.environ["PATH"],
        "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}",
        "LLMPROXY_ADMIN_KEY": key,
    }
    command = [str(Path(sys.executable).parent / "llmproxy"), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=proxy.folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def listed(proxy: Proxy) -> dict[str, dict[str, Any]]:
    """The keys by name."""
    return {key["name"]: key for key in json.loads(llmproxy(proxy, "keys", "--json"))["keys"]}


def status(proxy: Proxy, secret: str, model: str = "a-model") -> int:
    """Of a chat with that key."""
    return proxy.ask("POST", "/v1/chat/completions", chat(model), key=secret).status


def test_from_the_first_to_the_last_day_of_a_key(proxy: Proxy) -> None:
    """Its secret is told once, and it survives a kill with its rights."""
    secret = llmproxy(proxy, "keys", "add", "page", "--route", "a", "--priority", "3").strip()
    assert status(proxy, secret) == 200
    assert status(proxy, secret, "b-model") == 404
    proxy.kill()
    proxy.start()
    assert status(proxy, secret) == 200
    assert listed(proxy)["page"]["priority"] == 3
    renewed = llmproxy(proxy, "keys", "rotate", "page", "--overlap", "1h").strip()
    assert (status(proxy, secret), status(proxy, renewed)) == (200, 200)
    newest = llmproxy(proxy, "keys", "rotate", "page", "--overlap", "0").strip()
    assert (status(proxy, renewed), status(proxy, newest)) == (401, 200)
    llmproxy(proxy, "keys", "revoke", "page")
    assert status(proxy, newest) == 401
    state = "".join(path.read_text() for path in (proxy.folder / "state").glob("*.json"))
    for told in (secret, renewed, newest):
        assert told not in state + proxy.log()


def test_limits_in_the_client(proxy: Proxy) -> None:
    """OpenAI's client raises RateLimitError, with the time in Retry-After; a reload gives nothing back."""
    secret = llmproxy(proxy, "keys", "add", "busy", "--requests-per-minute", "2").strip()
    base = f"http://127.0.0.1:{proxy.port}/v1"
    with openai.OpenAI(base_url=base, api_key=secret, max_retries=0) as client:

        def once() -> str:
            return client.completions.create(model="a-model", prompt="Hello").model

        assert once() == once() == "a-model"
        with pytest.raises(openai.RateLimitError) as caught:
            once()
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
        proxy.hang_up()
        with pytest.raises(openai.RateLimitError):
            once()
    assert listed(proxy)["busy"]["left"] == {"requests": 0}


def test_streams_at_once(proxy: Proxy) -> None:
    """A second one is refused while the first goes on, and served when its client has left."""
    secret = llmproxy(proxy, "keys", "add", "one", "--streams", "1").strip()
    body = chat("a-model", stream=True, ignore_eos=True, max_tokens=10_000, demo_token_delay=0.02)
    connection, response = proxy.open("POST", "/v1/chat/completions", body, key=secret)
    assert response.status == 200
    assert proxy.ask("POST", "/v1/chat/completions", chat("a-model", stream=True), key=secret).status == 429
    response.close()
    connection.close()
    found = [status_of_stream(proxy, secret) for _ in range(50)]
    assert 200 in found


def status_of_stream(proxy: Proxy, secret: str) -> int:
    """Of a short stream."""
    return proxy.ask("POST", "/v1/chat/completions", chat("a-model", stream=True), key=secret).status


def test_what_the_command_refuses(proxy: Proxy) -> None:
    """Status 1 for what the proxy refuses, 2 for what is no key."""
    llmproxy(proxy, "keys", "revoke", "boss", status=1)
    llmproxy(proxy, "keys", "rotate", "nobody", status=1)
    llmproxy(proxy, "keys", "add", "x", status=1, key=KEY)
    llmproxy(proxy, "keys", "add", "a/b", "--offline", status=2)
    llmproxy(proxy, "keys", "add", "x", "--streams", "0", status=2)


def test_a_key_for_the_file(proxy: Proxy) -> None:
    """The entry that is printed makes the secret count after a reload."""
    told = json.loads(
        llmproxy(proxy, "keys", "add", "filed", "--route", "a", "--expires", "30d", "--offline", "--json")
    )
    secret = told.pop("secret")
    assert status(proxy, secret) == 401
    keys = [*proxy.config["keys"], told]
    backends = proxy.config["backends"]
    proxy.configure(backends, keys=keys)
    proxy.hang_up()
    assert status(proxy, secret) == 200
