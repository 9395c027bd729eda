"""``python -m tests.integration.mutation``: put faults into modules, and see whether tests find them.

What was found out is kept in build/mutation, by module, tests and fault: a run that was broken off goes on
where it was.  Ends with 1 where less than 90 % of an area's mutants are found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterable

from attrs import define

from tests.integration.mutation.areas import AREAS, LEAST, ROOT, Module
from tests.integration.mutation.mutants import Mutant, mutants
from tests.integration.mutation.trial import Baseline, Trial, load_others, measure

FOLDER = ROOT / "build" / "mutation"

QUICK = 0.3
"""Seconds of a test that is still quick.  Slower ones try hundreds of inputs, and find little more."""


@define
class Score:
    """What became of a module's mutants."""

    name: str
    mutants: int = 0
    killed: int = 0

    @property
    def percent(self) -> float:
        return 100.0 * self.killed / self.mutants if self.mutants else 100.0

    def line(self) -> str:
        survived = self.mutants - self.killed
        return f"{self.name:38} {self.mutants:8} {self.killed:8} {survived:9} {self.percent:8.1f}"


class Known:
    """What was found out before: outcomes by the mutant, for the tests as they are."""

    def __init__(self, module: Module, *, found_stay: bool, quick: bool) -> None:
        self._path = FOLDER / f"{module.name}.jsonl"
        self._tests = module.digest_of_tests()
        self._quick = quick
        self.outcomes: dict[str, str] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                id, tests, outcome = json.loads(line)
                self.outcomes.pop(id, None)
                same = tests == self._tests or (quick and tests == f"{self._tests} quick")
                if same or (found_stay and outcome != "survived"):
                    self.outcomes[id] = outcome

    def add(self, mutant: Mutant, outcome: str) -> None:
        self.outcomes[mutant.id] = outcome
        # Slower tests may still find it.
        tests = f"{self._tests} quick" if self._quick and outcome == "survived" else self._tests
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([mutant.id, tests, outcome]) + "\n")


def _run(
    module: Module, todo: list[Mutant], baseline: Baseline, known: Known, said: argparse.Namespace
) -> None:
    """Have the tests look at these mutants, several at a time."""
    waiting = list(reversed(todo))
    running: dict[Trial, Mutant] = {}
    try:
        while waiting or running:
            while waiting and len(running) < said.jobs:
                mutant = waiting.pop()
                tests = baseline.tests_of(mutant.lines, QUICK if said.quick else float("inf"))
                if not tests:
                    known.add(mutant, "survived")
                    continue
                seconds = baseline.time_of(tests)
                running[Trial(module, mutant.source, tests, seconds, FOLDER, mutant.id)] = mutant
            for trial in list(running):
                outcome = trial.outcome()
                if outcome is not None:
                    known.add(running.pop(trial), outcome)
                    if sys.stderr.isatty():
                        sys.stderr.write(f"\r{module.name}: {len(waiting) + len(running)} left ")
            time.sleep(0.01)
    finally:
        for trial in running:
            trial.end()


def _look_at(module: Module, said: argparse.Namespace) -> tuple[Score, list[str]]:
    """All mutants of a module.

    :return: how many were found, and which were not.
    """
    began = time.monotonic()
    every = list(mutants(module.path.read_text(encoding="utf-8")))
    known = Known(module, found_stay=said.survivors, quick=said.quick)
    todo = [mutant for mutant in every if mutant.id not in known.outcomes]
    if todo:
        _run(module, todo, measure(module, FOLDER), known, said)
    score, survivors = Score(module.name, len(every)), []
    for mutant in every:
        if known.outcomes[mutant.id] == "survived":
            where = f"{module.path.relative_to(ROOT)}:{mutant.line}"
            survivors.append(f"{where}: {mutant.kind}\n    - {mutant.before}\n    + {mutant.after}")
        else:
            score.killed += 1
    sys.stderr.write(f"\r{module.name}: {len(todo)} looked at in {time.monotonic() - began:.0f} s\n")
    return score, survivors


def _report(scores: dict[str, list[Score]], survivors: Iterable[str]) -> bool:
    """Tell of all; whether it is enough."""
    enough = True
    lines = [f"{'module':38} {'mutants':>8} {'killed':>8} {'survived':>9} {'percent':>8}"]
    for area, of in scores.items():
        total = Score(area, sum(each.mutants for each in of), sum(each.killed for each in of))
        enough = enough and total.percent >= LEAST
        lines += [total.line(), *(Score(f"  {each.name}", each.mutants, each.killed).line() for each in of)]
    sys.stdout.write("\n".join(["", *survivors, "", *lines, ""]))
    return enough


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.mutation",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", default="", help=f"areas or modules, by commas: {', '.join(AREAS)}")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time [2]")
    parser.add_argument("--survivors", action="store_true", help="take those that were found once for found")
    parser.add_argument("--quick", action="store_true", help=f"leave out tests of more than {QUICK} s")
    said = parser.parse_args()
    wanted = {
        area: [
            each
            for each in of
            if not said.only or {area, each.name.rpartition(".")[2]} & {*said.only.split(",")}
        ]
        for area, of in AREAS.items()
    }
    modules = [module for of in wanted.values() for module in of]
    if not modules:
        parser.error(f"there is nothing of that name: {said.only}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    # So that what runs ends with this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load_others(modules, FOLDER)
    scores: dict[str, list[Score]] = {}
    survivors: list[str] = []
    for area, of in wanted.items():
        for module in of:
            score, lines = _look_at(module, said)
            scores.setdefault(area, []).append(score)
            survivors += lines
    return 0 if _report(scores, survivors) else 1


if __name__ == "__main__":
    # What is done in the order of a set is done in the same order each time.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.integration.mutation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
