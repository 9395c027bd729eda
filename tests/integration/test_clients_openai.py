"""The ``openai`` package through the proxy: cold, warm, and when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.integration.clients import HELLO, WORDS, cold, serving
from tests.integration.proxy import KEY, Proxy
from tests.integration.world import until


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """See :func:`tests.integration.clients.backends`."""
    with serving(kind, tmp_path_factory.mktemp("clients")) as proxy:
        yield proxy


def connect(proxy: Proxy, timeout: float = 20) -> openai.OpenAI:
    """The synchronous client, without retries of its own."""
    base = f"http://127.0.0.1:{proxy.port}/v1"
    return openai.OpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=timeout)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    """The synchronous client."""
    with connect(proxy) as client:
        yield client


def streamed(client: openai.OpenAI, model: str) -> str:
    """The text of a streamed chat completion."""
    stream = client.chat.completions.create(model=model, messages=WORDS, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def chat(client: openai.OpenAI, stream: bool) -> str:
    """The text of a chat completion."""
    if stream:
        return streamed(client, "a-model")
    answer = client.chat.completions.create(model="a-model", messages=WORDS)
    assert answer.usage is not None
    return answer.choices[0].message.content or ""


def completion(client: openai.OpenAI, stream: bool) -> str:
    """The text of a text completion."""
    if stream:
        chunks = client.completions.create(model="a-model", prompt=HELLO, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    return client.completions.create(model="a-model", prompt=HELLO).choices[0].text


def response(client: openai.OpenAI, stream: bool) -> str:
    """The text of a response."""
    if not stream:
        return client.responses.create(model="a-model", input=HELLO).output_text
    with client.responses.stream(model="a-model", input=HELLO) as events:
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events.get_final_response().output_text == told
    return told


# -- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [chat, completion, response])
def test_cold_and_warm(
    proxy: Proxy, client: openai.OpenAI, call: Callable[[openai.OpenAI, bool], str]
) -> None:
    """A whole answer and a streamed one say the same, from a backend that was not running and from one that
    was."""
    cold(proxy)
    whole = call(client, False)
    assert HELLO in whole
    assert call(client, True) == whole
    cold(proxy)
    assert call(client, True) == whole
    assert call(client, False) == whole


def test_embeddings(proxy: Proxy, client: openai.OpenAI) -> None:
    """Embeddings come as numbers; a cold backend makes the same as a warm one."""
    cold(proxy)
    vectors = [
        client.embeddings.create(model="a-model", input=[HELLO, "other words"]).data[0].embedding
        for _ in range(2)
    ]
    assert vectors[0] == vectors[1]
    assert sum(number**2 for number in vectors[0]) == pytest.approx(1)


def test_transcription(proxy: Proxy, client: openai.OpenAI) -> None:
    """An upload is held through a cold start, and its answer streamed."""
    cold(proxy)
    heard = client.audio.transcriptions.create(model="a-model", file=("a.wav", bytes(3_000_000)))
    assert heard.text == "I am a-model and heard 3000000 bytes of sound."
    raw = client.audio.transcriptions.with_streaming_response.create
    with raw(model="a-model", file=("a.wav", bytes(1000)), stream=True) as told:
        assert told.read().endswith(b"data: [DONE]\n\n")


def test_models(proxy: Proxy, client: openai.OpenAI) -> None:
    """Lists of models wake none, and the base URL of a route has those of that backend."""
    cold(proxy)
    models = client.models.list().data
    assert {"a-model", "slow-model"} <= {model.id for model in models}
    assert client.models.retrieve("slow-model").id == "slow-model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
    assert proxy.state("a") == "absent"
    routed = client.with_options(base_url=str(client.base_url).replace("/v1", "/a/v1"))
    assert streamed(routed, "a-model").startswith("You said")
    assert [model.id for model in routed.models.list()] == ["a-model"]


def test_raw_headers(client: openai.OpenAI) -> None:
    """The client sees the proxy's headers."""
    raw = client.chat.completions.with_raw_response.create(model="a-model", messages=WORDS)
    assert raw.headers["x-llmproxy-backend"] == "a"
    assert raw.parse().choices


def test_async(proxy: Proxy) -> None:
    """The asynchronous client: many at once, whole and streamed, cold; one start."""
    cold(proxy)
    starts = proxy.world.starts("a")

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        words: Any = [{"role": "user", "content": f"number {number}"}]
        if number % 3 == 0:
            answer = await client.chat.completions.create(model="a-model", messages=words)
            return answer.choices[0].message.content or ""
        if number % 3 == 1:
            return (await client.responses.create(model="a-model", input=f"number {number}")).output_text
        stream = await client.chat.completions.create(model="a-model", messages=words, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> None:
        base = f"http://127.0.0.1:{proxy.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=20) as client:
            answers = await asyncio.gather(*(one(client, number) for number in range(30)))
            for number, text in enumerate(answers):
                assert text.startswith(f"You said: number {number}\n")
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="broken-model", messages=WORDS)

    asyncio.run(all_of_them())
    assert proxy.world.starts("a") == starts + 1


# -- waiting --------------------------------------------------------------------------------------


def test_heartbeats_outlast_the_timeout(proxy: Proxy) -> None:
    """A held stream's heartbeats are no content, and keep a client patient whose timeout is shorter than the
    start; ``timeout=`` counts from one byte to the next."""
    cold(proxy, "beats")
    with connect(proxy, timeout=0.7) as client:
        text = streamed(client, "beats-model")
        assert text == streamed(client, "beats-model")
        cold(proxy, "beats")
        with client.responses.stream(model="beats-model", input=HELLO) as events:
            assert events.get_final_response().output_text == text.replace("a-model", "beats-model")


