"""The proxy before a real vLLM on the CPU, as a child process and in a container (``make test-vllm``).

One vLLM runs at a time: each test ends those of other routes first.  A start takes half a minute or more, so
the tests share a proxy, and take a backend that runs as it is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import cast

import pytest
from attrs import define, field
from openai import APIError, BadRequestError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from llmproxy.runtimes.process_group import read_process
from tests.integration.proxy import ADMIN, KEY, Answer, Proxy
from tests.integration.tiny_model import expected, make_tiny_model
from tests.integration.vllm_world import (
    BACKEND_KEY,
    READY,
    STOP_GRACE,
    Kind,
    VllmWorld,
    find_vllm,
    make_empty_image,
)
from tests.integration.world import until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PATIENCE = 240.0
"""Seconds that a start may take on a slow and busy machine."""
ROUTES = ("tiny", "flag", "missing")


@define
class Stack:
    """A proxy with vLLM behind it, and how to use it."""

    proxy: Proxy
    world: VllmWorld
    request: pytest.FixtureRequest
    backends: dict[str, dict[str, object]] = field(factory=dict)

    @contextmanager
    def openai(self, path: str = "/v1") -> Iterator[OpenAI]:
        """OpenAI's own client."""
        base = f"http://127.0.0.1:{self.proxy.port}{path}"
        with OpenAI(base_url=base, api_key=KEY, timeout=PATIENCE, max_retries=0) as client:
            yield client

    @contextmanager
    def stream(self, client: OpenAI, tokens: int) -> Iterator[Stream[ChatCompletionChunk]]:
        """A streaming chat."""
        with client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Say the alphabet."}],
            max_tokens=tokens,
            temperature=0,
            stream=True,
        ) as stream:
            yield stream

    def alone(self, route: str) -> None:
        """End all other backends."""
        for other in ROUTES:
            if other != route:
                self.end(other)

    def end(self, route: str) -> None:
        """End a backend, and forgive its failed starts."""
        self.proxy.act(route, "stop", "?wait=1&force=1")
        self.proxy.act(route, "reset", "")
        self.proxy.until_state(route, "absent", seconds=STOP_GRACE + 5)

    def warm(self) -> None:
        """Have the tiny model ready."""
        self.alone("tiny")
        self.proxy.act("tiny", "reset", "")
        self.proxy.act("tiny", "start", "")
        self.proxy.until_state("tiny", "ready", "failed", seconds=PATIENCE)
        assert self.proxy.state("tiny") == "ready", self.proxy.backend("tiny")

    def running(self) -> int:
        """Requests that vLLM itself counts as running."""
        text = self.proxy.ask("GET", "/tiny/metrics").body.decode()
        counts = re.findall(r"^vllm:num_requests_running\{.*\} ([0-9.]+)$", text, re.MULTILINE)
        assert counts, text[:500]
        return int(sum(map(float, counts)))

    def tell(self, words: str) -> None:
        """Show a figure below the test's name, captured output or not."""
        plugins = self.request.config.pluginmanager
        with plugins.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n    {self.world.kind}: {words}", end="", flush=True)


