"""Make the pictures of docs/dashboard.md anew: ``.venv/bin/python -m scripts.screenshots [FOLDER]``.

Models of the built-in demo server share a GPU that is a folder; a real Chromium shows the dashboard.  What
happens within a minute or two is shown as if it had taken an hour: the times of past events are stretched in
the browser, and nothing else is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.integration.browser import Browser, Page, find_chromium
from tests.integration.proxy import ADMIN, Demo, Proxy, demo, running
from tests.integration.sharing import Gpu
from tests.integration.world import ROOT

MOST = 150_000
"""Bytes of a picture."""

KEYS: list[dict[str, Any]] = [
    {"name": "laptop", "secret": "laptop-key-for-pictures"},
    {"name": "website", "secret": "website-key-for-pictures"},
    {"name": "admin", "secret": ADMIN, "admin": True},
]
LAPTOP, WEBSITE = (str(key["secret"]) for key in KEYS[:2])

STRETCH = """
const Source = EventSource;
window.EventSource = class extends Source {
  set onmessage(hear) {
    super.onmessage = (message) => {
      const event = JSON.parse(message.data), now = Date.now() / 1000;
      const at = now - (now - event.at) * FACTOR;
      hear({data: JSON.stringify({...event, at})});
    };
  }
};
"""

TROUBLE = (
    "INFO 11-26 10:12:44 [gpu_model_runner.py:2006] Starting to load model big-coder-32b...",
    "ERROR 11-26 10:12:52 [core.py:700] EngineCore failed to start.",
    "ERROR 11-26 10:12:52 [core.py:700] torch.OutOfMemoryError: CUDA out of memory."
    " Tried to allocate 1.48 GiB."
    " GPU 0 has a total capacity of 24.00 GiB of which 612.00 MiB is free.",
)


FAILING = f"""
import time
for line in {TROUBLE!r}:
    print(line, flush=True)
    time.sleep(0.3)
