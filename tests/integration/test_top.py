"""llmproxy top: with its keys on a screen in memory, and on a real terminal against a real proxy."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import OptionList, RichLog, Static

from llmproxy.cli.client import Api, connect
from llmproxy.cli.top import app as app_module
from llmproxy.cli.top.app import TopApp
from llmproxy.cli.top.looking import look
from llmproxy.cli.top.screens import Ask, Read
from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, Proxy, demo
from tests.integration.terminal import Terminal
from tests.unit.fake_proxy import FAILURE, FakeProxy, backend, served
from tests.unit.test_cli_top import REQUESTS


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProxy]:
    """A running fake proxy, which the environment names."""
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch) as found:
        yield found


class Session:
    """An app on a screen in memory."""

    def __init__(self, app: TopApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys, and let happen what happens."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, what: Callable[[], object]) -> None:
        """Threads have done their part."""
        for _ in range(500):
            if what():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not happen")

    @property
    def screen(self) -> type[Screen[Any]]:
        """What is above all others."""
        return type(self.app.screen)

    def shown(self, name: str) -> str:
        """What stands in a part of the first screen."""
        return str(self.app.screen_stack[0].query_one(name, Static).content)


def on_screen(
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[Session], Awaitable[None]],
    size: tuple[int, int] = (100, 30),
) -> TopApp:
    """Run it with these keys."""
    monkeypatch.setattr(app_module, "_SETTLE", 0.0)
    api = connect(None)
    app = TopApp(api, 0.2, look(api))

    async def session() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(Session(app, pilot))

    asyncio.run(session())
    return app


def test_what_is_on_the_screen(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends, requests and GPUs, as they become, in whatever size."""
    fake.documents["requests"] = REQUESTS

    async def script(top: Session) -> None:
        assert "1 of 2 ready" in top.shown("#summary")
        assert "GPU 0" in top.shown("#gpus")
        assert "/v1/chat/completions" in top.shown("#requests")
        assert top.shown("#headings").split()[0] == "BACKEND"
        options = top.app.query_one(OptionList)
        assert "stops in 1 m 30 s" in str(options.get_option("coder").prompt)
        fake.backends["coder"]["idle_in"] = 5.0
        await top.until(lambda: "stops in 5.0 s" in str(options.get_option("coder").prompt))
        await top.press("down")
        fake.backends["new"] = backend("new", "failed", last_failure=FAILURE)
        await top.until(lambda: options.option_count == 3)
        assert options.highlighted == 1  # the selected one stays selected
        await top.pilot.resize_terminal(40, 12)
        await top.until(lambda: "WAITING" not in top.shown("#headings"))
        del fake.backends["chat"], fake.backends["new"]
        await top.until(lambda: options.option_count == 1)
        assert options.highlighted == 0

    on_screen(monkeypatch, script)


