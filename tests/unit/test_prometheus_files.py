"""The alert rules and the dashboard: they ask for what there is, and say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from twisted.internet.task import Clock

from llmproxy.config.model import BackendSpec, Config, Gpu
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.metrics import Metrics
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.observing import DASHBOARD, DEPLOY, FOREIGN, dashboard_expressions, metrics_in, rules

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def exported() -> set[str]:
    """Every metric of llmproxy's own, by the name that Prometheus has for it."""
    spec = BackendSpec(route="a", container="a", models=("a",))
    config = Config(backends={"a": spec}, gpus={"0": Gpu(memory=1)})
    fleet = Fleet(Clock(), Servers().connect, {"docker": FakeRuntime(FakeController())}, config)
    # The last two come from what serves.
    found = {"llmproxy_build_info", "llmproxy_tls_certificate_expiry_seconds", "llmproxy_timers"}
    for collector in Metrics(fleet, "1")._collectors:
        for family in collector.collect():
            found.add(f"{family.name}_total" if family.kind == "counter" else family.name)
    return found


def documented() -> set[str]:
    """The metrics of the table in the documentation."""
    return set(re.findall(r"^\| `(llmproxy_\w+)` \|", DOCS.read_text(), re.MULTILINE))


def test_each_metric_is_documented() -> None:
    """All that is exported, and nothing else."""
    assert documented() == exported()


@pytest.mark.parametrize("title", dashboard_expressions())
def test_the_dashboard_asks_for_what_there_is(title: str) -> None:
    """Each expression names metrics, and each of them is exported."""
    asked = metrics_in(dashboard_expressions()[title])
    assert asked
    assert asked <= exported() | FOREIGN


def test_the_dashboard_shows_every_metric() -> None:
    """Nothing is exported in vain."""
    shown = set().union(*map(metrics_in, dashboard_expressions().values()))
    assert exported() <= shown


def test_the_dashboard_can_be_imported() -> None:
    """Ids are there once, panels do not cover each other, and all go by the chosen Prometheus."""
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert (
                target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            )
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "job", "backend"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, object]) -> None:
    """It has a severity, words for a person, and a section in the documentation."""
    assert set().union(metrics_in(str(rule["expr"]))) <= exported() | FOREIGN
    assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    words = rule["annotations"]
    assert isinstance(words, dict)
    assert set(words) == {"summary", "description", "runbook_url"}
    assert words["runbook_url"] == f"docs/metrics.md#{str(rule['alert']).lower()}"
    assert f"\n### {rule['alert']}\n" in DOCS.read_text()


def test_each_alert_has_a_test() -> None:
    """In the files that promtool runs: one in which it fires."""
    tested = set()
    for file in (DEPLOY / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(file.read_text())["tests"]:
            for check in test.get("promql_expr_test", ()):
                if check["exp_samples"]:
                    tested.update(re.findall(r'alertname="(\w+)"', check["expr"]))
    assert tested == {rule["alert"] for rule in rules()}


def test_the_documentation_tells_of_no_other_alert() -> None:
    """A section for each of them."""
    told = re.findall(r"^### (Llmproxy\w+)$", DOCS.read_text(), re.MULTILINE)
    assert told == [rule["alert"] for rule in rules()]
