"""What is shipped for Prometheus and Grafana, read for tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DASHBOARD", "DEPLOY", "FOREIGN", "RULES", "dashboard_expressions", "metrics_in", "rules"]

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
DASHBOARD = DEPLOY / "grafana" / "llmproxy.json"
RULES = DEPLOY / "prometheus" / "llmproxy.rules.yml"

FOREIGN = frozenset(
    (
        "up",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        # vLLM's own; of the last two the newer one is the first.
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
    )
)
"""Metrics that are not llmproxy's own, and may be asked for."""

_METRIC = re.compile(r"\b(?:llmproxy_|process_|python_|vllm:|up\b)[a-z0-9_:]*")
_TEXT = re.compile(r'"[^"]*"')
_HISTOGRAM = re.compile(r"_(?:bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    """The alerts."""
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard_expressions() -> dict[str, str]:
    """The dashboard's expressions by their panels, with something in the place of its variables."""
    board = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["query"]["query"]
    for each in board["annotations"]["list"]:
        if "expr" in each:
            found[f"annotation {each['name']}"] = each["expr"]
    return {title: _filled(expression) for title, expression in found.items()}


def _filled(expression: str) -> str:
    expression = re.sub(r"^label_values\((.*), *\w+\)$", r"\1", expression)
    for name, value in (
        ("$__rate_interval", "1m"),
        ("$__range", "1h"),
        ("$job", ".*"),
        ("$backend", ".*"),
    ):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics that it asks for, histograms without their suffixes."""
    return {_HISTOGRAM.sub("", name) for name in _METRIC.findall(_TEXT.sub('""', expression))}
