"""``python -m tests.integration.load``: the crowds in full, and a table of what was seen."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from tests.integration.load.crowd import may_open
from tests.integration.load.scenarios import SCENARIOS


def main() -> int:
    """Run them one after the other.

    :return: 1 when something was wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.integration.load", description=__doc__)
    parser.add_argument("--part", type=float, default=1.0, help="of the crowds' full size [1.0]")
    parser.add_argument(
        "--log", action="store_true", help="show the end of the proxy's log where one is wrong"
    )
    parser.add_argument("names", nargs="*", default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)} [all]")
    options = parser.parse_args()
    # What was begun is ended by whoever began it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by TERM"))
    files = 500 + int(10_000 * options.part)
    if not may_open(files):
        sys.stdout.write(f"these clients may not open {files} files: raise the limit (ulimit -n)\n")
        return 1
    wrong = 0
    for name in options.names:
        begun = time.monotonic()
        told = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(told):
            result = SCENARIOS[name](Path(folder) / "proxy", options.part)
        if result.wrong and options.log:
            sys.stdout.write(told.getvalue())
        figures = "; ".join(f"{what} {value}" for what, value in result.figures.items())
        verdict = "ok" if not result.wrong else "WRONG: " + "; ".join(result.wrong)
        sys.stdout.write(f"{name:14} {time.monotonic() - begun:5.0f} s  {verdict}\n    {figures}\n")
        sys.stdout.flush()
        wrong += bool(result.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
