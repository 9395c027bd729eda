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

from tests.integration.proxy import Demo, Proxy, running  # noqa: E402

Launch = Callable[..., Proxy]


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
