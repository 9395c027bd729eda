"""A backend that runs as several tasks, on the dashboard in a real browser.

What the admin API says of such a backend is put into its answers in the browser, in the API's shapes
(``tests/unit/test_tasks_told.py`` holds those to its description): to see what is drawn of it no Swarm of
several machines is needed.
"""

from __future__ import annotations

import json
from typing import Any

from tests.integration.browser import Page
from tests.integration.conftest import Launch
from tests.integration.dashboard import MARKUP, address, pill, row, sign_in
from tests.integration.proxy import demo
from tests.unit.test_cli_tasks import NOWHERE, task

TOLD = """
window.told = %s;
const fetched = window.fetch;
window.fetch = async (address, options) => {
  const answer = await fetched(address, options);
  if (!/\\/ui\\/api\\/backends(\\/coder\\/why)?$/.test(new URL(answer.url).pathname)) return answer;
  const found = await answer.json();
  const views = found.backends || [found.backend];
  Object.assign(views.find((view) => view.name === "coder"), window.told);
  return new Response(JSON.stringify(found), { status: answer.status, headers: answer.headers });
};
"""


def replicas(*tasks: dict[str, Any], wanted: int = 3, pending: str | None = NOWHERE) -> dict[str, Any]:
    """As the API shows them."""
    ready = sum(one["state"] == "ready" for one in tasks)
    return {
        "min": 0,
        "max": 4,
        "target_in_flight": 8,
        "wanted": wanted,
        "ready": ready,
        "pending": pending,
        "tasks": list(tasks),
    }


def several(*tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What is told of the backend beside what is so."""
    found = replicas(*tasks, **more)
    return {"runtime": "swarm", "container": None, "service": "llm_coder", "replicas": found}


def tell(page: Page, told: dict[str, Any]) -> None:
    """That is so from the next look on."""
    page.js(f"window.told = {json.dumps(told)}")


def test_its_tasks_are_shown(launch: Launch, page: Page) -> None:
    """The overview says how many of those that are wanted answer; its page has each, and why one lacks."""
    first = several(task(1, in_flight=7), task(2), task(3, "leaving"))
    page.call("Page.addScriptToEvaluateOnNewDocument", source=TOLD % json.dumps(first))
    proxy = launch({"coder": demo(), "chat": demo()})
    proxy.act("coder", "start")
    sign_in(page, proxy)
    pill(page, "coder", "ready 2/3")
    page.says(f"1 task waits: {NOWHERE}", row("coder", ".sentence"))
    pill(page, "chat", "off")
    page.goto(address(proxy, "backends/coder"))
    page.says("ready 2/3", "#backend .pill")
    page.says("2 of 3 ready", "#backend")
    page.says(f"1 task waits: {NOWHERE}", "#tasks .waits")
    rows = "[...document.querySelectorAll('#tasks tbody tr')]"
    cells = f"{rows}.map((one) => [...one.children].map((cell) => cell.innerText))"
    assert page.js(cells) == [
        ["ready", "gpu-box-1", "7", "http://10.0.9.1:8000", "1x7w2ab9kq1z"],
        ["ready", "gpu-box-2", "0", "http://10.0.9.2:8000", "2x7w2ab9kq1z"],
        ["leaving", "gpu-box-3", "0", "http://10.0.9.3:8000", "3x7w2ab9kq1z"],
    ]
    page.says("llm_coder", ".facts")
    page.says("1 to 4, one for each 8 requests; none when nobody uses it", ".facts")
    tell(page, several(task(1), task(2), task(4, node=MARKUP), pending=None))
    page.says("3 of 3 ready", "#backend")
    page.says(MARKUP, "#tasks")
    assert page.js("document.querySelectorAll('#tasks .waits, #tasks img').length") == 0
    assert page.violations() == []


def test_one_that_looks_for_a_node(launch: Launch, page: Page) -> None:
    """Its first task is not placed yet: the reason stands beside the phase, and none runs."""
    told = {**several(wanted=1), "state": "starting", "phase": "placing", "reason": NOWHERE}
    page.call("Page.addScriptToEvaluateOnNewDocument", source=TOLD % json.dumps(told))
    proxy = launch({"coder": demo()})
    sign_in(page, proxy)
    page.says("placing", row("coder", ".startup"))
    page.says(NOWHERE, row("coder", ".sentence"))
    page.goto(address(proxy, "backends/coder"))
    page.says("None runs yet.", "#tasks")
    page.says(NOWHERE, "#tasks .waits")
    page.size(390, 844, phone=True)
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
