"""Programs that speak plain HTTP through the proxy: ``curl``, aiohttp, httpx, and a WebSocket client."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import websockets
from websockets.sync.client import connect

from tests.integration.clients import WORDS, cold, curl, serving
from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, KEY, Proxy, content
from tests.integration.world import ROOT

BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """See :func:`tests.integration.clients.backends`."""
    with serving(kind, tmp_path_factory.mktemp("clients")) as proxy:
        yield proxy


def ask(model: str = "a-model", **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": model, "messages": WORDS, **more}


# -- curl -----------------------------------------------------------------------------------------


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
        said = content(done.stdout.encode())
        assert "Hello! Who are you?" in said
        assert "coder3b" in said
    finally:
        assert proxy.act("coder", "stop", "?force=1&wait=1").json["state"] == "absent"


def test_curl(proxy: Proxy) -> None:
    """curl streams without buffering, tells a broken stream from a whole one, and uploads."""
    base, key = f"http://127.0.0.1:{proxy.port}", ("-H", f"Authorization: Bearer {KEY}")
    body = ("-d", json.dumps(ask(stream=True)))
    kind = ("-H", "Content-Type: application/json")
    cold(proxy)
    whole = curl("-N", "-i", *key, *kind, *body, base + "/v1/chat/completions")
    assert whole.returncode == 0
    assert whole.stdout.endswith("data: [DONE]\n\n")
    waited = re.search(r"^X-LLMProxy-Cold-Start: ([\d.]+)", whole.stdout, re.MULTILINE)
    assert waited is not None
    assert float(waited[1]) > 0.4
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


def test_curl_waits(proxy: Proxy) -> None:
    """curl -N shows the heartbeats of a held stream as they come, and the error of a start that fails."""
    base, key = f"http://127.0.0.1:{proxy.port}", ("-H", f"Authorization: Bearer {KEY}")
    kind = ("-H", "Content-Type: application/json")
    url = base + "/v1/chat/completions"
    cold(proxy, "beats")
    told = curl("-N", *key, *kind, "-d", json.dumps(ask("beats-model", stream=True)), url)
    assert told.stdout.count(": llmproxy {") >= 3
    assert told.stdout.index(": llmproxy {") < told.stdout.index('"content":"You"')
    proxy.act("late", "reset")
    late = curl("-N", "-i", *key, *kind, "-d", json.dumps(ask("late-model", stream=True)), url)
    assert late.stdout.startswith("HTTP/1.1 200 OK")
    assert "exit status 3" in late.stdout.rpartition('data: {"error"')[2]


# -- connections that are kept --------------------------------------------------------------------


def test_httpx_keeps_its_connection(proxy: Proxy) -> None:
    """Requests before, across and after a cold start, and refusals, share one connection of httpx's."""
    cold(proxy)
    ports = set()
    limits = httpx.Limits(max_connections=1)
    base = f"http://127.0.0.1:{proxy.port}"
    with httpx.Client(base_url=base, headers=BEARER, limits=limits, timeout=20, trust_env=False) as client:

        def note(answer: httpx.Response) -> httpx.Response:
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            return answer

        assert note(client.get("/v1/models")).status_code == 200
        assert note(client.get("/a/health")).status_code == 503
        assert note(client.post("/v1/chat/completions", json=ask())).status_code == 200
        assert note(client.post("/v1/chat/completions", json=ask("broken-model"))).status_code == 503
        with client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as stream:
            assert note(stream).status_code == 200
            assert list(stream.iter_lines())[-2] == "data: [DONE]"
        assert note(client.post("/v1/chat/completions", json=ask("nobody"))).status_code == 404
        assert note(client.get("/a/health")).status_code == 200
    assert len(ports) == 1


def test_aiohttp_keeps_its_connections(proxy: Proxy) -> None:
    """Requests across a cold start are answered on the few connections that aiohttp may have, one after
    another."""
    cold(proxy)
    opened = 0

    async def count(*_: Any) -> None:
        nonlocal opened
        opened += 1

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        async with session.post("/v1/chat/completions", json=ask(stream=bool(number % 2))) as answer:
            assert answer.status == 200
            body = await answer.read()
        if number % 2:
            assert body.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(body)["choices"]

    async def several() -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(count)
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{proxy.port}",
            headers=BEARER,
            connector=aiohttp.TCPConnector(limit=3),
            timeout=aiohttp.ClientTimeout(total=20),
            trace_configs=[trace],
        ) as session:
            await asyncio.gather(*(one(session, number) for number in range(12)))

    asyncio.run(several())
    assert opened == 3


def test_broken_answers_are_seen(proxy: Proxy) -> None:
    """httpx and aiohttp raise when an answer breaks off."""
    faulty = {**BEARER, "X-Demo-Fault": "close-mid-body=3"}
    url = f"http://127.0.0.1:{proxy.port}/v1/chat/completions"
    for stream in (False, True):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(url, json=ask(stream=stream), headers=faulty, timeout=20, trust_env=False)

    async def read(stream: bool) -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=ask(stream=stream), headers=faulty) as answer,
        ):
            return await answer.read()

    for stream in (False, True):
        with pytest.raises(aiohttp.ClientPayloadError):
            asyncio.run(read(stream))


# -- WebSocket ------------------------------------------------------------------------------------


def test_websocket(proxy: Proxy) -> None:
    """A WebSocket's handshake is held through a cold start; then messages of any size pass, text and bytes,
    and pings, and the close with its reason."""
    cold(proxy)
    url = f"ws://127.0.0.1:{proxy.port}/a/websocket"
    with connect(url, additional_headers=BEARER, open_timeout=20, max_size=None, proxy=None) as socket:
        assert socket.response is not None
        assert float(socket.response.headers["X-LLMProxy-Cold-Start"]) > 0.4
        for message in ("hello", "ü" * 70_000, bytes(3_000_000)):
            socket.send(message)
            assert socket.recv(timeout=20) == message
        assert socket.ping().wait(5)
        assert proxy.backend("a")["in_flight"] == 1
        socket.close(4000, "enough")
        assert socket.protocol.close_code == 4000
    with connect(url, additional_headers=BEARER, proxy=None) as warm:
        warm.send("again")
        assert warm.recv(timeout=5) == "again"


def test_websocket_refused(proxy: Proxy) -> None:
    """A handshake that cannot be passed on is answered with the error that any request would have got."""
    for route, headers, status, code in (
        ("broken", BEARER, 503, "backend_start_failed"),
        ("nobody", BEARER, 404, "route_not_found"),
        ("a", {}, 401, "invalid_api_key"),
    ):
        with pytest.raises(websockets.InvalidStatus) as caught:
            connect(
                f"ws://127.0.0.1:{proxy.port}/{route}/websocket",
                additional_headers=headers,
                open_timeout=20,
                proxy=None,
            )
        answer = caught.value.response
        assert answer.status_code == status
        assert json.loads(answer.body or b"")["error"]["code"] == code