def test_timeout_without_heartbeats(proxy: Proxy) -> None:
    """A whole answer has no heartbeats: the client's timeout ends it, its own error tells, and the start goes
    on for whoever comes next."""
    cold(proxy, "beats")
    starts = proxy.world.starts("beats")
    with connect(proxy, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="beats-model", messages=WORDS)
        until(lambda: proxy.backend("beats")["waiting"] == 0, 2)
        patient = client.with_options(timeout=20)
        assert patient.chat.completions.create(model="beats-model", messages=WORDS).choices
    assert proxy.world.starts("beats") == starts + 1


def test_hints(proxy: Proxy, client: openai.OpenAI) -> None:
    """What a client may say of a request goes into the client's own headers."""
    cold(proxy)

    def refused(code: str, **hints: str) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="a-model", messages=WORDS, extra_headers=hints)
        assert (caught.value.status_code, caught.value.code) == (503, code)

    refused("not_running", **{"X-LLMProxy-No-Start": "1"})
    assert proxy.state("a") == "absent"
    assert streamed(client, "beats-model")
    hinted = client.with_options(
        default_headers={"X-LLMProxy-Fallback": "any-ready", "X-LLMProxy-No-Start": "1"}
    )
    raw = hinted.chat.completions.with_raw_response.create(model="a-model", messages=WORDS)
    assert raw.headers["x-llmproxy-backend"] == "beats"
    assert raw.headers["x-llmproxy-fallback-for"] == "a"
    assert proxy.state("a") == "absent"
    refused("hold_timeout", **{"X-LLMProxy-Max-Wait": "100ms"})
    proxy.until_state("a", "ready")
    keep = {"X-LLMProxy-Keep-Alive": "30m"}
    assert client.chat.completions.create(model="a-model", messages=WORDS, extra_headers=keep).choices
    assert proxy.backend("a")["idle_in"] > 1700
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="a-model", messages=WORDS, extra_headers={"X-LLMProxy-Max-Wait": "soon"}
        )
    assert caught.value.param == "X-LLMProxy-Max-Wait"


# -- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_refusals(proxy: Proxy, client: openai.OpenAI, stream: bool) -> None:
    """Every refusal comes as the client's own exception of that kind, with the code."""

    def refused(kind: type[openai.APIStatusError], model: str, code: str) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(model=model, messages=WORDS, stream=stream)
        assert type(caught.value) is kind
        assert caught.value.code == code
        return caught.value

    wrong = refused(openai.NotFoundError, "no-such-model", "model_not_found")
    assert (wrong.param, wrong.type) == ("model", "invalid_request_error")
    failed = refused(openai.InternalServerError, "broken-model", "backend_start_failed")
    assert failed.status_code == 503
    assert "the last words" in failed.message
    assert int(failed.response.headers["retry-after"]) > 0
    with proxy.wire() as waits:
        waits.post("/slow/v1/completions", b"{}")
        proxy.until_waiting("slow", 1)
        full = refused(openai.RateLimitError, "slow-model", "queue_full")
        assert int(full.response.headers["retry-after"]) > 0
    proxy.until_waiting("slow", 0)
    other = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError) as caught:
        other.chat.completions.create(model="a-model", messages=WORDS, stream=stream)
    assert caught.value.code == "invalid_api_key"


def test_late_failure(proxy: Proxy, client: openai.OpenAI) -> None:
    """A start that fails after a held stream's head has left raises in the iteration, with the cause."""
    proxy.act("late", "reset")
    with pytest.raises(openai.APIError) as caught:
        streamed(client, "late-model")
    assert "exit status 3" in caught.value.message
    assert caught.value.code == "backend_start_failed"


def test_late_failure_of_a_response(proxy: Proxy, client: openai.OpenAI) -> None:
    """So does that of the responses API."""
    proxy.act("late", "reset")
    with (
        pytest.raises(openai.APIError) as caught,
        client.responses.stream(model="late-model", input=HELLO) as events,
    ):
        events.until_done()
    assert "exit status 3" in caught.value.message


@pytest.mark.parametrize("fault", ["die-mid-stream=3", "error-event=3", "close-mid-body=3"])
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_broken_stream(client: openai.OpenAI, api: str, fault: str) -> None:
    """A stream that breaks raises in the iteration; it does not end as if it were whole."""
    headers = {"X-Demo-Fault": fault}
    stream: Any
    if api == "chat":
        stream = client.chat.completions.create(
            model="a-model", messages=WORDS, stream=True, extra_headers=headers
        )
    else:
        stream = client.responses.create(model="a-model", input=HELLO, stream=True, extra_headers=headers)
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass


def test_dead_backend(client: openai.OpenAI) -> None:
    """A backend that does not answer is an InternalServerError with status 502."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(
            model="a-model",
            messages=WORDS,
            extra_headers={"X-Demo-Fault": "die-before-head"},
        )
    assert (caught.value.status_code, caught.value.code) == (502, "backend_unavailable")


def test_client_that_stops_listening(proxy: Proxy, client: openai.OpenAI) -> None:
    """A stream that the program closes ends the generation."""
    before = proxy.stats("a")["aborted"]
    stream = client.chat.completions.create(
        model="a-model",
        messages=WORDS,
        stream=True,
        max_tokens=10_000,
        extra_body={"ignore_eos": True, "demo_token_delay": 0.01},
    )
    for _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    until(lambda: proxy.stats("a")["aborted"] == before + 1, 2)
