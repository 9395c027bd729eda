"""The dashboard in a real browser: what an operator sees and does there, by mouse, keyboard and phone."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.browser import Browser, Page, chromium
from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, Proxy, demo
from tests.integration.world import until

MARKUP = "<img src=x onerror=document.title='hit'><b>bold</b>"
PAGES = ("", "requests", "usage", "playground", "backends/coder")

FAILING = """
print("INFO [core.py:77] Initializing a V1 LLM engine", flush=True)
print("a line with <img src=x onerror=document.title='hit'><b>bold</b>", flush=True)
print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.48 GiB.", flush=True)
raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests; each has tabs of its own."""
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


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


def address(proxy: Proxy, path: str = "") -> str:
    return f"http://127.0.0.1:{proxy.port}/ui/{path}"


def sign_in(page: Page, proxy: Proxy, path: str = "") -> None:
    page.goto(address(proxy, path))
    page.until("document.activeElement.id === 'key'")
    page.type(ADMIN)
    page.press("Enter")
    page.until("!!document.querySelector('#sign-out')")


def row(route: str, rest: str = "") -> str:
    return f"[data-backend='{route}'] {rest}".strip()


def pill(page: Page, route: str, words: str, seconds: float = 10.0) -> None:
    page.says(words, row(route, ".pill"), seconds)


def later(what: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


# -- who may see it -----------------------------------------------------------------------------------


def test_signing_in_and_out(launch: Launch, page: Page) -> None:
    """A wrong key is told so; the right one opens the page that was asked for; signing out ends all tabs."""
    proxy = launch({"coder": demo()})
    page.goto(address(proxy, "requests"))
    page.says("Sign in to llmproxy")
    page.type("no such key")
    page.press("Enter")
    page.says("That is not the admin key.", "#wrong")
    assert page.focused() == "key"
    assert page.js("document.querySelector('#key').getAttribute('aria-invalid')") == "true"
    page.type(ADMIN)
    page.press("Enter")
    page.says("Finished")
    assert page.js("location.pathname") == "/ui/requests"
    assert page.js("document.cookie") == ""
    page.goto(address(proxy))
    pill(page, "coder", "off")
    other = page.beside()
    other.goto(address(proxy, "usage"))
    other.click("#sign-out")
    other.says("Sign in to llmproxy")
    other.close()
    page.call("Page.bringToFront")
    page.says("Sign in to llmproxy")


def test_without_keys_there_is_no_sign_in(launch: Launch, page: Page) -> None:
    """Whoever reaches such a proxy may do everything."""
    proxy = launch({"coder": demo()}, keys=[], environment={"VLLM_API_KEY": ""})
    page.goto(address(proxy))
    pill(page, "coder", "off")
    assert not page.js("!!document.querySelector('#sign-out')")
    page.click(row("coder", "[data-verb=start]"))
    pill(page, "coder", "ready")


@contextmanager
def another_site(body: str) -> Iterator[int]:
    """A page of somebody else, on another port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = later(server.serve_forever)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_pages_of_others_cannot_act(launch: Launch, browser: Browser, host: str) -> None:
    """From another port, which shares the cookie, and from another host: by script, form and in a frame."""
    proxy = launch({"coder": demo()})
    page = browser.page()
    sign_in(page, proxy)
    pill(page, "coder", "off")
    start = address(proxy, "api/backends/coder/start")
    open_start = f"http://127.0.0.1:{proxy.port}/api/backends/coder/start"
    body = f"""<!doctype html><title>evil</title><link rel="icon" href="data:,">
        <form id="form" method="post" enctype="text/plain" action="{start}" target="inner"></form>
        <iframe name="inner"></iframe><iframe id="frame" src="{address(proxy)}"></iframe>
        <script>
        const ask = (url, more) => fetch(url, {{method: "POST", credentials: "include", ...more}})
          .then((answer) => answer.type + answer.status, () => "failed");
        window.done = Promise.all([
          ask("{start}", {{mode: "no-cors", body: "{{}}"}}),
          ask("{start}", {{headers: {{"Content-Type": "application/json"}}, body: "{{}}"}}),
          ask("{open_start}", {{mode: "no-cors"}}),
        ]);
        document.getElementById("form").submit();
        </script>"""
    with another_site(body) as port:
        page.goto(f"http://{host}:{port}/")
        assert page.js("window.done") == ["opaque0", "failed", "opaque0"]
        assert (
            page.js("(() => { try { return frame.contentDocument.title; } catch { return null; } })()")
            is None
        )
    refused = until(lambda: [line for line in proxy.log().splitlines() if "/start" in line])
    until(lambda: proxy.log().count("status=403") >= 3)
    assert refused
    assert proxy.state("coder") == "absent"
    assert any("frame" in each.lower() for each in page.complaints), page.complaints
    page.close()


