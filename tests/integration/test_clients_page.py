"""docs/clients.md: what is there to be copied works, word for word but for the address and the key."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.integration.conftest import Launch
from tests.integration.proxy import KEY, Proxy, content, demo
from tests.integration.world import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()


def blocks(title: str, language: str) -> list[str]:
    """The code of a section."""
    section = re.split(r"^## ", PAGE.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def proxy(launch: Launch) -> Proxy:
    """A cold model with the name that the page uses."""
    proxy = launch({"coder": demo("--served-model-name", "coder3b", models=["coder3b"])})
    (proxy.folder / ".env").write_text(f"VLLM_API_KEY={KEY}\n")
    return proxy


def run(proxy: Proxy, command: list[str], code: str) -> str:
    """What the code prints."""
    code = code.replace("localhost:8000", f"127.0.0.1:{proxy.port}").replace(
        'api_key="..."', f"api_key={KEY!r}"
    )
    done = subprocess.run(
        [*command, code],
        cwd=proxy.folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("title", ["OpenAI's packages", "Anthropic's packages"])
def test_python(proxy: Proxy, title: str) -> None:
    """The Python code streams an answer."""
    (code,) = blocks(title, "python")
    assert run(proxy, [sys.executable, "-c"], code).startswith("You said: Hello!")


def test_curl(proxy: Proxy) -> None:
    """So does the command with curl, its hint among its headers."""
    (code,) = blocks("curl", "bash")
    assert content(run(proxy, ["/bin/sh", "-c"], code).encode()).startswith("You said: Hello!")
