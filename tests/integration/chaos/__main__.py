"""``python -m tests.integration.chaos``: break everything around a proxy, and see that it keeps its word."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

from tests.integration.chaos.faults import BACKEND_FAULTS, PROXY_FAULTS
from tests.integration.chaos.report import Report, table
from tests.integration.chaos.run import run
from tests.integration.chaos.stage import Kind
from tests.integration.private_engine import PrivateEngine, why_no_private_engine


def _say(words: object) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    """What to do; ``kinds`` are the runtimes that it can be done with, ``only`` names of faults."""
    known = {each.name: each for each in (*BACKEND_FAULTS, *PROXY_FAULTS)}
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.chaos", description=__doc__, epilog=f"Faults: {', '.join(known)}"
    )
    parser.add_argument("--seed", type=int, help="of the first run [one by chance]")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="so many, one after the other [1]")
    parser.add_argument("--seconds", type=float, default=60, help="of faults and traffic for each [60]")
    parser.add_argument("--runtime", choices=("process", "docker", "both"), default="both", help="[both]")
    parser.add_argument("--clients", type=int, default=8, help="that ask at the same time [8]")
    parser.add_argument("--only", default="", metavar="FAULT,...", help="these faults alone [all]")
    options = parser.parse_args()
    options.only = [each.strip() for each in options.only.split(",") if each.strip()]
    unknown = [name for name in options.only if name not in known]
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(known)}")
    asked: tuple[Kind, ...] = ("process", "docker") if options.runtime == "both" else (options.runtime,)
    options.kinds, why_not = [], []
    for kind in asked:
        why = None
        if options.only and not any(known[name].is_for(kind) for name in options.only):
            why = "none of these faults is for it"
        elif kind == "docker":
            why = why_no_private_engine()
        if why is None:
            options.kinds.append(kind)
        else:
            why_not.append(f"{kind} is left out: {why}")
    if not options.kinds:
        parser.error("; ".join(why_not))
    for each in why_not:
        _say(each)
    return options


def main() -> int:
    """Run the seeds, and print what was seen.

    :return: 1 when something is wrong, else 0.
    """
    options = _arguments()
    # What was begun is ended by whoever began it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by TERM"))
    first = SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    reports: list[Report] = []
    with ExitStack() as stack:
        engine = None
        if "docker" in options.kinds:
            engine = PrivateEngine()
            stack.callback(engine.close)
            engine.start()
            engine.load()
        for seed in range(first, first + options.seeds):
            reports.extend(
                _one(kind, seed, options, engine if kind == "docker" else None) for kind in options.kinds
            )
    _say("")
    _say(table(reports))
    return int(any(each.wrong for each in reports))


def _one(kind: Kind, seed: int, options: argparse.Namespace, engine: PrivateEngine | None) -> Report:
    _say(f"{kind}, seed {seed} ...")
    folder = Path(tempfile.mkdtemp(prefix=f"llmproxy-chaos-{kind}-{seed}-"))
    folder.chmod(0o755)
    kept = f"  its log, its files and the backends' journal are kept in {folder}"
    try:
        found = run(
            kind,
            str(seed),
            options.seconds,
            folder,
            engine=engine,
            clients=options.clients,
            only=options.only,
        )
    except BaseException:
        _say(kept)
        raise
    _say(found)
    if found.wrong:
        _say(kept)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
