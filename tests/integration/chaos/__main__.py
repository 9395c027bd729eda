"""``python -m tests.integration.chaos``: break everything around a proxy, and see that it keeps its word."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

from tests.integration.chaos.faults import BACKEND_FAULTS, PROXY_FAULTS
from tests.integration.chaos.report import Report, table
from tests.integration.chaos.run import run
from tests.integration.chaos.stage import Kind
from tests.integration.private_engine import PrivateEngine


def _say(words: object) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the seeds, and print what was seen.

    :return: 1 when something is wrong, else 0.
    """
    names = ", ".join(each.name for each in (*BACKEND_FAULTS, *PROXY_FAULTS))
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.chaos", description=__doc__, epilog=f"Faults: {names}"
    )
    parser.add_argument("--seed", type=int, help="of the first run [one by chance]")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="so many, one after the other [1]")
    parser.add_argument("--seconds", type=float, default=60, help="of faults and traffic for each [60]")
    parser.add_argument("--runtime", choices=("process", "docker", "both"), default="both", help="[both]")
    parser.add_argument("--clients", type=int, default=8, help="that ask at the same time [8]")
    parser.add_argument("--only", default="", metavar="FAULT,...", help="these faults alone [all]")
    options = parser.parse_args()
    first = SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    only = [each.strip() for each in options.only.split(",") if each.strip()]
    kinds: tuple[Kind, ...] = ("process", "docker") if options.runtime == "both" else (options.runtime,)
    reports: list[Report] = []
    with ExitStack() as stack:
        engine = None
        if "docker" in kinds:
            engine = PrivateEngine()
            stack.callback(engine.close)
            engine.start()
            engine.load()
        for seed in range(first, first + options.seeds):
            for kind in kinds:
                _say(f"{kind}, seed {seed} ...")
                folder = Path(tempfile.mkdtemp(prefix=f"llmproxy-chaos-{kind}-{seed}-"))
                folder.chmod(0o755)
                found = run(
                    kind,
                    str(seed),
                    options.seconds,
                    folder,
                    engine=engine if kind == "docker" else None,
                    clients=options.clients,
                    only=only,
                )
                reports.append(found)
                _say(found)
                if found.wrong:
                    _say(f"  its log, its files and the backends' journal are kept in {folder}")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
    _say("")
    _say(table(reports))
    return int(any(each.wrong for each in reports))


if __name__ == "__main__":
    sys.exit(main())