# -- the fleet, live ----------------------------------------------------------------------------------


def test_a_start_is_followed_live(launch: Launch, page: Page) -> None:
    """From the button over the phases to ready, with no reload; and its stop; both are in the last hour."""
    proxy = launch({"coder": demo("--start-delay", "3"), "chat": demo()})
    sign_in(page, proxy)
    page.says("Live", "#live")
    pill(page, "coder", "off")
    page.js("window.here = true")
    page.click(row("coder", "[data-verb=start]"))
    pill(page, "coder", "starting")
    page.says("loading weights", row("coder", ".startup"))
    page.until(f"!!document.querySelector({json.dumps(row('coder', 'progress'))})")
    pill(page, "coder", "ready")
    page.says("coder is ready.", "#said")
    page.says("1 ready", "#summary")
    page.click(row("coder", "[data-verb=stop]"))
    pill(page, "coder", "off")
    assert page.js("window.here") is True
    assert page.js("[...document.querySelectorAll('#timeline .span')].map((one) => one.classList[1])") == [
        "s-starting",
        "s-ready",
        "s-stopping",
    ]
    assert "coder: starting for" in page.js(
        "document.querySelector('#timeline svg').getAttribute('aria-label')"
    )
    page.click(".events summary")
    page.says("starting → ready", "#events")


def test_sleep_and_wake(launch: Launch, page: Page) -> None:
    """A model that can sleep is put to sleep and woken; what it holds meanwhile is in the picture."""
    proxy = launch(
        {
            "coder": demo(
                "--enable-sleep-mode",
                "--gpu-memory-utilization",
                "0.5",
                gpu_memory=0.5,
                environment={"VLLM_SERVER_DEV_MODE": "1"},
            )
        },
        gpus={"0": {"memory": "24GiB", "reserve": "2GiB"}},
    )
    lease = {"gpu": "0", "memory": "3GiB", "seconds": "1h", "note": MARKUP}
    assert proxy.ask("POST", "/api/leases", lease, key=ADMIN).status == 201
    proxy.act("coder", "start")
    sign_in(page, proxy)
    pill(page, "coder", "ready")
    page.says("12.0 GiB, ready", "#gpus .parts")
    page.says("2.0 GiB, kept free", "#gpus .parts")
    page.says("<img src=x", "#gpus .parts")
    page.says("7.0 GiB", "#gpus .parts")
    page.click(row("coder", "[data-verb=sleep]"))
    pill(page, "coder", "asleep")
    page.says("asleep", "#gpus .parts")
    page.click(row("coder", "[data-verb=wake]"))
    pill(page, "coder", "ready")


def test_who_waits_and_who_is_answered(launch: Launch, page: Page) -> None:
    """With the name of the key, and how long for; gone when it is over, and then in the list of those."""
    proxy = launch({"coder": demo("--start-delay", "3")})
    sign_in(page, proxy)
    pill(page, "coder", "off")
    asking = later(lambda: proxy.chat("coder", max_tokens=20, ignore_eos=True, demo_token_delay=0.1))
    page.says("waiting", "#open")
    page.says("site", "#open")
    page.says("POST /v1/chat/completions", "#open")
    page.says("1 waiting", row("coder"))
    page.until("parseInt(document.querySelector('#open td.number').textContent) >= 2")
    page.says("in flight", "#open")
    page.says("1 in flight", row("coder"))
    page.until("document.querySelector('#open-section').hidden")
    asking.join(10)
    page.goto(address(proxy, "requests"))
    page.says("coder", "#finished tbody")
    cells = page.js(
        "[...document.querySelectorAll('#finished tbody tr:first-child td')].map((one) => one.innerText)"
    )
    assert cells[1:5] == ["ok", "coder", "site", "POST /v1/chat/completions"]
    assert cells[8].endswith("→ 20")


