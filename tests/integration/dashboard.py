"""What the tests of the dashboard share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.integration.browser import Page
from tests.integration.proxy import ADMIN, Proxy

__all__ = ["FAILING", "MARKUP", "PAGES", "address", "later", "pill", "row", "sign_in"]


MARKUP = "<img src=x onerror=document.title='hit'><b>bold</b>"


PAGES = ("", "requests", "usage", "playground", "backends/coder")


FAILING = """
print("INFO [core.py:77] Initializing a V1 LLM engine", flush=True)
print("a line with <img src=x onerror=document.title='hit'><b>bold</b>", flush=True)
print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.48 GiB.", flush=True)
raise SystemExit(1)
"""


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
