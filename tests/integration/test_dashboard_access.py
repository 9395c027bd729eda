"""Who may see the dashboard in a real browser, and what pages of others can do with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.integration.browser import Browser, Page
from tests.integration.conftest import Launch
from tests.integration.dashboard import address, later, pill, row, sign_in
from tests.integration.proxy import ADMIN, demo
from tests.integration.world import until


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


def test_the_policy_is_in_force(launch: Launch, browser: Browser) -> None:
    """What a hole in a page would be used for does not happen, and is noticed by these tests."""
    proxy = launch({"coder": demo()})
    page = browser.page()
    sign_in(page, proxy)
    made = "const one = document.createElement('script'); one.append('window.hit = 1');"
    inline = f"{made} document.head.append(one);"
    elsewhere = "const one = new Image(); one.src = 'http://127.0.0.1:9/x.png'; document.body.append(one);"
    markup = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hit=1>');"
    style = "document.body.setAttribute('style', 'display: none');"
    for act in (inline, elsewhere, markup, style):
        before = len(page.violations())
        page.js(f"(() => {{ try {{ {act} }} catch {{ return; }} }})()")
        page.until(f"window.__violations.length > {before}")
    assert page.js("window.hit") is None
    assert page.js("getComputedStyle(document.body).display") == "flex"
    page.close()


def test_the_files_come_with_the_package(launch: Launch) -> None:
    """A page of the running proxy names none that it does not have."""
    proxy = launch({"coder": demo()})
    answer = proxy.ask("GET", "/ui/", key=ADMIN)
    assert answer.status == 200
    for part in answer.body.decode().split('"/ui/static/')[1:]:
        name = part.partition('"')[0]
        assert proxy.ask("GET", f"/ui/static/{name}", key=None).status == 200
