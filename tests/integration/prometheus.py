"""A real Prometheus beside a real proxy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.integration.proxy import free_port
from tests.integration.world import until
from tests.observing import DEPLOY

__all__ = ["Prometheus", "program", "scraping"]

Sample = tuple[dict[str, str], float]


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is; skips the test, or fails it where it has to be there."""
    found = shutil.which(name)
    if found is None:
        why = f"no {name} on PATH (Debian, Ubuntu: apt install prometheus)"
        if os.environ.get("LLMPROXY_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


@define
class Prometheus:
    """One that runs."""

    folder: Path
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, target: str, key: str) -> None:
        """The configuration that is shipped, with this proxy's address and a scrape each half second."""
        text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        for old, new in (
            ("127.0.0.1:8000", target),
            ("scrape_interval: 15s", "scrape_interval: 500ms\n  scrape_timeout: 400ms"),
            ("evaluation_interval: 15s", "evaluation_interval: 500ms"),
            ("refresh_interval: 15s", "refresh_interval: 500ms"),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.folder / "prometheus.yml").write_text(text)
        (self.folder / "llmproxy.key").write_text(key + "\n")
        shutil.copy(DEPLOY / "prometheus" / "llmproxy.rules.yml", self.folder)
        with open(self.folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={self.folder}/prometheus.yml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._ready, 20)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    def log(self) -> str:
        """What it has written."""
        return (self.folder / "prometheus.log").read_text(errors="replace")

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers.

        :raises AssertionError: an error.
        """
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{query}: {refusal.read().decode()}") from None

    def query(self, expression: str) -> list[Sample]:
        """The samples of an expression, now."""
        found = self.ask("query", query=expression)
        assert found["resultType"] == "vector", found
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def value(self, expression: str) -> float | None:
        """The only sample of an expression; None when there is none."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def close(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


@contextmanager
def scraping(folder: Path, target: str, key: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the proxy at ``target``, and what it tells of its models."""
    prometheus = Prometheus(folder)
    try:
        prometheus.start(target, key)
        yield prometheus
    finally:
        prometheus.close()