@pytest.fixture(params=["process", "docker"], scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy with the backend ``tiny``, and two that cannot start."""
    venv = find_vllm()
    kind = cast("Kind", request.param)
    if kind == "docker":
        make_empty_image()
    folder = tmp_path_factory.mktemp(f"vllm-{kind}")
    model, home = folder / "model", tmp_path_factory.getbasetemp() / "vllm-home"
    home.mkdir(exist_ok=True)
    make_tiny_model(model)
    world = VllmWorld(kind, folder, venv, model, home)
    stack = Stack(Proxy(folder, world), world, request)
    stack.backends = {
        "tiny": world.spec("tiny", "--served-model-name", "tiny", "small"),
        "flag": world.spec("flag", "--served-model-name", "flag", "--no-such-flag"),
        "missing": world.spec("missing", "--served-model-name", "missing", model="/no/such/model"),
    }
    try:
        stack.proxy.configure(stack.backends)
        stack.proxy.start()
        yield stack
    finally:
        stack.proxy.close()


def watch_for(file: Path, line: str, seen: list[float]) -> threading.Thread:
    """Note when that line appears in a file that grows; a file of an earlier run does not count."""
    before = file.stat().st_ino if file.exists() else None

    def look() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if file.stat().st_ino != before and line in file.read_text(errors="replace"):
                    seen.append(time.time())
                    return
            time.sleep(0.002)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


def cold_stream(stack: Stack) -> None:
    """Wake the model by a streaming chat, and look at what comes."""
    seen: list[float] = []
    watcher = None
    if stack.world.kind == "process":
        watcher = watch_for(stack.world.log_file("tiny"), READY, seen)
    began = time.monotonic()
    with stack.openai() as client, stack.stream(client, 30) as stream:
        text, first = "", 0.0
        for chunk in stream:
            if not first:
                first = time.monotonic() - began
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == expected(30)
    view = stack.proxy.backend("tiny")
    assert view["state"] == "ready"
    if watcher is not None:
        watcher.join(5)
    else:
        seen = [at for at in [stack.world.ready_line_at("tiny")] if at is not None]
    assert seen, f"vLLM has not said {READY!r}"
    late = view["last_start"]["at"] - seen[0]
    stack.tell(f"cold start: first chunk after {first:.1f} s; noticed {late * 1000:.0f} ms after {READY!r}")
    assert late < 1


def test_a_streaming_chat_starts_it(stack: Stack) -> None:
    """A streaming chat wakes the model and is answered whole; health and the list of models wake nothing."""
    stack.alone("")
    asleep = stack.proxy.ask("GET", "/tiny/health")
    assert asleep.status == 503
    assert asleep.error["state"] == "absent"
    listed = {each["id"] for each in stack.proxy.ask("GET", "/v1/models").json["data"]}
    assert {"tiny", "small"} <= listed, "the names were read from --served-model-name"
    assert stack.proxy.state("tiny") == "absent"

    cold_stream(stack)

    assert stack.proxy.ask("GET", "/tiny/health").status == 200
    phases = stack.proxy.backend("tiny")["last_start"]
    stack.tell(f"last start: {phases['seconds']:.1f} s, phases {phases['phases']}")


def test_whole_answers(stack: Stack) -> None:
    """A chat and a completion that are not streamed are vLLM's, under each name and on the route."""
    stack.warm()
    with stack.openai() as client:
        chat = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0
        )
        assert chat.choices[0].message.content == expected(5)
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 5
        completion = client.completions.create(model="tiny", prompt="a", max_tokens=26, temperature=0)
        assert completion.choices[0].text == expected(26, behind="a")
    with stack.openai("/tiny/v1") as client:
        assert "tiny" in {model.id for model in client.models.list().data}
        completion = client.completions.create(model="tiny", prompt="x", max_tokens=3, temperature=0)
        assert completion.choices[0].text == "yza"
        with pytest.raises(BadRequestError, match="max_tokens"):
            client.completions.create(model="tiny", prompt="x", max_tokens=9000)


def test_the_backend_has_a_key_of_its_own(stack: Stack) -> None:
    """The client's key opens the proxy and not vLLM; vLLM's key, read from --api-key, is shown to nobody."""
    stack.warm()
    host, _, port = str(stack.proxy.backend("tiny")["address"]).rpartition(":")
    direct = f"http://{host.removeprefix('http://')}:{port}/v1"
    for key, works in ((KEY, False), (BACKEND_KEY, True)):
        with OpenAI(base_url=direct, api_key=key, timeout=30, max_retries=0) as client:
            if works:
                assert client.models.list().data
            else:
                with pytest.raises(APIError, match="401"):
                    client.models.list()
    assert stack.proxy.ask("GET", "/tiny/v1/models").status == 200
    assert stack.proxy.ask("GET", "/tiny/v1/models", key=BACKEND_KEY).status == 401
    # vLLM asks no key on this one.
    assert stack.proxy.ask("POST", "/tiny/reset_prefix_cache").status == 403
    logs = operator(stack, "logs", "--tail", "1000", "tiny")
    assert READY in logs
    assert "api_key" in logs, "vLLM tells its arguments"
    for told in (logs, operator(stack, "config"), stack.proxy.log()):
        assert BACKEND_KEY not in told
        assert KEY not in told


