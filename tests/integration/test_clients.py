"""The clients that people really use: the ``openai`` package and ``curl``."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, KEY, Proxy, demo, running
from tests.integration.world import ROOT, until

WORDS: Any = [{"role": "user", "content": "Hello from a real client"}]
EXIT = ("--start-delay", "60", "--exit-after", "0.3", "--exit-code", "3", "--log-line", "the last words")


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with a backend that works and several that do not."""
    backends = {
        "a": demo("--start-delay", "0.5"),
        "late": demo(
            *EXIT[:2], "--exit-after", "1.2", *EXIT[4:], heartbeat_after="0.2s", heartbeat_every="0.2s"
        ),
        "broken": demo(*EXIT),
        "slow": demo("--start-delay", "60", max_waiting=1),
    }
    with running(kind, tmp_path_factory.mktemp("clients"), backends) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    """The synchronous client, without retries of its own."""
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=0, timeout=20
    ) as client:
        yield client


def stop(proxy: Proxy) -> None:
    """Make the next request a cold one."""
    assert proxy.act("a", "stop").json["state"] == "absent"


def streamed(client: openai.OpenAI, model: str) -> str:
    """The text of a streamed chat completion."""
    stream = client.chat.completions.create(model=model, messages=WORDS, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_cold_and_warm(proxy: Proxy, client: openai.OpenAI) -> None:
    """A whole answer and a streamed one, from a backend that was not running and from one that was."""
    for cold in (True, False):
        if cold:
            stop(proxy)
        answer = client.chat.completions.create(model="a-model", messages=WORDS)
        text = answer.choices[0].message.content
        assert text is not None
        assert text.startswith("You said: Hello from a real client")
        assert answer.usage is not None
        if cold:
            stop(proxy)
        assert streamed(client, "a-model") == text


def test_the_other_calls(client: openai.OpenAI) -> None:
    """Lists of models, text completions, and the base URL of a route."""
    assert next(iter(client.models.list())).id == "a-model"
    assert client.models.retrieve("slow-model").id == "slow-model"
    done = client.completions.create(model="a-model", prompt="Once upon", max_tokens=5)
    assert done.choices[0].text.strip() == "Once upon"
    routed = client.with_options(base_url=str(client.base_url).replace("/v1", "/a/v1"))
    assert streamed(routed, "a-model").startswith("You said")
    assert [model.id for model in routed.models.list()] == ["a-model"]


def test_raw_headers(client: openai.OpenAI) -> None:
    """The client sees the proxy's headers."""
    raw = client.chat.completions.with_raw_response.create(model="a-model", messages=WORDS)
    assert raw.headers["x-llmproxy-backend"] == "a"
    assert raw.parse().choices


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
        refused(openai.RateLimitError, "slow-model", "queue_full")
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


def test_heartbeats_are_not_content(launch: Launch) -> None:
    """The client takes the comments of a held stream for nothing."""
    proxy = launch({"a": demo("--start-delay", "1", heartbeat_after="0.2s", heartbeat_every="0.1s")})
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=0) as client:
        cold = streamed(client, "a-model")
        assert cold == streamed(client, "a-model")


@pytest.mark.parametrize("fault", ["die-mid-stream=3", "error-event=3"])
def test_broken_stream(proxy: Proxy, client: openai.OpenAI, fault: str) -> None:
    """A stream that breaks raises in the iteration; it does not end as if it were whole."""
    stream = client.chat.completions.create(
        model="a-model",
        messages=WORDS,
        stream=True,
        extra_headers={"X-Demo-Fault": fault},
    )
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


def test_retries_of_the_client(launch: Launch) -> None:
    """The client's own retries, paced by Retry-After, get through once there is room."""
    proxy = launch({"a": demo("--start-delay", "0.7", max_wait="0.3s")})
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=3) as client:
        assert client.chat.completions.create(model="a-model", messages=WORDS).choices
    assert proxy.world.starts("a") == 1


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


def test_async(proxy: Proxy) -> None:
    """The asynchronous client: many at once, whole and streamed, cold."""
    stop(proxy)
    starts = proxy.world.starts("a")

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        words: Any = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            answer = await client.chat.completions.create(model="a-model", messages=words)
            return answer.choices[0].message.content or ""
        stream = await client.chat.completions.create(model="a-model", messages=words, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=0, timeout=20
        ) as client:
            answers = await asyncio.gather(*(one(client, number) for number in range(30)))
            for number, text in enumerate(answers):
                assert text.startswith(f"You said: number {number}\n")
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="broken-model", messages=WORDS)

    asyncio.run(all_of_them())
    assert proxy.world.starts("a") == starts + 1


# -- curl -----------------------------------------------------------------------------------------


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real one."""
    command = shutil.which("curl")
    assert command is not None, "curl is needed"
    return subprocess.run(
        [command, "-sS", "--noproxy", "*", "-m", "20", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_readme(launch: Launch) -> None:
    """The first screen of README.md: its curl command, word for word but for the port, works with --demo."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    command = next(block for block in blocks if block.startswith(". ./.env; curl -N"))
    proxy = launch({}, start=False)
    proxy.start("--demo")
    (proxy.folder / ".env").write_text(f"VLLM_API_KEY={KEY}\n")
    script = command.replace("localhost:8000", f"127.0.0.1:{proxy.port}")
    try:
        shell = ["/bin/sh", "-c", script]
        done = subprocess.run(
            shell,
            cwd=proxy.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done
        assert done.stdout.endswith("data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
        said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert "Hello! Who are you?" in said
        assert "coder3b" in said
    finally:
        assert proxy.act("coder", "stop", "?force=1&wait=1").json["state"] == "absent"


def test_curl(proxy: Proxy) -> None:
    """curl streams without buffering, tells a broken stream from a whole one, and uploads."""
    base, key = f"http://127.0.0.1:{proxy.port}", ("-H", f"Authorization: Bearer {KEY}")
    body = ("-d", json.dumps({"model": "a-model", "stream": True, "messages": WORDS}))
    kind = ("-H", "Content-Type: application/json")
    whole = curl("-N", "-i", *key, *kind, *body, base + "/v1/chat/completions")
    assert whole.returncode == 0
    assert whole.stdout.endswith("data: [DONE]\n\n")
    assert "X-LLMProxy-Cold-Start: " in whole.stdout
    broken = curl(
        "-N", *key, *kind, *body, "-H", "X-Demo-Fault: die-mid-stream=3", base + "/v1/chat/completions"
    )
    assert broken.returncode in (18, 56)  # a transfer that ended early
    assert '"backend_died"' in broken.stdout
    refused = curl("-f", *key, *kind, "-d", '{"model": "nobody"}', base + "/v1/chat/completions")
    assert refused.returncode == 22
    assert "404" in refused.stderr
    upload = curl(
        *key, "--data-binary", f"@{ROOT / 'README.md'}", "-H", "Expect: 100-continue", base + "/a/upload"
    )
    assert json.loads(upload.stdout)["length"] == (ROOT / "README.md").stat().st_size
    head = curl("-I", *key, base + "/a/big?bytes=5")
    assert "Content-Length: 5" in head.stdout
    old = curl("--http1.0", *key, base + "/v1/models")
    assert "a-model" in old.stdout
    followed = curl("-L", *key, base + "/a")
    assert followed.returncode == 0
    admin = curl("-H", f"Authorization: Bearer {ADMIN}", base + "/api/backends/a")
    assert json.loads(admin.stdout)["state"] == "ready"
