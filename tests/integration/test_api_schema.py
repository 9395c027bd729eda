"""What a real proxy answers on its admin API, held to the document that it publishes.

Schemathesis makes requests of the document, right ones and wrong ones, and compares the answers with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.proxy import ADMIN, KEY, Demo, Proxy, demo, running
from tests.integration.world import until
from tests.openapi import described

EXAMPLES = 15
"""Requests that are made up for each operation, beside those that the document itself suggests."""

# 503 is an answer like others here: there is no room, or the pause after a failed start lasts.  JSON Schema
# cannot say all of a lease, or of a day: that 0% is nothing, which GPUs there are, how long months are.
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
negative_data_rejection.expected-statuses = [400, 404, 409, 503]
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 503]

[[operations]]
include-operation-id = ["takeLease", "sumUsage"]
checks.positive_data_acceptance.enabled = false

# Another process would take the place of the one that the test has started.
[[operations]]
include-operation-id = "upgrade"
enabled = false

# Here they are asked for what ends alone.
[[operations]]
include-operation-id = ["followEvents", "readLogs"]
checks.negative_data_rejection.enabled = false
"""


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with a backend of each sort: plain, able to sleep, failing, and elsewhere."""
    dozes = demo("--enable-sleep-mode", gpu_memory=0.3, environment={"VLLM_SERVER_DEV_MODE": "1"})
    backends: dict[str, Demo | dict[str, Any]] = {
        "coder": demo(gpu_memory=0.3),
        "dozes": dozes,
        "broken": demo("--start-delay", "60", "--exit-after", "0.05", "--exit-code", "3"),
        "far": {"runtime": "url", "url": "http://127.0.0.1:9", "start_timeout": "1s"},
    }
    with running(kind, tmp_path_factory.mktemp("schema"), backends) as proxy:
        yield proxy


def published(proxy: Proxy) -> dict[str, Any]:
    """The document, with requests in it that end, and names in it that there are."""
    found = proxy.ask("GET", "/api/openapi.json", key=ADMIN)
    assert found.status == 200
    document = found.json
    assert isinstance(document, dict)
    names = {"type": "string", "enum": list(proxy.config["backends"])}
    anyone = {"anyOf": [names, document["components"]["schemas"]["Name"]]}
    document["components"]["parameters"]["backend"]["schema"] = anyone
    for path in ("/events", "/backends/{backend}/logs"):
        for parameter in document["paths"][path]["get"]["parameters"]:
            if parameter.get("name") == "follow":
                parameter |= {"required": True, "schema": {"type": "string", "enum": ["0", "false", "no"]}}
    return document


def test_what_is_served_is_what_is_described(proxy: Proxy) -> None:
    """Every status, content type, header and body is described, and what is wrong is refused."""
    document = proxy.folder / "openapi.json"
    document.write_text(json.dumps(published(proxy)))
    (proxy.folder / "schemathesis.toml").write_text(SETTINGS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(document)),
            *("--url", f"http://127.0.0.1:{proxy.port}/api"),
            *("--header", f"Authorization: Bearer {ADMIN}"),
            # A link of the document leads from a lease that was taken to itself, and so on.
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-deterministic"),
            *("--request-timeout", "10", "--continue-on-failure", "--no-color"),
        ],
        cwd=proxy.folder,
        env={**proxy.environ(), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    count, left_out = len(described().operations()), SETTINGS.count("\nenabled = false")
    assert f"{count - left_out} selected / {count} total" in done.stdout
    assert "Traceback" not in proxy.log()


def test_no_key_no_answer(proxy: Proxy) -> None:
    """Each operation asks for a key, and for an administrator's, before anything else."""
    for method, path in described().operations():
        target = "/api" + path.replace("{backend}", "coder").replace("{lease}", "lease-1") + "?nonsense=1"
        for key, status in ((None, 401), (KEY, 403)):
            found = proxy.ask(method, target, key=key)
            fields = {name.lower(): value for name, value in found.headers}
            assert found.status == status, (method, target)
            described().hold(method, target, found.status, fields, found.body)
        assert proxy.ask(method, target, headers={"x-api-key": ADMIN}, key=None).status == 400
    assert proxy.state("coder") in ("absent", "ready", "stopping")


def test_what_is_kept_is_as_described(proxy: Proxy) -> None:
    """Requests that are open and over, and their sums, with no field beside those of the document."""
    end_leases(proxy)
    proxy.act("coder", "restart")
    assert proxy.chat("coder").status == 200

    def held(path: str) -> dict[str, Any]:
        found = proxy.ask("GET", f"/api/{path}", key=ADMIN)
        fields = {name.lower(): value for name, value in found.headers}
        described().hold("GET", f"/api/{path}", found.status, fields, found.body)
        return dict(found.json)

    with proxy.streaming("coder"):
        until(lambda: held("requests?key=site&outcome=ok")["finished"])
        assert [one["state"] for one in held("requests")["open"] if one["key"] == "site"] == ["in_flight"]
        until(lambda: any(one["tokens_per_second"] for one in held("backends")["backends"]))
    until(lambda: held("usage?by=day,backend,key")["rows"])
    assert proxy.ask("GET", "/api/usage?format=csv", key=ADMIN).body.startswith(b"backend,requests,")


def end_leases(proxy: Proxy) -> None:
    """What was lent before is given back."""
    for lease in proxy.ask("GET", "/api/leases", key=ADMIN).json["leases"]:
        proxy.ask("DELETE", f"/api/leases/{lease['id']}", key=ADMIN)


def test_force_tells_how_many_it_cut(proxy: Proxy) -> None:
    """A stream that is broken off by a forced stop counts, and its client sees no clean end."""
    end_leases(proxy)
    assert proxy.act("coder", "start").json["state"] == "ready"
    with proxy.streaming("coder") as wire:
        found = proxy.act("coder", "stop", "?force=1&wait=1")
        assert (found.status, found.json["cut"], found.json["state"]) == (200, 1, "absent")
        rest = wire.rest()
        assert b'"error"' in rest
        assert b"[DONE]" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
    assert proxy.act("coder", "stop", "?force=1").json["cut"] == 0
