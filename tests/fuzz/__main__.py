"""``python -m tests.fuzz --seconds 120 --seed 7 --only requests,json``: fuzz for so long, all together."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.fuzz.drive import TARGETS, fuzz


def main() -> int:
    """Fuzz, and tell of each target; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the first of the seeds [by the time]"
    )
    parser.add_argument("--only", default="", help=f"targets, by commas: {', '.join(TARGETS)}")
    said = parser.parse_args()
    names = said.only.split(",") if said.only else list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}")
    shares = sum(TARGETS[name].share for name in names)
    found = 0
    for name in names:
        try:
            rounds, inputs = fuzz(name, said.seconds * TARGETS[name].share / shares, said.seed)
        except Exception:
            found += 1
            sys.stdout.write(f"{name}: FOUND SOMETHING\n{traceback.format_exc()}\n")
        else:
            sys.stdout.write(f"{name}: {inputs} inputs, seeds {said.seed} to {said.seed + rounds - 1}\n")
        sys.stdout.flush()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