def test_stopping_what_is_in_use_asks(launch: Launch, page: Page) -> None:
    """Nothing is done, or it ends when its requests are done, or at once."""
    proxy = launch({"coder": demo()})
    proxy.act("coder", "start")
    sign_in(page, proxy)
    with proxy.streaming("coder") as wire:
        page.says("1 in flight", row("coder"))
        page.click(row("coder", "[data-verb=stop]"))
        page.says("It is answering 1 request at present.", "dialog")
        page.press("Escape")
        page.until("!document.querySelector('dialog')")
        assert proxy.state("coder") == "ready"
        page.click(row("coder", "[data-verb=stop]"))
        assert page.focused() == "Stop when they are done"
        page.press("Enter")
        page.says("finishing 1 request", row("coder"))
        page.click(row("coder", "[data-verb=stop]"))
        page.click("dialog .bad")
        pill(page, "coder", "off")
        assert b"backend_died" in wire.rest()


def test_a_failure_is_explained(launch: Launch, page: Page) -> None:
    """Cause, what helps and the last lines, as text whatever is in them; and it can be tried again."""
    broken = {"runtime": "process", "command": [sys.executable, "-c", FAILING], "models": ["big"]}
    proxy = launch({"big": broken})
    sign_in(page, proxy)
    page.click(row("big", "[data-verb=start]"))
    pill(page, "big", "failed")
    page.says("CUDA out of memory", row("big", ".sentence"))
    page.click(row("big", "a.name"))
    page.says("The start failed", ".failure")
    page.says("What helps:", ".failure")
    page.says("exit code 1", ".failure")
    page.says(MARKUP, ".failure pre")
    page.says(MARKUP, "#log")
    assert page.js("document.querySelectorAll('.failure pre *, #log *, main img').length") == 0
    assert page.js("document.title") == "big · llmproxy"
    page.js("document.querySelector('.failure summary').click()")
    page.js("document.querySelector('[data-verb=reset]').focus()")
    page.js("new Promise((done) => setTimeout(done, 2500))")
    assert page.js("document.querySelector('.failure details').open") is False
    assert page.focused() == "Reset big"
    page.press("Enter")
    page.says("off", "#backend .pill")
    page.says("Its last failure", ".failure")
    assert page.focused() == "Start big"
    page.js("document.querySelector('.failure summary').click()")
    page.js("new Promise((done) => setTimeout(done, 2500))")
    assert page.js("document.querySelector('.failure details').open") is True


def test_logs_are_followed(launch: Launch, page: Page) -> None:
    """Lines come as they are written, over a stop and a start; the view can be held."""
    proxy = launch({"coder": demo("--log-line", "a first line")})
    sign_in(page, proxy, "backends/coder")
    page.says("coder is absent", "#backend")
    page.click("[data-verb=start]")
    page.says("a first line", "#log")
    page.says("following", "#log-state")
    page.says("ready", "#backend .pill")
    before = page.text("#log")
    page.click("#follow")
    page.says("paused", "#log-state")
    page.click("#follow")
    page.says("a first line", "#log")
    assert page.text("#log").startswith(before[:200])


# -- the playground -----------------------------------------------------------------------------------


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


# -- for everybody ------------------------------------------------------------------------------------


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


def test_a_connection_that_was_lost_comes_back(launch: Launch, page: Page) -> None:
    """While the proxy is away that is said; when it is there again, the page shows it as it is."""
    proxy = launch({"coder": demo()})
    sign_in(page, proxy)
    page.says("Live", "#live")
    proxy.stop()
    page.says("Connection lost", "#live")
    proxy.start()
    # Sessions are kept in memory only.
    page.says("Sign in to llmproxy", seconds=20)
    page.complaints.clear()


def test_the_files_come_with_the_package(launch: Launch, tmp_path: Path) -> None:
    """A page of the running proxy names none that it does not have."""
    proxy = launch({"coder": demo()})
    answer = proxy.ask("GET", "/ui/", key=ADMIN)
    assert answer.status == 200
    for part in answer.body.decode().split('"/ui/static/')[1:]:
        name = part.partition('"')[0]
        assert proxy.ask("GET", f"/ui/static/{name}", key=None).status == 200
