"""What an operator sees and does on the dashboard in a real browser, live."""

from __future__ import annotations

import json
import sys

from tests.integration.browser import Page
from tests.integration.conftest import Launch
from tests.integration.dashboard import FAILING, MARKUP, address, later, pill, row, sign_in
from tests.integration.proxy import ADMIN, demo
from tests.integration.world import until


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


def test_a_page_that_nobody_sees_asks_for_nothing(launch: Launch, page: Page) -> None:
    """Neither events nor states; when it is looked at again, it is as it should be."""
    proxy = launch({"coder": demo()})
    sign_in(page, proxy)
    page.says("Live", "#live")
    other = page.beside()
    other.goto("about:blank")
    other.call("Page.bringToFront")
    page.until("document.hidden")
    until(lambda: "path=/ui/api/events" in proxy.log())
    page.js("new Promise((done) => setTimeout(done, 500))")
    before = proxy.log().count("path=/ui/api/")
    proxy.act("coder", "start")
    page.js("new Promise((done) => setTimeout(done, 2500))")
    assert proxy.log().count("path=/ui/api/") == before
    other.close()
    page.call("Page.bringToFront")
    pill(page, "coder", "ready")


SPANS = """
import("/ui/static/timeline.js").then(({spans}) => {
  const backends = [
    {name: "still", state: "ready", since: 500},
    {name: "moved", state: "ready", since: 2900},
    {name: "off", state: "absent", since: 0},
  ];
  const events = [
    {at: 900, backend: "moved", from: "starting", to: "ready", reason: "healthy"},
    {at: 800, backend: "moved", from: "absent", to: "starting", reason: "wanted"},
    {at: 1500, backend: "moved", from: "ready", to: "ready", decision: "evict", reason: "no step"},
    {at: 2000, backend: "moved", from: "ready", to: "absent", reason: "left"},
    {at: 2500, backend: "former", from: "ready", to: "absent", reason: "removed"},
  ];
  return [...spans(events, backends, 1000, 3000)];
})
"""


def test_the_last_hour_is_told_right(launch: Launch, page: Page) -> None:
    """What began before it, what never moved, what is configured no more, and events in any order."""
    proxy = launch({"coder": demo()})
    sign_in(page, proxy)
    found = {
        name: [(one["state"], one["from"], one["to"], one["reason"]) for one in spans]
        for name, spans in page.js(SPANS)
    }
    assert found == {
        "still": [("ready", 1000, 3000, "")],
        "moved": [("ready", 1000, 2000, "healthy")],
        "off": [],
        "former": [("ready", 1000, 2500, "")],
    }


WORDS = """
import("/ui/static/words.js").then(({about, amount, duration, short}) => [
  [0.42, 75, 3700, 90000].map(duration),
  [-1, 59.4, 599, 601, 3571, 7200].map(about),
  [0, 7.25 * 2 ** 30, 20 * 2 ** 20].map((bytes) => amount(bytes, "bytes")),
  amount(0.455, "fraction"),
  [7, 9999, 12345, 123456, 7654321].map(short),
])
"""


def test_numbers_are_told_as_a_person_would(launch: Launch, page: Page) -> None:
    """Durations as the command says them, countdowns without tenths, and sizes in the unit that fits."""
    proxy = launch({"coder": demo()})
    sign_in(page, proxy)
    assert page.js(WORDS) == [
        ["0.4 s", "1 m 15 s", "1 h 1 m", "1 d 1 h"],
        ["0 s", "59 s", "9 m 59 s", "10 m", "1 h 0 m", "2 h 0 m"],
        ["0.0 GiB", "7.3 GiB", "20 MiB"],
        "45.5 %",
        ["7", "9,999", "12.3 k", "123 k", "7.7 M"],
    ]
