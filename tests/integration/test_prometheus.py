"""A real Prometheus scrapes a real proxy, finds its models, and understands all that is shipped for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.integration.prometheus import Prometheus, program, scraping
from tests.integration.proxy import ADMIN, KEY, Demo, Proxy, demo, running
from tests.integration.world import until
from tests.observing import DEPLOY, dashboard_expressions, metrics_in, rules

BROKEN = {"runtime": "process", "engine": "generic", "command": ["/bin/false"]}
QUIET = (
    "Evictions",
    "Duration of wakes",
    "Tasks",
    "Scalings",
    "Use of the KV cache",
    "Certificates",
    "Hosts that answer",
    "annotation Restarts",
)
"""Nothing of that has happened here."""


@frozen
class Site:
    """Both, and what the proxy was asked."""

    proxy: Proxy
    prometheus: Prometheus


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One model that answers, one that does not start, and one that nobody asks."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "proxy").mkdir()
    backends: dict[str, Demo | dict[str, Any]] = {
        "a": demo("--start-delay", "0.5", gpu_memory=0.5),
        "broken": BROKEN,
        "idle": demo(gpu_memory=0.5),
    }
    with (
        running("process", folder / "proxy", backends, metrics_access="admin") as proxy,
        scraping(folder, f"127.0.0.1:{proxy.port}", ADMIN) as prometheus,
    ):
        until(lambda: prometheus.value('up{job="llmproxy"}') == 1, 15)
        for _ in range(3):
            assert proxy.chat("a", stream=True).status == 200
        assert proxy.ask("GET", "/broken/x").status == 503
        assert proxy.chat("a", key="wrong").status == 401
        # What was counted before a scrape is in it, and this came last.
        until(lambda: prometheus.value('llmproxy_refusals_total{error="invalid_api_key"}') == 1)
        yield Site(proxy, prometheus)


def test_what_happened_can_be_asked(site: Site) -> None:
    """By PromQL: requests, the start, the hold, tokens, states and refusals; with a closed ``/metrics``."""
    assert site.proxy.ask("GET", "/metrics", key=KEY).status == 403
    value = site.prometheus.value
    assert value('sum by (outcome) (llmproxy_requests_total{backend="a", code="200"})') == 3
    assert value('llmproxy_backend_state{backend="a", state="ready"} == 1') == 1
    assert value('sum(llmproxy_backend_state{backend="idle"})') == 1
    assert value('llmproxy_starts_total{backend="a", result="ok"}') == 1
    assert value('llmproxy_start_seconds_count{backend="a", phase="total"}') == 1
    held = value('histogram_quantile(0.5, llmproxy_hold_seconds_bucket{backend="a"})') or 0.0
    assert 0.5 <= held < 20
    assert value('llmproxy_refusals_total{error="invalid_api_key"}') == 1
    assert (value('sum(llmproxy_tokens_total{backend="a"})') or 0) > 3
    assert value("llmproxy_scheduler_sound") == 1
    assert value("llmproxy_gpu_memory_claimed / llmproxy_gpu_memory_capacity") == 0.5
    # Nothing of a key is in any label.
    for labels, _ in site.prometheus.query('{job="llmproxy"}'):
        assert not {KEY, ADMIN} & set(labels.values())


def test_the_models_are_found_while_they_are_ready(site: Site) -> None:
    """Through the proxy, with their labels; nobody is woken, and who leaves is scraped no more."""
    proxy, prometheus = site.proxy, site.prometheus

    def targets() -> dict[str, str]:
        found = prometheus.ask("targets", state="active")["activeTargets"]
        return {
            one["labels"]["backend"]: one["health"]
            for one in found
            if one["labels"]["job"] == "llmproxy-backends"
        }

    until(lambda: targets() == {"a": "up"}, 15)
    (sample,) = until(lambda: prometheus.query('vllm:num_requests_running{backend="a"}'))
    labels, running_now = sample
    assert running_now == 0
    assert (labels["route"], labels["model"], labels["job"]) == ("a", "a-model", "llmproxy-backends")
    assert labels["instance"] == f"127.0.0.1:{proxy.port}"
    with proxy.streaming("a"):
        until(lambda: prometheus.value('vllm:num_requests_running{backend="a"}') == 1)
    assert proxy.act("a", "stop").status == 200
    until(lambda: targets() == {}, 15)
    assert proxy.state("a") == proxy.state("idle") == "absent"
    assert proxy.act("a", "start").status == 200
    until(lambda: targets() == {"a": "up"}, 15)
    until(lambda: prometheus.query('vllm:num_requests_running{backend="a"}'))


@pytest.mark.parametrize("title", dashboard_expressions())
def test_the_dashboard_is_understood(site: Site, title: str) -> None:
    """Prometheus parses each expression, and answers those about what has happened here."""
    found = site.prometheus.query(dashboard_expressions()[title])
    assert bool(found) != title.startswith(QUIET)


def test_the_rules_are_understood(site: Site) -> None:
    """Each is evaluated without an error, and the model that does not start is told of."""

    def alerts() -> dict[str, dict[str, object]]:
        groups = site.prometheus.ask("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    assert set(alerts()) == {rule["alert"] for rule in rules()}
    until(lambda: all(rule["health"] == "ok" for rule in alerts().values()), 15)
    until(lambda: alerts()["LlmproxyStartFailing"]["state"] == "firing", 15)
    (firing,) = site.prometheus.query('ALERTS{alertname="LlmproxyStartFailing", alertstate="firing"}')
    assert (firing[0]["backend"], firing[0]["result"]) == ("broken", "failed")
    assert alerts()["LlmproxyDown"]["state"] == "inactive"
    for rule in rules():
        for name in metrics_in(rule["expr"]):
            assert site.prometheus.ask("metadata", metric=name.removesuffix("_total")) is not None


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "llmproxy.rules.yml"), ("test", "rules", "tests/llmproxy.rules.test.yml")],
    ids=" ".join,
)
def test_the_rules_pass_prometheus_own_checks(arguments: tuple[str, ...]) -> None:
    """``promtool`` has nothing against them, and they fire when they should."""
    folder = DEPLOY / "prometheus"
    ran = subprocess.run(
        [program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SUCCESS" in ran.stdout + ran.stderr


def test_the_example_of_a_configuration_is_right(tmp_path: Path) -> None:
    """With the rules and a key beside it."""
    for name in ("prometheus.yml", "llmproxy.rules.yml"):
        (tmp_path / name).write_text((DEPLOY / "prometheus" / name).read_text())
    (tmp_path / "llmproxy.key").write_text("key")
    ran = subprocess.run(
        [program("promtool"), "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
