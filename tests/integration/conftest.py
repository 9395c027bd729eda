"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

# Before they are imported.
pytest.register_assert_rewrite(
    "tests.contract_runtimes", "tests.integration.proxy", "tests.integration.world"
)

from tests.integration.browser import Browser, Page, chromium  # noqa: E402
from tests.integration.proxy import Demo, Proxy, running  # noqa: E402
from tests.integration.swarm_proxy import ContainedProxy, NodeProxy  # noqa: E402
from tests.integration.swarm_services import Services  # noqa: E402
from tests.integration.swarm_world import SwarmWorld  # noqa: E402

Launch = Callable[..., Proxy]
Front = Callable[..., Proxy]


@pytest.fixture(params=["process"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Where the backends live."""
    return str(request.param)


@pytest.fixture
def launch(kind: str, tmp_path: Path) -> Iterator[Launch]:
    """Start proxies in folders of their own; all are ended with what they have started.

    ``launch({"a": demo(...)}, drain="1s")``: the backends by route, then settings at the top of the file and
    the options of :func:`tests.integration.proxy.running`.
    """
    with ExitStack() as stack:
        count = 0

        def one(backends: dict[str, Demo | dict[str, Any]], **options: Any) -> Proxy:
            nonlocal count
            count += 1
            folder = tmp_path / str(count)
            folder.mkdir()
            return stack.enter_context(running(kind, folder, backends, **options))

        yield one


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests; each has tabs of its own."""
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="session")
def _swarm() -> Iterator[SwarmWorld]:
    world = SwarmWorld.make()
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def swarm(_swarm: SwarmWorld) -> Iterator[SwarmWorld]:
    """Three engines joined into a Swarm, the same ones for all tests; whole again after each."""
    yield _swarm
    _swarm.recover()


@pytest.fixture
def front(swarm: SwarmWorld, tmp_path: Path) -> Iterator[Front]:
    """Start proxies in front of services of the Swarm: ``front({"a": demo(...)})``.

    ``where``: ``overlay``: in a container on the network of the services; ``node``: beside the manager's
    engine; ``outside``: on a machine of its own, so that tasks are reached by ports of their nodes.
    ``beside``: another one, in front of whose services it is.
    """
    started: list[Proxy] = []
    kinds: dict[str, type[Proxy]] = {"overlay": ContainedProxy, "node": NodeProxy, "outside": Proxy}

    def one(
        backends: dict[str, Demo | dict[str, Any]],
        *,
        where: str = "overlay",
        beside: Proxy | None = None,
        **top: Any,
    ) -> Proxy:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        services = Services(swarm, where == "outside") if beside is None else beside.world
        proxy = kinds[where](folder, services)
        started.append(proxy)
        proxy.configure(backends, **top)
        proxy.start()
        return proxy

    yield one
    swarm.recover()
    for proxy in started:
        proxy.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab; in the end nothing may have broken the policy, and the console must be clean."""
    opened = browser.page()
    yield opened
    assert opened.violations() == []
    # The sign-in is a page with status 401, and a wrong key is answered with that.
    expected = ("status of 401", "status of 429")
    assert [each for each in opened.complaints if not any(words in each for words in expected)] == []
    opened.close()
