"""What is measured while it lasts, and whether that is flat.  Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import asdict, frozen

__all__ = ["Sample", "Verdict", "judge", "load", "quantile", "save", "slope"]

WARM_UP = 0.15
"""Part of the time that is not looked at: caches fill, and the allocator finds its size."""

WINDOW = 300.0
"""Seconds: the least memory in each tells what is kept, as what is free is given back each minute."""

GROWTH = 2.0
"""Megabytes an hour that memory may seem to grow by: what is measured of a process whose use is steady goes
up and down by some."""

PEAK = 1.5
"""How many times what is kept at the end there may be at most, at any time."""

SLOWER = 1.5
"""How many times as long the last part's requests may take as the first one's, at the median and at the 95th
percentile, where those that go straight to the model take as long as before: what else the machine does makes
both slower."""

ENOUGH = 100
"""Requests of each part from which on they can be compared."""

LONG = 3600.0
"""Seconds from which on a run tells whether memory grows, and has to have so many requests in each part: in a
shorter one caches and the allocator have hardly found their size."""

PARTS = 12
"""The first and the last of so many parts are compared: ten minutes of two hours."""


@frozen
class Sample:
    """One moment.

    :ivar at: seconds since the beginning.
    :ivar resident: bytes.
    :ivar timers: calls that the proxy's reactor has planned.
    :ivar latencies: seconds of the small requests since the last sample.
    :ivar requests: that the crowd has asked since the last sample.
    :ivar straight: seconds of the same small requests to the model itself, each right before the proxied one.
    """

    at: float
    resident: int
    files: int
    threads: int
    timers: int
    latencies: tuple[float, ...] = ()
    requests: int = 0
    straight: tuple[float, ...] = ()


@frozen
class Verdict:
    """What came of it: figures to be told, and what is wrong."""

    figures: dict[str, str]
    wrong: tuple[str, ...]


def quantile(values: Iterable[float], part: float) -> float:
    """The value below which that part of them is; 0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much they rise for each unit, by least squares."""
    count = len(points)
    if count < 2:
        return 0.0
    middle = sum(x for x, _ in points) / count
    height = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - height) for x, y in points) / spread if spread else 0.0


def _kept(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """The least of each window: when (hours), and how much (megabytes)."""
    windows: dict[int, Sample] = {}
    last = max(0, int(samples[-1].at // WINDOW) - 1)
    for sample in samples:
        # What is left of a window at the end is of the one before.
        at = min(int(sample.at // WINDOW), last)
        if at not in windows or sample.resident < windows[at].resident:
            windows[at] = sample
    return [(sample.at / 3600, sample.resident / 1e6) for sample in windows.values()]


def judge(samples: Sequence[Sample]) -> Verdict:
    """See whether all of it is flat."""
    whole = samples[-1].at
    steady = [sample for sample in samples if sample.at >= WARM_UP * whole] or list(samples)
    kept = _kept(steady)
    growth = slope([(sample.at / 3600, sample.resident / 1e6) for sample in steady])
    most = max(sample.resident / 1e6 for sample in steady)
    part = whole / PARTS
    opening = [sample for sample in samples if sample.at <= part]
    closing = [sample for sample in samples if sample.at > whole - part]
    wrong = []
    long = whole >= LONG
    if growth > GROWTH and long:
        wrong.append(f"memory grows by {growth:.1f} MB an hour")
    if most > PEAK * kept[-1][1] and long:
        wrong.append(f"memory is {most:.1f} MB at times, and {kept[-1][1]:.1f} MB at the end")
    figures = {
        "hours": f"{whole / 3600:.2f}",
        "requests": str(sum(sample.requests + len(sample.latencies) for sample in samples)),
        "memory": (
            f"{growth:+.2f} MB an hour; {kept[0][1]:.1f} to {kept[-1][1]:.1f} MB are kept, "
            f"{slope(kept):+.2f} MB an hour; at most {most:.1f} MB"
            f"{'' if long else ' (not judged: less than an hour)'}"
        ),
    }
    for name in ("files", "threads", "timers"):
        values = [getattr(sample, name) for sample in steady]
        half = len(values) // 2
        early, late = quantile(values[:half], 0.5), quantile(values[half:], 0.5)
        figures[name] = f"median {early:.0f}, then {late:.0f}; at most {max(values)}"
        if late > 1.3 * early + 5:
            wrong.append(f"{name} grow from {early:.0f} to {late:.0f}")
    first, last = ([each for sample in some for each in sample.latencies] for some in (opening, closing))
    before, after = ([each for sample in some for each in sample.straight] for some in (opening, closing))
    fewest = min(map(len, (first, last, before, after)))
    if fewest < ENOUGH and long:
        wrong.append(f"only {fewest} small requests in a part of {part / 60:.0f} min")
    for name, at in (("median", 0.5), ("p95", 0.95)):
        begin, end = quantile(first, at), quantile(last, at)
        straight, then = quantile(before, at), quantile(after, at)
        busier = max(1.0, then / straight) if straight else 1.0
        figures[f"latency, {name}"] = (
            f"{begin * 1000:.1f} ms in the first {part / 60:.0f} min, {end * 1000:.1f} ms in the last; "
            f"straight to the model {straight * 1000:.1f} and {then * 1000:.1f} ms"
        )
        if fewest >= ENOUGH and end > SLOWER * busier * begin + 0.002:
            wrong.append(f"the {name} of small requests went from {begin * 1000:.1f} to {end * 1000:.1f} ms")
    return Verdict(figures, tuple(wrong))


def save(samples: Iterable[Sample], file: Path) -> None:
    """Add them to the file, one JSON object a line."""
    with file.open("a") as out:
        out.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)


def load(file: Path) -> list[Sample]:
    """What :func:`save` has written."""
    lines = map(json.loads, file.read_text().splitlines())
    return [
        Sample(**{**line, "latencies": tuple(line["latencies"]), "straight": tuple(line["straight"])})
        for line in lines
    ]
