"""``/api/prometheus``: where Prometheus finds the metrics of the backends themselves."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from llmproxy.config.model import BackendSpec
from llmproxy.http.forwarded import TrustedProxies
from tests.front import CHAT, CODER, FrontCase
from tests.inmemory import HEALTHY
from tests.unit.test_front import ADMIN, KEY, Client, ClientTransport

FAR = BackendSpec(route="far", runtime="url", engine="generic", url="https://gpu.example:8443/deep", idle=0.0)


class TargetTests(FrontCase):
    """What it answers."""

    def targets(
        self, fields: bytes = b"Host: proxy.example:8000\r\n", query: bytes = b""
    ) -> list[dict[str, Any]]:
        client = self.client()
        client.send(b"GET /api/prometheus%b HTTP/1.1\r\n%b%b\r\n" % (query, fields, ADMIN))
        status, headers, body = client.answer()
        self.assertEqual(status, 200, body)
        self.assertEqual(headers["content-type"], "application/json")
        found = json.loads(body)
        assert isinstance(found, list)
        return found

    def target(self, fields: bytes, version: bytes = b"1.1") -> str:
        client = self.client()
        client.send(b"GET /api/prometheus HTTP/%b\r\n%b%b\r\n" % (version, fields, ADMIN))
        status, _, body = client.answer()
        if status != 200:
            return str(json.loads(body)["error"]["code"])
        (group,) = json.loads(body)
        (target,) = group["targets"]
        return f"{group['labels']['__scheme__']}://{target}"

    def test_none_is_an_empty_list(self) -> None:
        """Nothing is ready, and asking starts nothing."""
        self.assertEqual(self.targets(), [])
        self.assertEqual(self.started(), 0)

    def test_what_is_ready_is_told_by_the_proxys_own_address(self) -> None:
        """With the path behind the route, and labels that say whose metrics they are."""
        self.warm("coder")
        self.assertEqual(
            self.targets(),
            [
                {
                    "targets": ["proxy.example:8000"],
                    "labels": {
                        "__scheme__": "http",
                        "__metrics_path__": "/coder/metrics",
                        "__meta_llmproxy_engine": "vllm",
                        "__meta_llmproxy_runtime": "docker",
                        "backend": "coder",
                        "route": "coder",
                        "model": "coder3b",
                    },
                }
            ],
        )
        self.assertEqual(self.started(), 1)

    def test_their_own_addresses_are_told_where_that_is_asked_for(self) -> None:
        """With TLS and the path of a server elsewhere."""
        self.build([CODER, FAR])
        self.warm("coder")
        probe = next(one for one in self.servers.requests if b"GET /deep/health" in one.received)
        probe.send(HEALTHY)
        coder, far = self.targets(query=b"?direct=1")
        address = self.backend("coder").address
        assert address is not None
        self.assertEqual(coder["targets"], [f"{address.host}:{address.port}"])
        self.assertEqual(coder["labels"]["__metrics_path__"], "/metrics")
        self.assertEqual(far["targets"], ["gpu.example:8443"])
        labels = far["labels"]
        self.assertEqual((labels["__scheme__"], labels["__metrics_path__"]), ("https", "/deep/metrics"))
        self.assertEqual((labels["__meta_llmproxy_engine"], labels["model"]), ("generic", ""))

    def test_where_it_was_asked_is_where_it_is(self) -> None:
        """By the name that was used, with the scheme's port where none was said."""
        self.build([CODER, evolve(CHAT, models=None)])
        self.warm("coder")
        for fields, url in (
            (b"Host: proxy.example\r\n", "http://proxy.example:80"),
            (b"Host: [2001:db8::1]:8000\r\n", "http://[2001:db8::1]:8000"),
            (b"Host: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n", "http://10.0.0.1:80"),
            (b'Host: a"b\r\n', "invalid_request"),
            (b"Host: user@a\r\n", "invalid_request"),
            (b"Host: a/b\r\n", "invalid_request"),
        ):
            self.assertEqual(self.target(fields), url)

    def test_a_trusted_proxy_says_where_it_was_reached(self) -> None:
        """It has the TLS, and the name by which it is known."""
        self.warm("coder")
        self.site.trusted = TrustedProxies(["192.168.1.1"])
        fields = b"Host: a\r\nX-Forwarded-For: 10.1.1.1\r\nX-Forwarded-Proto: https\r\n"
        self.assertEqual(self.target(fields), "https://a:443")
        self.assertEqual(
            self.target(fields + b"X-Forwarded-Host: llm.example:8443\r\n"), "https://llm.example:8443"
        )

    def test_a_request_without_host(self) -> None:
        """The address that its connection came to; a socket in the file system has none."""
        self.warm("coder")
        for address, told in (
            (IPv4Address("TCP", "10.1.2.3", 8000), "http://10.1.2.3:8000"),
            (IPv6Address("TCP", "fd00::1", 8000), "http://[fd00::1]:8000"),
            (UNIXAddress(b"/run/llmproxy.sock"), "invalid_request"),
        ):
            client = Client(self.site, ClientTransport(hostAddress=address))
            self.addCleanup(client.leave)
            client.send(b"GET /api/prometheus HTTP/1.0\r\n%b\r\n" % ADMIN)
            status, _, body = client.answer()
            found = json.loads(body)
            if status != 200:
                self.assertEqual(found["error"]["code"], told)
                self.assertIn("/api/prometheus", found["error"]["hint"])
            else:
                self.assertEqual("http://" + found[0]["targets"][0], told)

    def test_it_is_for_administrators(self) -> None:
        """A client's key is not enough."""
        client = self.client().get(b"/api/prometheus", KEY)
        self.assertEqual(client.error()[0], 403)