def operator(stack: Stack, *words: str) -> str:
    """Run the operator's command."""
    environment = {
        **stack.proxy.environ(),
        "LLMPROXY_URL": f"http://127.0.0.1:{stack.proxy.port}",
        "LLMPROXY_ADMIN_KEY": ADMIN,
        "LLMPROXY_CONFIG": str(stack.proxy.file),
    }
    return subprocess.run(
        [sys.executable, "-c", "from llmproxy.cli.main import main; main()", *words],
        env=environment,
        cwd=stack.proxy.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_a_client_that_hangs_up_ends_the_generation(stack: Stack) -> None:
    """vLLM stops working on a stream as soon as its client has gone."""
    stack.warm()
    with stack.openai() as client, stack.stream(client, 8000) as stream:
        for _, _ in zip(range(20), stream, strict=False):
            pass
        until(lambda: stack.running() == 1)
        gone = time.monotonic()
    until(lambda: stack.running() == 0, 5)
    stack.tell(f"hang-up: no request runs {time.monotonic() - gone:.2f} s later")


def test_an_idle_one_is_stopped_and_comes_back(stack: Stack) -> None:
    """After the idle time it is stopped, all of it; the next request starts it again."""
    stack.warm()
    stack.backends["tiny"]["idle"] = "3s"
    stack.proxy.configure(stack.backends)
    stack.proxy.hang_up()
    try:
        with stack.openai() as client:
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
        last = time.monotonic()
        stack.proxy.until_state("tiny", "stopping", "absent", seconds=8)
        reaped = time.monotonic()
        stack.proxy.until_state("tiny", "absent", seconds=STOP_GRACE + 5)
        stopped = time.monotonic()
        stack.tell(f"idle: stopping after {reaped - last:.2f} s, gone {stopped - reaped:.2f} s later")
        assert 2.5 < reaped - last < 5
        assert not stack.world.is_running("tiny")
    finally:
        stack.backends["tiny"]["idle"] = "10m"
        stack.proxy.configure(stack.backends)
        stack.proxy.hang_up()
    cold_stream(stack)


def break_engine(stack: Stack) -> None:
    """KILL the engine core while a stream runs; what comes of it."""
    body = {"model": "tiny", "prompt": "a", "max_tokens": 8000, "stream": True}
    connection, response = stack.proxy.open("POST", "/v1/completions", body)
    seen: dict[str, float] = {}
    answer = response.read(400)
    assert b'"text":"b"' in answer
    everybody = stack.world.processes("tiny")
    engine = stack.world.find("tiny", b"EngineCore")
    assert engine is not None
    killed = time.monotonic()

    def read() -> None:
        nonlocal answer
        # A broken end is a good one, too.
        with suppress(IncompleteRead, ConnectionError):
            while data := response.read1():
                answer += data
        seen["stream over"] = time.monotonic() - killed

    reader = threading.Thread(target=read)
    reader.start()
    os.kill(engine, signal.SIGKILL)
    stack.proxy.until_state("tiny", "stopping", "absent", seconds=15)
    seen["noticed"] = time.monotonic() - killed
    stack.proxy.until_state("tiny", "absent", seconds=STOP_GRACE + 5)
    seen["gone"] = time.monotonic() - killed
    reader.join(20)
    connection.close()
    end = answer[answer.rfind(b'data: {"error"') :]
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in seen.items())
    stack.tell(f"engine killed: {times}; the stream ends {end[:300]!r}")
    assert b'"error"' in end, f"no error event: {answer[-500:]!r}"
    assert seen["noticed"] < seen["stream over"] + 1
    assert not stack.world.is_running("tiny")
    now = [read_process(info.pid) for info in everybody]
    left = {(info.pid, info.start_time) for info in now if info is not None and info.alive}
    assert not left & {(info.pid, info.start_time) for info in everybody}


def test_a_killed_engine_is_told_noticed_and_replaced(stack: Stack) -> None:
    """A stream whose engine was killed ends with an error event, nothing of that vLLM is left, and the next
    request starts another."""
    stack.warm()
    break_engine(stack)
    cold_stream(stack)


def test_stop_while_it_starts(stack: Stack) -> None:
    """A start that is stopped ends within the grace, however vLLM takes TERM, and its request is refused."""
    stack.alone("")
    stack.end("tiny")
    answers: list[Answer] = []

    def ask() -> None:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        answers.append(stack.proxy.ask("POST", "/v1/completions", body))

    stack.proxy.act("tiny", "start", "")
    # From here on vLLM may swallow a TERM.
    until(lambda: stack.world.find("tiny", b"VLLM::Worker"), PATIENCE)
    asking = threading.Thread(target=ask)
    asking.start()
    stack.proxy.until_waiting("tiny", 1)
    began = time.monotonic()
    stack.proxy.act("tiny", "stop", "")
    stack.proxy.until_state("tiny", "absent", seconds=STOP_GRACE + 5)
    took = time.monotonic() - began
    asking.join(10)
    stack.tell(f"stopped while it started: gone after {took:.2f} s of {STOP_GRACE:g} s")
    assert took < STOP_GRACE + 2
    assert not stack.world.is_running("tiny")
    assert answers[0].status == 503
    assert answers[0].error["code"] == "not_running"


def refused(stack: Stack, route: str) -> dict[str, object]:
    """Start what cannot start, by a request."""
    stack.alone(route)
    stack.end(route)
    began = time.monotonic()
    with stack.openai() as client, pytest.raises(APIError) as refusal:
        client.completions.create(model=route, prompt="a", max_tokens=1)
    body = cast("dict[str, object]", refusal.value.body)
    stack.tell(f"{route}: refused after {time.monotonic() - began:.1f} s: {str(body['message'])[:160]!r}")
    assert body["code"] == "backend_start_failed"
    assert BACKEND_KEY not in str(body)
    assert not stack.world.is_running(route)
    return body


def test_a_flag_that_vllm_does_not_know_is_named(stack: Stack) -> None:
    """The refusal of a start with a wrong flag names the flag."""
    body = refused(stack, "flag")
    assert "unrecognized arguments: --no-such-flag" in str(body["message"]).splitlines()[0]
    assert "exit status 2" in str(body["message"])
    assert "flag" in str(body["hint"])


def test_a_model_that_is_not_there_is_named(stack: Stack) -> None:
    """The refusal of a start with a wrong model path names the path."""
    body = refused(stack, "missing")
    assert "/no/such/model" in str(body["message"]).splitlines()[0]
    assert "exit status 1" in str(body["message"])
    assert "model" in str(body["hint"])