def test_keys_steer_the_selected_backend(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """s, x, z and w; what comes of it is told, a refusal, too."""

    def did() -> list[str]:
        return [path.removeprefix("/api/backends/") for verb, path, _ in fake.asked if verb == "POST"]

    async def script(top: Session) -> None:
        await top.press("down", "s")
        await top.until(lambda: "chat is to start; it is ready." in top.shown("#remark"))
        await top.press("up", "z")
        await top.until(lambda: "coder is to sleep; it is sleeping." in top.shown("#remark"))
        await top.press("w")
        await top.until(lambda: "coder is to wake" in top.shown("#remark"))
        await top.press("x")
        await top.until(lambda: "coder is to stop" in top.shown("#remark"))
        assert did() == ["chat/start", "coder/sleep", "coder/wake", "coder/stop"]
        del fake.backends["coder"]
        await top.press("s")
        await top.until(lambda: "There is no backend 'coder'." in top.shown("#remark"))

    on_screen(monkeypatch, script)


def test_news_at_the_end_is_not_shown(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at, or done, while the screen is taken down: nothing is left to show it on."""

    async def script(top: Session) -> None:
        seen = look(top.app._api)
        await top.app.screen_stack[0].remove_children()
        for news in (app_module.Looked(seen), app_module.Told("coder is to stop", "green")):
            top.app.post_message(news)
            await top.pilot.pause()
            assert top.app.is_running

    on_screen(monkeypatch, script)


@pytest.mark.parametrize(
    ("key", "asked"), [("y", [{}]), ("f", [{"force": ["1"]}]), ("n", []), ("escape", [])]
)
def test_a_busy_backend_is_stopped_when_that_is_meant(
    fake: FakeProxy, monkeypatch: pytest.MonkeyPatch, key: str, asked: list[dict[str, list[str]]]
) -> None:
    """What answers requests is stopped only after a question: when they are done, at once, or not."""
    fake.backends["coder"]["in_flight"] = 2

    async def script(top: Session) -> None:
        await top.press("x")
        assert top.screen is Ask
        await top.press("s")  # no key of the first screen
        await top.press(key)
        assert top.screen is not Ask
        stops = lambda: [query for verb, path, query in fake.asked if verb == "POST"]  # noqa: E731
        await top.until(lambda: stops() == asked)

    on_screen(monkeypatch, script)


def test_reading(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """l shows the output, and Enter why it is as it is; q leads back, and not out of it."""
    fake.output = "one\n\x1b[31mtwo\x1b[0m\n"

    def lines(top: Session) -> list[str]:
        return [strip.text.rstrip() for strip in top.app.screen.query_one(RichLog).lines]

    async def script(top: Session) -> None:
        await top.press("l")
        assert top.screen is Read
        await top.until(lambda: lines(top) == ["one", "two", "-- the end"])
        await top.press("up", "down", "q")
        assert len(top.app.screen_stack) == 1
        await top.press("enter")
        await top.until(lambda: "It needs 0.60 of GPU 0 (as it says)." in lines(top))
        await top.press("escape")
        fake.key = "another"
        await top.press("l")
        await top.until(lambda: lines(top)[:1] and "does not know this key" in " ".join(lines(top)))

    on_screen(monkeypatch, script)


def test_the_proxy_goes_away_and_comes_back(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen last stays, and it is said why."""
    key = fake.key

    async def script(top: Session) -> None:
        fake.key = "another"
        await top.until(lambda: "does not know this key" in top.shown("#remark"))
        assert "1 of 2 ready" in top.shown("#summary")
        fake.key = key
        await top.until(lambda: "key" not in top.shown("#remark"))

    on_screen(monkeypatch, script)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_quitting(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """q and Ctrl-C end it, whatever is above the first screen with Ctrl-C."""

    async def script(top: Session) -> None:
        if key == "ctrl+c":
            await top.press("l")
        await top.press(key)
        await top.until(lambda: not top.app.is_running)

    assert not on_screen(monkeypatch, script).return_code


def test_with_no_backends(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys do nothing."""
    fake.backends.clear()

    async def script(top: Session) -> None:
        await top.press("down", "s", "x", "l", "enter")
        assert len(top.app.screen_stack) == 1

    on_screen(monkeypatch, script)
    assert not [path for verb, path, _ in fake.asked if verb == "POST"]


def test_a_silent_log_is_left(fake: FakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that it came by is closed when nobody reads any more."""
    ended: list[str] = []

    def logs(self: Api, name: str, tail: int, *, follow: bool, can_end: Any) -> Iterator[str]:
        can_end(lambda: ended.append(name))
        yield "a line"

    monkeypatch.setattr(Api, "logs", logs)

    async def script(top: Session) -> None:
        await top.press("l", "q")
        await top.until(lambda: ended == ["coder"])

    on_screen(monkeypatch, script)


# -- on a real terminal -----------------------------------------------------------------------------


@pytest.fixture
def proxy(launch: Launch) -> Proxy:
    """A proxy with a model that is quick to start."""
    return launch({"coder": demo("--start-delay", "0.3", "--log-line", "a line of its log"), "chat": demo()})


def on_terminal(proxy: Proxy, *arguments: str, **options: Any) -> Terminal:
    """Start it there."""
    environment = {**proxy.environ(), "LLMPROXY_URL": f"http://127.0.0.1:{proxy.port}"}
    environment["LLMPROXY_ADMIN_KEY"] = ADMIN
    return Terminal(["top", *arguments], environment, proxy.folder, **options)


def test_a_session(proxy: Proxy) -> None:
    """Start a model, see it answer, read its log, stop it and quit; the terminal is as it was before."""
    with on_terminal(proxy) as terminal:
        terminal.until("0 of 2 ready")
        before = terminal.settings_at_first
        terminal.press("\x1b[B")  # down: they are in the order of the file, chat first
        terminal.press("s")
        terminal.until("1 of 2 ready")
        assert proxy.state("coder") == "ready"
        with proxy.streaming("coder"):
            terminal.until("1 in flight", "/v1/chat/completions")
            terminal.press("x")
            terminal.until("coder answers 1 request. Stop it?")
            terminal.press("n")
        terminal.until("0 in flight")
        terminal.press("l")
        terminal.until("a line of its log")
        terminal.press("q")
        terminal.until("0 in flight")
        terminal.press("x")
        terminal.until("0 of 2 ready")
        proxy.until_state("coder", "absent")
        terminal.resize(60, 15)
        terminal.until("BACKEND")
        assert max(map(len, terminal.lines())) <= 60
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.settings() == before
        assert terminal.is_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_restored(proxy: Proxy, number: int) -> None:
    """However it is ended: by a signal, or by Ctrl-C."""
    with on_terminal(proxy) as terminal:
        terminal.until("0 of 2 ready")
        before = terminal.settings_at_first
        if number == signal.SIGINT:
            terminal.press("\x03")
        else:
            os.kill(terminal.pid, number)
        assert terminal.wait() == (0 if number == signal.SIGINT else 128 + number)
        assert terminal.settings() == before
        assert terminal.is_restored()


def test_the_proxy_ends_meanwhile(proxy: Proxy) -> None:
    """It is said, what was seen stays, and q still quits at once."""
    with on_terminal(proxy) as terminal:
        terminal.until("0 of 2 ready")
        proxy.stop()
        terminal.until("not reachable", "This was seen last.")
        assert "coder" in terminal.text()
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.is_restored()


def test_what_is_wrong_is_told_before(proxy: Proxy) -> None:
    """A proxy that is not there is status 1, and nothing is drawn."""
    with on_terminal(proxy, "--json") as terminal:
        assert terminal.wait() == 0
        assert '"backends"' in terminal.text()
    proxy.stop()
    with on_terminal(proxy) as terminal:
        assert terminal.wait() == 1
        assert "not reachable" in terminal.text()
        assert b"\x1b[?1049h" not in terminal.raw