raise SystemExit(1)
"""
"""What a model says and does that is too large for its GPU."""


def _models(gpu: Gpu) -> dict[str, Demo | dict[str, Any]]:
    def model(name: str, share: float, seconds: float, *arguments: str, **settings: Any) -> Demo:
        said = (
            "--token-delay",
            "0.02",
            "--gpu",
            str(gpu.folder),
            "--served-model-name",
            name,
            "--start-delay",
            str(seconds),
        )
        return demo(
            *said,
            "--gpu-memory-utilization",
            str(share),
            *arguments,
            models=[name],
            gpu_memory=share,
            min_residency="1s",
            sleep_idle="1h",
            **settings,
        )

    asleep = {"environment": {"VLLM_SERVER_DEV_MODE": "1"}}
    return {
        "coder": model("coder3b", 0.35, 8, "--enable-sleep-mode", idle="30m", **asleep),
        "chat": model("sitechat", 0.3, 7, idle="20m"),
        "qwen7b": model("qwen7b-bnb4", 0.45, 9, "--enable-sleep-mode", idle="15m", **asleep),
        "big-coder": {
            "runtime": "process",
            "command": [sys.executable, "-c", FAILING],
            "models": ["big-coder-32b"],
            "gpu_memory": 0.03,
        },
        "embed": model("bge-m3", 0.08, 2, idle="2h"),
    }


@contextmanager
def _set_up(folder: Path) -> Iterator[Proxy]:
    gpu = Gpu.make(folder / "gpu")
    (folder / "proxy").mkdir()
    gpus = {"0": {"memory": "24GiB", "reserve": "1GiB"}}
    with running("process", folder / "proxy", _models(gpu), keys=KEYS, gpus=gpus, drain="1s") as proxy:
        yield proxy


def _ask(proxy: Proxy, model: str, key: str, words: str, **more: Any) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": words}], **more}
    # What is still going on when the pictures are made is cut.
    with suppress(OSError, HTTPException):
        proxy.ask("POST", "/v1/chat/completions", body, key=key)


def _later(proxy: Proxy, model: str, key: str, words: str, **more: Any) -> None:
    threading.Thread(target=_ask, args=(proxy, model, key, words), kwargs=more, daemon=True).start()


def _an_hour(proxy: Proxy) -> None:
    """What a small household does in an hour, in about a minute."""
    _later(proxy, "bge-m3", LAPTOP, "index this")
    for number in range(4):
        _ask(proxy, "coder3b", LAPTOP, f"Write a function that adds {number} to a list.", max_tokens=60)
    proxy.act("coder", "sleep")
    _ask(proxy, "sitechat", WEBSITE, "When are you open?", max_tokens=30)
    time.sleep(6)
    _ask(proxy, "qwen7b-bnb4", LAPTOP, "Summarise this page in one sentence.", max_tokens=40)
    time.sleep(5)
    _ask(proxy, "coder3b", LAPTOP, "And now in Rust.", max_tokens=50)
    proxy.act("big-coder", "start")
    time.sleep(4)
    _ask(proxy, "sitechat", WEBSITE, "Do you ship abroad?", max_tokens=20)
    time.sleep(4)
    proxy.act("coder", "sleep")
    _ask(proxy, "qwen7b-bnb4", LAPTOP, "Which of these is the best title?", max_tokens=40)
    time.sleep(6)


def _busy(proxy: Proxy) -> None:
    """A moment in which much goes on."""
    lease = {"gpu": "0", "memory": "2GiB", "seconds": "1h", "note": "image editing"}
    proxy.ask("POST", "/api/leases", lease, key=ADMIN)
    proxy.act("chat", "stop")
    stream = {"stream": True, "max_tokens": 100_000, "ignore_eos": True, "demo_token_delay": 0.03}
    _later(proxy, "qwen7b-bnb4", LAPTOP, "Tell me a long story about a lighthouse.", **stream)
    # Starts on one GPU take turns.
    proxy.act("big-coder", "start", "")
    proxy.until_state("big-coder", "failed")
    for words in ("Hello?", "What does the large box cost?"):
        _later(proxy, "sitechat", WEBSITE, words, max_tokens=20)
    time.sleep(2.5)


def _sign_in(page: Page, at: str) -> None:
    page.goto(f"{at}/ui/")
    page.type(ADMIN)
    page.press("Enter")
    page.until("!!document.querySelector('.backend[data-state]')")
    page.until("!!document.querySelector('#live.on')")


def _take(browser: Browser, proxy: Proxy, out: Path) -> None:
    at = f"http://127.0.0.1:{proxy.port}"
    began = time.time()
    page = browser.page()
    page.goto(f"{at}/ui/")
    page.size(900, 560)
    page.screenshot(out / "dashboard-sign-in.png")
    _an_hour(proxy)
    factor = str(3300 / (time.time() - began))
    page.call("Page.addScriptToEvaluateOnNewDocument", source=STRETCH.replace("FACTOR", factor))
    page.size(1200, 1330)
    _sign_in(page, at)
    page.js("document.activeElement.blur()")
    _busy(proxy)
    page.until("document.querySelectorAll('#open tbody tr').length > 2")
    page.until("!!document.querySelector('[data-backend=chat] progress')")
    page.screenshot(out / "dashboard-light.png")
    for name, width, height, look in (
        ("dark", 1200, 1330, {"dark": True}),
        ("phone", 390, 844, {"phone": True}),
    ):
        page.size(width, height, **look)
        time.sleep(0.4)
        page.screenshot(out / f"dashboard-{name}.png")
    page.size(1100, 900)
    page.goto(f"{at}/ui/backends/big-coder")
    page.until("!!document.querySelector('.failure.bad')")
    page.until("!!document.querySelector('#log').textContent")
    page.screenshot(out / "dashboard-failure.png")
    page.size(1100, 780)
    page.goto(f"{at}/ui/requests")
    page.until("document.querySelectorAll('#finished tr').length > 3")
    page.screenshot(out / "dashboard-requests.png")
    page.goto(f"{at}/ui/usage")
    page.until("document.querySelectorAll('#by-backend tr').length > 1")
    page.screenshot(out / "dashboard-usage.png")
    page.size(1100, 640)
    page.goto(f"{at}/ui/playground?model=coder3b")
    page.until("document.querySelectorAll('#model option').length > 2")
    _say(page, "How do I reverse a list in Python?")
    page.until("!document.querySelector('.turn.busy') && document.querySelectorAll('.turn').length == 2", 60)
    proxy.act("coder", "stop")
    _say(page, "And a string?")
    page.until("/loading weights [2-9]/.test(document.querySelector('#cold').innerText)", 60)
    page.screenshot(out / "dashboard-playground.png")


def _say(page: Page, words: str) -> None:
    page.js("document.querySelector('#words').focus()")
    page.type(words)
    page.press("Enter")


def main(out: Path) -> None:
    """Make them all."""
    program = find_chromium()
    if program is None:
        sys.exit("There is no Chromium (Debian, Ubuntu: apt install chromium fonts-inter pngquant).")
    quantize = shutil.which("pngquant")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        browser = Browser.start(program, folder)
        try:
            with _set_up(folder) as proxy:
                _take(browser, proxy, out)
        finally:
            browser.close()
    for file in sorted(out.glob("dashboard-*.png")):
        if quantize is not None:
            subprocess.run([quantize, "--force", "--ext=.png", "--speed=1", "256", file], check=True)
        size = file.stat().st_size
        sys.stdout.write(f"{file.name}: {size // 1000} kB{'' if size <= MOST else ', which is too much'}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs" / "images")
