"""What the tests with real clients share: one proxy each, with backends that work and several that do not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.proxy import Demo, Proxy, demo, running

__all__ = ["HELLO", "WORDS", "backends", "cold", "curl", "serving", "stumbling"]

HELLO = "Hello from a real client"
WORDS: Any = [{"role": "user", "content": HELLO}]

_EXIT = ("--start-delay", "60", "--exit-code", "3", "--log-line", "the last words")


def stumbling(folder: Path, delay: str, **settings: Any) -> Demo:
    """A backend whose first start fails, and whose next one takes so long."""
    once = f'if [ -e "{folder}/stumbled" ]; then exec "$@"; fi; touch "{folder}/stumbled"; exit 3'
    return demo("--start-delay", delay, wrapper=["/bin/sh", "-c", once, "sh"], **settings)


def backends() -> dict[str, Demo | dict[str, Any]]:
    """By route.

    ``a`` starts in half a second; ``beats`` in 1.2 s, and its held streams hear of it every 0.2 s; ``broken``
    exits while it starts, ``late`` does so after its held streams have heard of it; ``slow`` is never ready,
    and one request may wait for it.
    """
    often = {"heartbeat_after": "0.2s", "heartbeat_every": "0.2s"}
    return {
        "a": demo("--start-delay", "0.5"),
        "beats": demo("--start-delay", "1.2", **often),
        "late": demo(*_EXIT, "--exit-after", "1.2", **often),
        "broken": demo(*_EXIT, "--exit-after", "0.3"),
        "slow": demo("--start-delay", "60", max_waiting=1),
    }


@contextmanager
def serving(kind: str, folder: Path, more: dict[str, Demo | dict[str, Any]] | None = None) -> Iterator[Proxy]:
    """A proxy with these backends and more."""
    with running(kind, folder, {**backends(), **(more or {})}) as proxy:
        yield proxy


def cold(proxy: Proxy, route: str = "a") -> None:
    """Make the next request to the route a cold one."""
    assert proxy.act(route, "stop").json["state"] == "absent"


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
