"""The operator's command on a real terminal: what it draws in place, its colours, what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, Proxy, demo
from tests.integration.terminal import Terminal


@pytest.fixture
def proxy(launch: Launch) -> Proxy:
    """A proxy with models that start slowly, quickly and not at all."""
    return launch(
        {
            "coder": demo("--start-delay", "2.5"),
            "quick": demo(),
            "broken": demo("--start-delay", "60", "--exit-after", "0.1", "--exit-code", "3"),
        }
    )


def environment(proxy: Proxy, **more: str) -> dict[str, str]:
    """What the command needs to find the proxy."""
    found = {"LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}", "LLMPROXY_ADMIN_KEY": ADMIN}
    return {**proxy.environ(), **found, **more}


def on_terminal(proxy: Proxy, *arguments: str, **options: Any) -> Terminal:
    """Run it there."""
    more = options.pop("environment", {})
    return Terminal(arguments, environment(proxy, **more), proxy.folder, **options)


def test_watching(proxy: Proxy) -> None:
    """--watch draws in place as soon as something happens; Ctrl-C ends it, and what was seen last stays."""
    with on_terminal(proxy, "status", "--watch", "30", columns=80) as terminal:
        terminal.until("every 30 s")
        assert terminal.text().count("BACKEND") == 1
        assert proxy.act("quick", "start").json["state"] == "ready"
        terminal.until("ready")
        assert terminal.text().count("BACKEND") == 1
        terminal.press("\x03")
        assert terminal.wait() == 0
        assert terminal.is_restored()
        left = terminal.raw.rpartition(b"\x1b[?1049l")[2].decode()
        assert "BACKEND" in left
        assert "ready" in left


def test_watching_is_ended(proxy: Proxy) -> None:
    """By TERM as well, and the terminal is as it was."""
    with on_terminal(proxy, "status", "-w") as terminal:
        terminal.until("every 2 s")
        before = terminal.settings_at_first
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
        assert terminal.is_restored()
        assert terminal.settings() == before


def test_progress(proxy: Proxy) -> None:
    """A line for each backend while they start, with phases; then only what has become of each."""
    with on_terminal(proxy, "start", "coder", "quick", columns=80) as terminal:
        terminal.until("loading weights")
        rows = [line for line in terminal.lines() if line]
        assert [row.split()[1] for row in rows] == ["coder", "quick"]
        assert "starting" in rows[0]
        assert terminal.wait() == 0
        coder, quick = (line for line in terminal.lines() if line)
        assert coder.startswith("coder: ready after")
        assert quick.startswith("quick: ready after")
        assert terminal.is_restored()
    assert proxy.state("coder") == "ready"
    # The second start knows from the first how long it takes.
    with on_terminal(proxy, "restart", "coder", columns=80) as terminal:
        terminal.until(" s left")
        assert terminal.wait() == 0
    with on_terminal(proxy, "stop", "coder", "quick") as terminal:
        assert terminal.wait() == 0
        assert "coder: was ready, stopped after" in terminal.text()


def test_progress_of_what_fails(proxy: Proxy) -> None:
    """Others are told how they have fared, the reason follows, and the status is 1."""
    with on_terminal(proxy, "start", "broken", "coder", columns=80) as terminal:
        terminal.until("failed")
        assert terminal.wait() == 1
        assert "coder: ready after" in terminal.text()
        assert "exit status 3" in terminal.text()
        assert "llmproxy logs broken" in terminal.text()


def test_a_start_is_left_alone(proxy: Proxy) -> None:
    """Ctrl-C gives up waiting, the start goes on, and the lines that were drawn are gone."""
    with on_terminal(proxy, "start", "coder") as terminal:
        terminal.until("loading weights")
        terminal.press("\x03")
        assert terminal.wait() == 1
        assert "Given up waiting for coder; the proxy goes on." in terminal.text()
        assert "loading weights" not in terminal.text()
        assert terminal.is_restored()
    proxy.until_state("coder", "ready")


def test_plain_lines_on_a_pipe(proxy: Proxy) -> None:
    """Nothing is drawn and nothing is coloured where nobody looks."""
    command = [sys.executable, "-m", "llmproxy", "start", "coder"]
    done = subprocess.run(
        command, env=environment(proxy), cwd=proxy.folder, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"coder: ready after")
    assert b"\x1b" not in done.stdout


def test_colours(proxy: Proxy) -> None:
    """States have theirs on a terminal, unless NO_COLOR is set."""
    assert proxy.act("quick", "start").json["state"] == "ready"
    for words in (["status"], ["events"]):
        with on_terminal(proxy, *words) as terminal:
            assert terminal.wait() == 0
            assert "green" in terminal.colours()
        with on_terminal(proxy, *words, environment={"NO_COLOR": "1"}) as terminal:
            assert terminal.wait() == 0
            assert "ready" in terminal.text()
            assert not terminal.colours()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_it_fits(proxy: Proxy, columns: int) -> None:
    """No line of the table is broken, however narrow the terminal is."""
    with on_terminal(proxy, "status", columns=columns) as terminal:
        assert terminal.wait() == 0
        lines = [line for line in terminal.lines() if line]
        assert [line.split()[0] for line in lines] == ["BACKEND", "broken", "coder", "quick"]


def test_settings_are_grouped(proxy: Proxy) -> None:
    """On a terminal settings stand below what they are of; no value is cut off."""
    words = ("config", str(proxy.file), "--changed", "--no-docker")
    with on_terminal(proxy, *words, columns=80, rows=120) as terminal:
        assert terminal.wait() == 0
        lines = terminal.lines()
        (place,) = (number for number, line in enumerate(lines) if line == "backends.coder")
        assert any("coder-model" in line for line in lines[place + 1 : place + 20])
        assert "..." not in terminal.text()


def test_what_is_imported(proxy: Proxy) -> None:
    """What is quick stays quick: a command loads neither Twisted nor settings, nor what others draw with."""
    code = "import sys; from llmproxy.cli.main import cli\n"
    code += "try: cli(sys.argv[1:], prog_name='llmproxy')\nexcept SystemExit: pass\n"
    code += "print(*sorted(sys.modules), file=sys.stderr)"
    loaded = {}
    for words in ("status", "status --json", "--help", "start quick", "completion bash"):
        done = subprocess.run(
            [sys.executable, "-c", code, *words.split()],
            env=environment(proxy),
            cwd=proxy.folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        loaded[words] = set(done.stderr.split())
    for words, modules in loaded.items():
        assert not modules & {"twisted", "yaml", "attr", "docker", "textual", "asyncio"}, words
    assert "rich.text" in loaded["status"]
    for words in ("status --json", "--help", "start quick"):
        assert "rich" not in loaded[words], words
