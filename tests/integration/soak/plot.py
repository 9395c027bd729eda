"""The course of a soak as a picture: three charts, one above the other.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from tests.integration.soak.samples import Sample, quantile

__all__ = ["draw"]

WIDTH, HEIGHT, LEFT, GAP = 760, 150, 64, 44
LINE = "#2563eb"

Series = tuple[str, str, Callable[[Sample], float]]

CHARTS: tuple[Series, ...] = (
    ("memory", "MB", lambda sample: sample.resident / 1e6),
    ("open files", "", lambda sample: float(sample.files)),
    ("timers", "", lambda sample: float(sample.timers)),
    ("small requests, median", "ms", lambda sample: quantile(sample.latencies, 0.5) * 1000),
    ("small requests, p95", "ms", lambda sample: quantile(sample.latencies, 0.95) * 1000),
)


def draw(samples: Sequence[Sample], title: str) -> str:
    """An SVG."""
    height = len(CHARTS) * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}"'
        ' font-family="sans-serif" font-size="12" fill="#111">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    whole = samples[-1].at or 1.0
    for number, (name, unit, value) in enumerate(CHARTS):
        parts.append(_chart(samples, name, unit, value, GAP + number * (HEIGHT + GAP), whole))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chart(
    samples: Sequence[Sample], name: str, unit: str, value: Callable[[Sample], float], top: int, whole: float
) -> str:
    values = [value(sample) for sample in samples]
    most = max(values) * 1.1 or 1.0
    points = " ".join(
        f"{LEFT + WIDTH * sample.at / whole:.1f},{top + HEIGHT - HEIGHT * each / most:.1f}"
        for sample, each in zip(samples, values, strict=True)
    )
    marks = []
    for part in (0.0, 0.5, 1.0):
        y = top + HEIGHT - HEIGHT * part
        marks.append(f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}" stroke="#ddd"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(most * part)}</text>')
    told = f"{name} ({unit})" if unit else name
    return (
        f'{"".join(marks)}<text x="{LEFT}" y="{top - 6}">{escape(told)}</text>'
        f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="1.5"/>'
        f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 16}" text-anchor="end">{whole / 60:.0f} min</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
