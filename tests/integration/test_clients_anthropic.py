"""The ``anthropic`` package through the proxy, on vLLM's Messages API: cold, warm, and when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from httpx2 import HTTPError  # which this client lets through in a stream

from tests.integration.clients import HELLO, WORDS, cold, serving
from tests.integration.proxy import KEY, Proxy
from tests.integration.world import until

SAY: dict[str, Any] = {"max_tokens": 200, "messages": WORDS}


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """See :func:`tests.integration.clients.backends`."""
    with serving(kind, tmp_path_factory.mktemp("clients")) as proxy:
        yield proxy


def connect(proxy: Proxy, timeout: float = 20) -> anthropic.Anthropic:
    """The synchronous client, without retries of its own."""
    base = f"http://127.0.0.1:{proxy.port}"
    return anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=0, timeout=timeout)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    """The synchronous client."""
    with connect(proxy) as client:
        yield client


def whole(client: anthropic.Anthropic, model: str = "a-model") -> str:
    """The text of a message."""
    message = client.messages.create(model=model, **SAY)
    assert message.stop_reason == "end_turn"
    return "".join(block.text for block in message.content if block.type == "text")


def streamed(client: anthropic.Anthropic, model: str = "a-model") -> str:
    """The text of a streamed message, as it came and as it was in the end."""
    with client.messages.stream(model=model, **SAY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert "".join(block.text for block in final.content if block.type == "text") == text
    return text


# -- what works -----------------------------------------------------------------------------------


def test_cold_and_warm(proxy: Proxy, client: anthropic.Anthropic) -> None:
    """A whole message and a streamed one say the same, from a backend that was not running and from one that
    was."""
    cold(proxy)
    text = whole(client)
    assert HELLO in text
    assert streamed(client) == text
    cold(proxy)
    assert streamed(client) == text


def test_count_tokens(proxy: Proxy, client: anthropic.Anthropic) -> None:
    """Counting tokens needs the model, and so starts it."""
    cold(proxy)
    counted = client.messages.count_tokens(model="a-model", messages=WORDS, system="Be brief.")
    assert counted.input_tokens == 7


def test_base_url_of_a_route(proxy: Proxy, client: anthropic.Anthropic) -> None:
    """The base URL may be a route's."""
    routed = client.with_options(base_url=f"http://127.0.0.1:{proxy.port}/a")
    assert streamed(routed) == streamed(client)


def test_bearer(proxy: Proxy) -> None:
    """The key may be a bearer token, as Claude Code's ANTHROPIC_AUTH_TOKEN is."""
    base = f"http://127.0.0.1:{proxy.port}"
    with anthropic.Anthropic(base_url=base, auth_token=KEY, max_retries=0) as client:
        assert whole(client)


def test_async(proxy: Proxy) -> None:
    """The asynchronous client: many at once, cold; one start."""
    cold(proxy)
    starts = proxy.world.starts("a")

    async def one(client: anthropic.AsyncAnthropic, number: int) -> str:
        words: Any = [{"role": "user", "content": f"number {number}"}]
        async with client.messages.stream(model="a-model", max_tokens=100, messages=words) as stream:
            return "".join([text async for text in stream.text_stream])

    async def all_of_them() -> list[str]:
        base = f"http://127.0.0.1:{proxy.port}"
        async with anthropic.AsyncAnthropic(base_url=base, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(20)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        assert text.startswith(f"You said: number {number}\n")
    assert proxy.world.starts("a") == starts + 1


# -- waiting --------------------------------------------------------------------------------------


def test_heartbeats(proxy: Proxy) -> None:
    """A held stream gets ping events, which are no content, and keep a client patient whose timeout is
    shorter than the start."""
    cold(proxy, "beats")
    with connect(proxy, timeout=0.7) as client:
        raw = client.messages.with_streaming_response.create(model="beats-model", stream=True, **SAY)
        with raw as answer:
            lines = list(answer.iter_lines())
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        begins = names.index("message_start")
        assert begins >= 3
        assert set(names[:begins]) == {"ping"}
        assert "ping" not in names[begins:]
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert [value["type"] for value in data] == names
        cold(proxy, "beats")
        assert HELLO in streamed(client, "beats-model")


def test_timeout_without_heartbeats(proxy: Proxy) -> None:
    """A whole message has no heartbeats: the client's timeout ends it, and the start goes on."""
    cold(proxy, "beats")
    starts = proxy.world.starts("beats")
    with connect(proxy, timeout=0.5) as client:
        with pytest.raises(anthropic.APITimeoutError):
            whole(client, "beats-model")
        assert whole(client.with_options(timeout=20), "beats-model")
    assert proxy.world.starts("beats") == starts + 1


# -- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_refusals(proxy: Proxy, client: anthropic.Anthropic, stream: bool) -> None:
    """Every refusal comes as the client's own exception of that kind, with the code in its body."""

    def refused(kind: type[anthropic.APIStatusError], model: str, code: str) -> anthropic.APIStatusError:
        with pytest.raises(kind) as caught:
            client.messages.create(model=model, stream=stream, **SAY)
        body: Any = caught.value.body
        assert body["error"]["code"] == code
        assert caught.value.api_message == body["error"]["message"]
        return caught.value

    refused(anthropic.NotFoundError, "no-such-model", "model_not_found")
    failed = refused(anthropic.InternalServerError, "broken-model", "backend_start_failed")
    assert failed.status_code == 503
    assert "the last words" in failed.message
    assert int(failed.response.headers["retry-after"]) > 0
    with proxy.wire() as waits:
        waits.post("/slow/v1/completions", b"{}")
        proxy.until_waiting("slow", 1)
        full = refused(anthropic.RateLimitError, "slow-model", "queue_full")
        assert int(full.response.headers["retry-after"]) > 0
    proxy.until_waiting("slow", 0)
    other = client.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError):
        other.messages.create(model="a-model", stream=stream, **SAY)


def test_late_failure(proxy: Proxy, client: anthropic.Anthropic) -> None:
    """A start that fails after a held stream's head has left raises in the iteration, with the cause."""
    proxy.act("late", "reset")
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed(client, "late-model")
    assert "exit status 3" in str(caught.value.api_message)


@pytest.mark.parametrize("fault", ["die-mid-stream=3", "error-event=3", "close-mid-body=3"])
def test_broken_stream(client: anthropic.Anthropic, fault: str) -> None:
    """A stream that breaks raises in the iteration; it does not end as if it were whole."""
    stream = client.messages.create(
        model="a-model", stream=True, extra_headers={"X-Demo-Fault": fault}, **SAY
    )
    with pytest.raises((anthropic.APIError, HTTPError)):
        for _ in stream:
            pass


def test_client_that_stops_listening(proxy: Proxy, client: anthropic.Anthropic) -> None:
    """A stream that the program closes ends the generation."""
    before = proxy.stats("a")["aborted"]
    with client.messages.stream(model="a-model", extra_body={"demo_token_delay": 0.05}, **SAY) as stream:
        next(stream.text_stream)
    until(lambda: proxy.stats("a")["aborted"] == before + 1, 2)
