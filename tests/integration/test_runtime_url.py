"""The runtime of what is always on."""

from __future__ import annotations

import pytest
from attrs import define, field
from twisted.internet import reactor as global_reactor

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Address, Exit, StartRefused
from llmproxy.runtimes.url import UrlRuntime, read_url
from tests.contract_runtimes import Reactor, Rig, RuntimeContract, on_reactor
from tests.fakes import RecordingWatcher

REACTOR: Reactor = global_reactor


@define
class UrlRig:
    """Backends that are never absent."""

    reactor: Reactor
    can_stop: bool = False
    runtime: UrlRuntime = field(factory=UrlRuntime)

    def make_runtime(self) -> UrlRuntime:
        return UrlRuntime()

    def spec(self, route: str) -> BackendSpec:
        return BackendSpec(route, runtime="url", url="http://192.168.1.20:8000/base/")

    stubborn = brief = broken = spec

    async def kill(self, spec: BackendSpec) -> None:
        raise AssertionError("nobody can")

    async def close(self) -> None:
        await self.runtime.close()


@pytest.fixture
def rig() -> Rig:
    """A runtime for one test."""
    return UrlRig(REACTOR)


class TestUrlRuntime(RuntimeContract):
    """The contract, as far as it speaks of what cannot be stopped."""


@on_reactor
async def test_always_running(rig: UrlRig) -> None:
    """It runs when it is watched, and after a stop."""
    watcher = RecordingWatcher()
    await rig.runtime.watch(rig.spec("a"), watcher)
    await rig.runtime.stop(rig.spec("a"), 1)
    assert watcher.kinds() == ["running"]
    instance = await rig.runtime.ensure_started(rig.spec("a"))
    assert instance.run == "url:http://192.168.1.20:8000/base/"
    assert instance.addresses == (Address("192.168.1.20", 8000, "url", prefix="/base"),)


@on_reactor
async def test_no_url(rig: UrlRig) -> None:
    """One without a usable URL does not run and refuses to start."""
    watcher, spec = RecordingWatcher(), BackendSpec("a", runtime="url", url="far:8000")
    await rig.runtime.watch(spec, watcher)
    assert watcher.events == [("gone", None, Exit())]
    with pytest.raises(StartRefused):
        await rig.runtime.ensure_started(spec)


def test_read_url() -> None:
    """The scheme gives the port where the URL has none."""
    assert read_url("https://x.example") == Address("x.example", 443, "url", True)
    assert str(read_url("http://[::1]:81/v")) == "http://[::1]:81/v"
