"""``python -m tests.model``: explore the fleets deeper than the unit tests do."""

from __future__ import annotations

import argparse
import sys

from tests.model.explore import Found, explore
from tests.model.world import FLEETS


def main() -> int:
    """Explore each, and print what was seen.

    :return: 1 when something is wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--depth", type=int, default=8, help="steps of which every order is tried [8]")
    parser.add_argument(
        "--seconds", type=float, default=600, help="of computing for each fleet at most [600]"
    )
    parser.add_argument("fleets", nargs="*", default=list(FLEETS), help=f"of {', '.join(FLEETS)} [all]")
    options = parser.parse_args()
    for name in options.fleets:
        try:
            seen = explore(FLEETS[name], options.depth, options.seconds)
        except Found as found:
            sys.stdout.write(f"{name}: {found}\n")
            return 1
        part = "" if seen.complete else f", and a part of depth {seen.depth + 1}"
        sys.stdout.write(
            f"{name}: {seen.states} states, {seen.steps} transitions, all orders of {seen.depth} steps{part}"
            f" (new states by depth: {', '.join(map(str, seen.by_depth))})\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
