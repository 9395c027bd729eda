"""What one seed has shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from attrs import define, field

__all__ = ["Report", "table"]


@define
class Report:
    """One seed.

    :ivar kinds: requests by their kind; ``outcomes`` by what became of them.
    :ivar excused: what did not end well, by the fault that excuses it.
    :ivar wrong: what must not be.
    """

    kind: str
    seed: str
    seconds: float
    kinds: Counter[str] = field(factory=Counter)
    outcomes: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    excused: Counter[str] = field(factory=Counter)
    starts: int = 0
    absent: dict[str, str] = field(factory=dict)
    wrong: list[str] = field(factory=list)

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.kinds.total()

    def __str__(self) -> str:
        lines = [
            f"{self.kind}, seed {self.seed}: {self.seconds:.0f} s, {self.requests} requests,"
            f" {self.starts} starts, {self.faults.total()} faults: {'WRONG' if self.wrong else 'all well'}",
            f"  requests: {_counts(self.kinds)}",
            f"  outcomes: {_counts(self.outcomes)}",
            f"  faults: {_counts(self.faults)}",
            f"  excused: {_counts(self.excused)}",
        ]
        lines += [f"  not done here: {name}, as {why}" for name, why in self.absent.items()]
        lines += [f"  WRONG: {each}" for each in self.wrong[:40]]
        if len(self.wrong) > 40:
            lines.append(f"  and {len(self.wrong) - 40} more")
        return "\n".join(lines)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def table(reports: Iterable[Report]) -> str:
    """All of them, in Markdown."""
    by_kind: dict[str, list[Report]] = {}
    for each in reports:
        by_kind.setdefault(each.kind, []).append(each)
    lines = ["| runtime | seeds | minutes | requests | starts | faults | seeds that found something |"]
    lines.append("| --- | --: | --: | --: | --: | --: | --- |")
    for kind, found in sorted(by_kind.items()):
        wrong = ", ".join(each.seed for each in found if each.wrong) or "none"
        sums = (
            len(found),
            f"{sum(each.seconds for each in found) / 60:.1f}",
            *(
                f"{sum(each):,}"
                for each in zip(*((r.requests, r.starts, r.faults.total()) for r in found), strict=True)
            ),
        )
        lines.append(f"| {kind} | {' | '.join(map(str, sums))} | {wrong} |")
    for kind, found in sorted(by_kind.items()):
        faults: Counter[str] = sum((each.faults for each in found), Counter())
        outcomes: Counter[str] = sum((each.outcomes for each in found), Counter())
        lines += ["", f"{kind}, faults: {_counts(faults)}.", "", f"{kind}, outcomes: {_counts(outcomes)}."]
    return "\n".join(lines)
