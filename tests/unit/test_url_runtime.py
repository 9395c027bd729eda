"""Servers at fixed addresses, and how a connection to an address is made."""

from __future__ import annotations

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec
from llmproxy.relay.endpoints import CONNECT_TIMEOUT, endpoint_for
from llmproxy.relay.upstream import UPSTREAM
from llmproxy.runtimes.interface import Address, Exit, Facts, Instance, StartRefused
from llmproxy.runtimes.url import UrlRuntime, read_url
from tests.fakes import RecordingWatcher


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://gpu:8001", Address("gpu", 8001, "url")),
        ("http://gpu", Address("gpu", 80, "url")),
        ("https://gpu/v2/", Address("gpu", 443, "url", True, "/v2")),
        ("http://[::1]:9", Address("::1", 9, "url")),
    ],
)
def test_an_address_is_read(url: str, address: Address) -> None:
    """Host, port (that of the scheme where none is given), TLS and what stands before each path."""
    assert read_url(url) == address


NO_URL = "is no http:// or https:// URL"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gpu:8001", NO_URL),
        ("ftp://gpu", NO_URL),
        ("http://", NO_URL),
        ("", NO_URL),
        ("http://gpu:many", "Port could not be cast"),
    ],
)
def test_what_is_no_address(url: str, words: str) -> None:
    """It is refused."""
    with pytest.raises(ValueError, match=words):
        read_url(url)


class UrlTests(SynchronousTestCase):
    """A server that somebody else runs."""

    def setUp(self) -> None:
        self.runtime = UrlRuntime()
        self.watcher = RecordingWatcher()

    def test_it_always_runs(self) -> None:
        """It is told as running at once; a start has nothing to do, and a stop does not stop it."""
        spec = BackendSpec("far", runtime="url", url="http://gpu:8001")
        wanted = Instance("url:http://gpu:8001", (Address("gpu", 8001, "url"),))
        self.successResultOf(self.runtime.ping())
        self.successResultOf(self.runtime.watch(spec, self.watcher))
        self.assertEqual(self.watcher.events, [("running", wanted)])
        self.assertEqual(self.successResultOf(self.runtime.ensure_started(spec)), wanted)
        self.successResultOf(self.runtime.stop(spec, 5))
        self.assertEqual(self.watcher.events, [("running", wanted)])

    def test_nothing_is_known_of_it(self) -> None:
        """Neither its command nor its output."""
        spec = BackendSpec("far", runtime="url", url="http://gpu:8001")
        self.assertEqual(self.successResultOf(self.runtime.facts(spec)), Facts())
        self.assertEqual(self.successResultOf(self.runtime.logs(spec, 10)), "")
        said: list[str] = []
        self.successResultOf(self.runtime.follow_logs(spec, 10, said.append))
        self.assertEqual(said, [])

    def test_an_address_that_cannot_be(self) -> None:
        """Nothing runs there, and whoever asks for it is told what to set."""
        spec = BackendSpec("far", runtime="url", url="ftp://gpu")
        self.successResultOf(self.runtime.watch(spec, self.watcher))
        self.assertEqual(self.watcher.events, [("gone", None, Exit())])
        refused = self.failureResultOf(self.runtime.ensure_started(spec), StartRefused).value
        self.assertIn("'ftp://gpu' is no http:// or https:// URL", str(refused))
        self.assertEqual(refused.hint, "Set `url` to http://host:port")


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_an_address_needs_no_resolution(host: str) -> None:
    """IPv4 and IPv6 addresses are connected to as they are, within the time that connecting may take."""
    reactor = MemoryReactorClock()
    endpoint_for(reactor, host, 8000).connect(UPSTREAM).addErrback(lambda _: None)
    ((to, port, _, timeout, _),) = reactor.tcpClients
    assert (to, port, timeout) == (host, 8000, CONNECT_TIMEOUT)


def test_a_name_is_resolved_for_each_connection() -> None:
    """Its address may be another one by then."""
    asked: list[str] = []

    class Resolver:
        def resolveHostName(self, receiver: object, name: str, *_: object, **__: object) -> None:
            asked.append(name)

    reactor = MemoryReactorClock()
    reactor.nameResolver = Resolver()  # type: ignore[assignment]
    endpoint = endpoint_for(reactor, "gpu.example", 8000)
    for _ in range(2):
        endpoint.connect(UPSTREAM)
    assert asked == ["gpu.example"] * 2
    assert reactor.tcpClients == []
