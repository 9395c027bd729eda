"""The dashboard by keyboard, on a phone, light and dark, and with much to show."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.integration.browser import Page
from tests.integration.conftest import Launch
from tests.integration.dashboard import FAILING, PAGES, address, pill, row, sign_in
from tests.integration.proxy import demo


def test_by_keyboard_alone(launch: Launch, page: Page) -> None:
    """The first stop leads past the bar; a backend is started, and the focus stays and is seen."""
    proxy = launch({"coder": demo(), "chat": demo()})
    sign_in(page, proxy)
    pill(page, "coder", "off")
    page.js("document.activeElement.blur()")
    page.press("Tab")
    assert page.focused() == "Skip to the content"
    assert page.js("document.activeElement.getBoundingClientRect().top") >= 0
    page.press("Enter")
    page.until("location.hash === '#main'")
    seen = []
    for _ in range(8):
        page.press("Tab")
        seen.append(page.focused())
        if seen[-1] == "Start coder":
            break
    assert seen[-1] == "Start coder", seen
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("Enter")
    pill(page, "coder", "ready")
    page.until("document.activeElement.getAttribute('aria-label') === 'Stop coder'")
    page.press(" ")
    pill(page, "coder", "off")


def test_names_for_all_controls(launch: Launch, page: Page) -> None:
    """Whatever can be operated has a name, and whatever is a picture has words."""
    proxy = launch({"coder": demo()})
    proxy.act("coder", "start")
    sign_in(page, proxy)
    for path in PAGES:
        page.goto(address(proxy, path))
        page.until("!document.querySelector('[aria-busy]')")
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
        nameless = [
            node
            for node in tree
            if not node["ignored"]
            and node["role"]["value"]
            in (
                "button",
                "link",
                "textbox",
                "searchbox",
                "combobox",
                "checkbox",
                "spinbutton",
                "image",
                "img",
            )
            and not node.get("name", {}).get("value")
        ]
        assert nameless == [], path
        assert page.js("document.querySelectorAll('h1').length") == 1, path
        assert page.js("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_windows_scroll_one_way_only(launch: Launch, page: Page, width: int) -> None:
    """Whatever is on them, and however long a name is."""
    name = "a-rather-long-name-for-a-backend-that-somebody-may-well-have-chosen"
    broken = {"runtime": "process", "command": [sys.executable, "-c", FAILING], "models": ["m" * 80]}
    proxy = launch({"coder": demo(gpu_memory=0.3), name: broken})
    proxy.act("coder", "start")
    proxy.act(name, "start", "")
    proxy.until_state(name, "failed")
    proxy.chat("coder")
    sign_in(page, proxy)
    page.size(width, 800, phone=True)
    with proxy.streaming("coder"):
        for path in (*PAGES, f"backends/{name}"):
            page.goto(address(proxy, path))
            page.until("!document.querySelector('[aria-busy]')")
            if path in ("", "requests"):
                page.says("in flight", "#open")
            wide = page.js(
                "[...document.querySelectorAll('main *, header *')].filter((one) =>"
                " one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('nav, .unseen'))"
                ".map((one) => one.outerHTML.slice(0, 200))"
            )
            assert page.js("document.documentElement.scrollWidth") <= width, (path, wide)
            small = page.js(
                "[...document.querySelectorAll('main button')].filter((one) => one.offsetParent)"
                ".map((one) => one.offsetHeight).filter((height) => height < 40)"
            )
            assert small == [] or width >= 768, path


CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.getClientRects().length) continue;
    if (one.closest("svg, :disabled, .unseen, .skip, noscript")) continue;
    const back = [];
    for (let up = one; up; up = up.parentElement) back.unshift(getComputedStyle(up).backgroundColor);
    const below = paint(["white", ...back]);
    const text = paint(["white", ...back, getComputedStyle(one).color]);
    const [high, low] = [light(text), light(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push([ratio.toFixed(2), one.className, one.tagName, one.textContent].join(" "));
  }
  return found;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(launch: Launch, page: Page, dark: bool) -> None:
    """As the system is; all text can be read on what is behind it (WCAG 2.2, 1.4.3)."""
    broken = {"runtime": "process", "command": [sys.executable, "-c", FAILING], "models": ["big"]}
    proxy = launch({"coder": demo(gpu_memory=0.3), "big": broken, "chat": demo("--start-delay", "60")})
    proxy.act("coder", "start")
    proxy.act("big", "start", "")
    proxy.until_state("big", "failed")
    proxy.act("chat", "start", "")
    proxy.chat("coder")
    page.size(1200, 900, dark=dark)
    page.goto(address(proxy))
    assert page.js(CONTRAST) == []
    sign_in(page, proxy)
    with proxy.streaming("coder"):
        for path in (*PAGES, "backends/big"):
            page.goto(address(proxy, path))
            page.until("!document.querySelector('[aria-busy]')")
            if path == "":
                page.says("in flight", "#open")
            assert page.js(CONTRAST) == [], path
            red, green, blue = page.js(
                "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            )
            assert (red + green + blue < 200) is dark


def test_two_hundred_backends(launch: Launch, page: Page) -> None:
    """Are drawn at once, can be sifted, and leave the page responsive while it follows them."""
    specs: dict[str, Any] = {f"model-{number:03}": demo() for number in range(199)}
    proxy = launch({**specs, "coder": demo()})
    sign_in(page, proxy)
    page.until("document.querySelectorAll('.backend').length === 200")
    page.js(
        "window.longest = 0; new PerformanceObserver((list) => { for (const one of list.getEntries())"
        " window.longest = Math.max(window.longest, one.duration); }).observe({type: 'longtask'});"
    )
    page.click("#filter")
    page.type("code")
    page.until("[...document.querySelectorAll('.backend')].filter((one) => !one.hidden).length === 1")
    page.click(row("coder", "[data-verb=start]"))
    pill(page, "coder", "ready")
    assert page.js("document.querySelectorAll('*').length") < 6000
    assert page.js("window.longest") < 400


def test_many_requests_are_paged(launch: Launch, page: Page) -> None:
    """Fifty at a time, the newest first; older ones and back; and by what is asked for."""
    proxy = launch({"coder": demo(), "chat": demo()})
    for route in ("coder", "chat"):
        proxy.act(route, "start")
    for number in range(120):
        assert proxy.chat("chat" if number % 60 == 0 else "coder", max_tokens=1).status == 200
    sign_in(page, proxy, "requests")
    rows = "document.querySelectorAll('#finished tbody tr').length"
    page.until(f"{rows} === 50")
    page.click("#older")
    page.until("!document.querySelector('#newest').disabled")
    page.click("#older")
    page.until(f"{rows} === 20")
    assert page.js("document.querySelector('#older').disabled") is True
    page.click("#newest")
    page.until(f"{rows} === 50")
    page.js("document.querySelector('[name=backend]').value = 'chat'")
    page.js("document.querySelector('#filters').requestSubmit()")
    page.until(f"{rows} === 2")
    assert page.js("location.search") == "?backend=chat"
    page.goto(address(proxy, "usage"))
    page.says("118", "#by-backend")
    page.says("site", "#by-key")
    page.until("document.querySelectorAll('#by-day .day').length === 8")
