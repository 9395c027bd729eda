"""A real Chromium without a window, driven over its DevTools protocol: what it shows, and its complaints.

https://chromedevtools.github.io/devtools-protocol/ describes the methods that are called here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from websockets.sync.client import ClientConnection, connect

from tests.integration.world import until

__all__ = ["Browser", "Page", "chromium", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}
_WATCH = """
window.__violations = [];
addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push([event.violatedDirective, event.blockedURI, event.sourceFile].join(" ")));
"""


def find_chromium() -> str | None:
    """Where it is; None: it is not installed.  ``LLMPROXY_CHROMIUM`` says it where it has another name."""
    named = os.environ.get("LLMPROXY_CHROMIUM")
    return named or next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """One with a profile of its own; skips the test where there is none, unless one has to be there
    (``LLMPROXY_REQUIRE_BROWSER``)."""
    program = find_chromium()
    if program is None:
        reason = "no Chromium (Debian, Ubuntu: apt install chromium; or set LLMPROXY_CHROMIUM)"
        if os.environ.get("LLMPROXY_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    browser = Browser.start(program, folder)
    try:
        yield browser
    finally:
        browser.close()


@define(eq=False)
class Browser:
    """One process of it."""

    _process: subprocess.Popen[bytes]
    _wire: ClientConnection
    _stack: ExitStack
    _count: int = field(init=False, default=0)
    _pages: dict[str, Page] = field(init=False, factory=dict)

    @classmethod
    def start(cls, program: str, folder: Path) -> Browser:
        """Start it."""
        profile = folder / "profile"
        command = [
            program,
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "about:blank",
        ]
        if os.geteuid() == 0:
            # It refuses to isolate its processes as root.
            command.insert(1, "--no-sandbox")
        with open(folder / "chromium.log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            told = profile / "DevToolsActivePort"
            until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, 30)
            port, path = told.read_text().splitlines()
            stack = ExitStack()
            wire = stack.enter_context(
                connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=30)
            )
        except BaseException:
            process.kill()
            process.wait(10)
            raise
        return cls(process, wire, stack)

    def close(self) -> None:
        """End it."""
        try:
            self.call("Browser.close")
        except Exception:
            self._process.kill()
        self._stack.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method, and note what happens meanwhile."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._wire.send(json.dumps(message))
        while True:
            answer = json.loads(self._wire.recv(30))
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found = answer["result"]
                assert isinstance(found, dict)
                return found
            self._note(answer)

    def listen(self, seconds: float) -> None:
        """Note what happens within that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._note(json.loads(self._wire.recv(left)))
            except TimeoutError:
                return

    def _note(self, event: dict[str, Any]) -> None:
        page = self._pages.get(event.get("sessionId", ""))
        if page is not None and "method" in event:
            page.noted(event["method"], event["params"])

    def page(self) -> Page:
        """A new tab with cookies of its own."""
        return self.page_in(self.call("Target.createBrowserContext")["browserContextId"])

    def page_in(self, context: str) -> Page:
        """A new tab that shares the cookies of others."""
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        page.size(1200, 900)
        return page


@define(eq=False)
class Page:
    """One tab.

    :ivar complaints: what the console had to say against it.
    """

    _browser: Browser
    _session: str
    _context: str
    _target: str
    complaints: list[str] = field(init=False, factory=list)
    _loads: int = field(init=False, default=0)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method on this tab."""
        return self._browser.call(method, self._session, **parameters)

    def noted(self, method: str, told: dict[str, Any]) -> None:
        """An event has come."""
        if method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description") or details["text"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value")) for one in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            entry = told["entry"]
            self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")

    def beside(self) -> Page:
        """Another tab with the same cookies."""
        return self._browser.page_in(self._context)

    def close(self) -> None:
        """Close it."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    # -- looking at it ------------------------------------------------------------------------------

    def goto(self, url: str) -> None:
        """Open that, and wait until it is loaded."""
        before = self._loads
        self.call("Page.navigate", url=url)
        until(lambda: self._listen() and self._loads > before, 20)

    def _listen(self) -> bool:
        self._browser.listen(0.05)
        return True

    def js(self, expression: str) -> Any:
        """What it is in the page; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 10.0) -> Any:
        """What it is as soon as it is true; while the page changes to another one, it is not."""

        def look() -> Any:
            self._browser.listen(0.02)
            try:
                return self.js(expression)
            except AssertionError:
                return None

        try:
            return until(look, seconds)
        except AssertionError:
            raise AssertionError(f"never {expression}; the page says:\n{self.text()}") from None

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return str(self.js(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''"))

    def says(self, words: str, selector: str = "body", seconds: float = 10.0) -> None:
        """Wait until a person reads that there."""
        place = f"((document.querySelector({json.dumps(selector)}) || {{}}).innerText || '')"
        self.until(f"{place}.includes({json.dumps(words)})", seconds)

    def violations(self) -> list[str]:
        """What its Content-Security-Policy has kept from happening."""
        found = self.js("window.__violations")
        assert isinstance(found, list)
        return found

    def screenshot(self, file: Path) -> None:
        """As a PNG."""
        self._browser.listen(0.1)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    # -- using it -----------------------------------------------------------------------------------

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Of the window; and whether its user likes it dark, and touches it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        """Press a key and let it go."""
        code, text = _KEYS[key]
        event = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": code,
            "modifiers": 2 * control + 8 * shift,
        }
        typed = {"text": text} if text and not control else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, words: str) -> None:
        """Type that where the focus is."""
        self.call("Input.insertText", text=words)

    def click(self, selector: str) -> None:
        """Click in the middle of it."""
        quoted = json.dumps(selector)
        self.until(f"!!document.querySelector({quoted}) && !document.querySelector({quoted}).disabled")
        self.js(f"document.querySelector({quoted}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.js(
            f"(() => {{ const box = document.querySelector({quoted}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def focused(self) -> str:
        """What has the focus, as its id, its verb, or its words."""
        return str(
            self.js(
                "(() => { const one = document.activeElement;"
                " return one.id || one.getAttribute('aria-label') || one.textContent.trim(); })()"
            )
        )
