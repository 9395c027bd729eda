"""The dashboard's playground in a real browser."""

from __future__ import annotations

import sys

from tests.integration.browser import Page
from tests.integration.conftest import Launch
from tests.integration.dashboard import FAILING, MARKUP, sign_in
from tests.integration.proxy import demo
from tests.integration.world import until


def test_the_playground_streams(launch: Launch, page: Page) -> None:
    """A cold model: first how far it is, then its words as they come, and how fast they were."""
    proxy = launch({"coder": demo("--start-delay", "3", "--token-delay", "0.05"), "chat": demo()})
    sign_in(page, proxy, "playground?model=coder-model")
    page.until("document.querySelectorAll('#model option').length === 2")
    page.says("off: a message starts it", "#model-state")
    page.js("document.querySelector('#words').focus()")
    page.type(f"What is {MARKUP}?")
    page.press("Enter")
    page.says("loading weights", "#cold")
    page.says("about", "#cold .eta")
    page.says("You said", ".turn.assistant")
    assert page.js("!!document.querySelector('.turn.busy')")
    page.until("!document.querySelector('.turn.busy')", 20)
    assert MARKUP in page.text(".turn.assistant")
    assert page.js("document.querySelectorAll('#talk b, #talk img').length") == 0
    page.says("tok/s", "#figures")
    page.says("first word after", "#figures")
    assert page.js("document.querySelector('#cold').hidden") is True
    assert page.focused() == "words"


def test_heartbeats_are_shown(launch: Launch, page: Page) -> None:
    """What the proxy tells those who wait is what is shown: the reason and the time that is left."""
    proxy = launch({"coder": demo("--start-delay", "4", heartbeat_after="0s", heartbeat_every="200ms")})
    sign_in(page, proxy, "playground")
    page.until("document.querySelectorAll('#model option').length === 1")
    # Without the operator's view there are only the heartbeats.
    page.call("Network.setBlockedURLs", urls=["*/ui/api/backends/*"])
    page.js("document.querySelector('#words').focus()")
    page.type("Hello")
    page.press("Enter")
    page.says("loading weights", "#cold")
    page.says("2 s so far", "#cold .eta")
    page.says("You said: Hello", ".turn.assistant", 20)
    page.complaints.clear()


def test_the_playground_stops(launch: Launch, page: Page) -> None:
    """The stop button ends the answer at the engine, too; what was said by then stays."""
    proxy = launch({"coder": demo("--token-delay", "0.05")})
    proxy.act("coder", "start")
    sign_in(page, proxy, "playground?model=coder-model")
    page.until("document.querySelectorAll('#model option').length === 1")
    page.js("document.querySelector('#words').focus()")
    page.type("word " * 2000)
    page.press("Enter")
    page.says("You said", ".turn.assistant")
    page.click("#stop")
    page.says("Stopped.", ".turn.assistant")
    until(lambda: proxy.backend("coder")["in_flight"] == 0)
    assert proxy.stats("coder")["aborted"] == 1
    page.complaints.clear()


def test_the_playground_tells_what_went_wrong(launch: Launch, page: Page) -> None:
    """The proxy's own words and its hint."""
    broken = {"runtime": "process", "command": [sys.executable, "-c", FAILING], "models": ["big"]}
    proxy = launch({"big": broken})
    sign_in(page, proxy, "playground")
    page.until("document.querySelectorAll('#model option').length === 1")
    page.js("document.querySelector('#words').focus()")
    page.type("Hello")
    page.press("Enter")
    page.says("CUDA out of memory", ".turn.assistant .wrong")
    page.complaints.clear()
