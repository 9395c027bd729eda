"""What clients, operators and monitors see of several hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmproxy.config.model import Gpu, Host
from llmproxy.runtimes.interface import IRuntime
from llmproxy.runtimes.url import UrlRuntime
from llmproxy.web.sharing import Sharing
from tests.fake_hosts import FakeHosts
from tests.front import FrontCase
from tests.openapi import described
from tests.unit.fake_proxy import FakeProxy, backend, run, served

GIB = 2**30


class HostsFrontTests(FrontCase):
    """Two models on three hosts."""

    def setUp(self) -> None:
        super().setUp()
        hosts = {"tower": Host("ssh://tower", gpus={"0": Gpu(24 * GIB)}), "rack": Host("ssh://rack")}
        self.reload(hosts=hosts)
        self.clock.advance(0)

    def runtimes(self) -> dict[str, IRuntime]:
        self.hosts = FakeHosts()
        self.world = self.hosts.worlds["local"]
        for engine in self.hosts.engines.values():
            engine.containers |= {"coder", "chat"}
        return {"docker": self.hosts.runtime, "url": UrlRuntime()}

    def api(self, path: bytes) -> Any:
        status, fields, body = self.client().get(path, b"x-api-key: admin\r\n").answer()
        described().hold("GET", path.decode(), status, fields, body)
        self.assertEqual(status, 200)
        return json.loads(body)

    def test_one_lost_host_makes_nobody_unready(self) -> None:
        """Its name and the reason are told; without any host it is 503."""
        ready = self.client().get(b"/readyz", b"").answer()
        self.assertEqual((ready[0], json.loads(ready[2])), (200, {"status": "ready"}))
        self.hosts.engines["rack"].go_away()
        self.clock.advance(0)
        status, _, body = self.client().get(b"/readyz", b"").answer()
        told = {"status": "ready", "away": {"rack": "its cable is out"}}
        self.assertEqual((status, json.loads(body)), (200, told))
        self.hosts.engines["tower"].go_away()
        self.hosts.engines["local"].go_away()
        status, _, body = self.client().get(b"/readyz", b"").answer()
        self.assertEqual(status, 503)
        self.assertIn("host rack is away", json.loads(body)["reason"])

    def test_hosts_are_listed(self) -> None:
        """With what is on them."""
        self.warm("coder")
        self.hosts.engines["rack"].go_away()
        found = {host["name"]: host for host in self.api(b"/api/hosts")["hosts"]}
        self.assertEqual(list(found), ["local", "tower", "rack"])
        self.assertEqual(found["rack"]["away"], "its cable is out")
        self.assertIn("tower/0", found["tower"]["gpus"])
        at = self.api(b"/api/backends/coder")["host"]
        self.assertEqual(found[at]["backends"], ["coder"])
        self.assertIn(f"It is on {at}.", self.api(b"/api/backends/coder/why")["why"])

    def test_metrics_tell_which_hosts_answer(self) -> None:
        """And of GPUs by the names that tell them apart."""
        self.hosts.engines["rack"].go_away()
        told = {family.name: dict(family.values) for family in Sharing(self.fleet).collect()}
        self.assertEqual(told["llmproxy_host_up"], {("local",): 1, ("tower",): 1, ("rack",): 0})
        self.assertIn(("tower/0",), told["llmproxy_gpu_memory_capacity"])

    def test_a_plan_names_the_host(self) -> None:
        """For programs, and in words."""
        found = self.api(b"/api/plan?backend=chat")
        (start,) = found["plan"]["starts"]
        self.assertTrue(found["told"][0].endswith(f"it fits on {start['host']}."))


HOSTS = [
    {
        "name": "tower",
        "engine": "ssh://tower",
        "away": None,
        "expected": True,
        "backends": ["coder"],
        "gpus": ["tower/0"],
    },
    {
        "name": "rack",
        "engine": "tcp://rack:2376",
        "away": "its cable is out",
        "expected": True,
        "backends": [],
        "gpus": [],
    },
    {
        "name": "local",
        "engine": "unix:///x",
        "away": "no such file",
        "expected": False,
        "backends": [],
        "gpus": [],
    },
]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A server that speaks the admin API's shapes."""
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch) as fake:
        yield fake


def test_the_command_shows_hosts(proxy: FakeProxy) -> None:
    """A line for each, and why one is away that is missed."""
    assert "this machine alone" in run("hosts").stdout
    proxy.documents["hosts"] = {"hosts": HOSTS}
    shown = run("hosts").stdout
    assert "host rack is away: its cable is out" in shown
    assert "not used" in shown
    assert "no such file" not in shown
    assert json.loads(run("hosts", "--json").stdout)["hosts"] == HOSTS


def test_status_tells_of_hosts_that_are_away(proxy: FakeProxy) -> None:
    """Below the table; of one backend it tells on which it is."""
    proxy.documents["hosts"] = {"hosts": HOSTS}
    assert "host rack is away: its cable is out" in run("status").stdout
    proxy.backends["coder"] = backend("coder", "ready", host="tower")
    assert "host:        tower" in run("status", "coder").stdout
