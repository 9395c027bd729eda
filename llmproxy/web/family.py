"""What is told to Prometheus, before the library that writes it down has it.  Pure.

``prometheus_client`` is large; :mod:`llmproxy.web.exposition` loads it when somebody asks for the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from attrs import define, field

from llmproxy.web.histogram import Histogram

__all__ = ["Collector", "Family"]


@define
class Family:
    """All samples of one metric.

    :ivar name: without the suffix ``_total`` of a counter.
    :ivar meaning: a sentence for ``# HELP``.
    :ivar labels: their names.
    :ivar values: what there is, by the labels' values.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    meaning: str
    labels: tuple[str, ...]
    values: list[tuple[tuple[str, ...], float | Histogram]] = field(factory=list)

    def add(self, about: tuple[str, ...], value: float | Histogram) -> None:
        """One sample: a number, or the histogram of a ``histogram``."""
        self.values.append((about, value))


class Collector(Protocol):
    """Something that can be asked what is so now."""

    def collect(self) -> Iterator[Family]:
        """All that it tells."""
