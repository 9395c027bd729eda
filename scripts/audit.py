"""Look up known vulnerabilities of what an image may be made of, as requirements/*.lock has it.

The database is asked over the network (pip-audit's: PyPI's advisories, or OSV with ``--service osv``).  Where
it is not to be had this says so and is content, unless ``--require`` is given: that says nothing of us.  Exit
status 1: a vulnerability is known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("runtime", "http2", "nvml", "otel", "uvloop", "build")


def ask(lock: str, service: str) -> tuple[Mapping[str, Any] | None, str]:
    """What pip-audit says of a lock, or why it could not be asked."""
    how = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"]
    what = ["--vulnerability-service", service, "-r", f"requirements/{lock}.lock"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *how, *what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return None, last[0][:300]
    return (found, "") if isinstance(found, dict) else (None, "its answer is no report")


def judge(report: Mapping[str, Any]) -> tuple[list[str], int, list[str]]:
    """A line for each vulnerability in a report, how many packages were looked up, and which were not."""
    lines, looked, missed = [], 0, []
    for package in report.get("dependencies", ()):
        if "skip_reason" in package:
            missed.append(str(package["name"]))
            continue
        looked += 1
        for each in package.get("vulns", ()):
            fixed = ", ".join(each.get("fix_versions") or ()) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {each['id']}, mended in {fixed}")
    return lines, looked, missed


def main(arguments: Sequence[str]) -> int:
    """Look all up, tell, and give the exit status."""
    parser = argparse.ArgumentParser(description="Look up known vulnerabilities of what is locked.")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    parser.add_argument("--require", action="store_true", help="fail where the database cannot be asked")
    asked = parser.parse_args(arguments)
    found: dict[str, None] = {}
    for lock in LOCKS:
        report, why = ask(lock, asked.service)
        lines, looked, missed = ([], 0, []) if report is None else judge(report)
        if not looked:
            why = why or "it knows none of the packages"
            sys.stdout.write(f"not audited: the database of vulnerabilities is not to be had here ({why})\n")
            return 2 if asked.require else 0
        if missed:
            sys.stdout.write(f"{lock}: not known to the database: {', '.join(missed)}\n")
        found |= dict.fromkeys(lines)
    sys.stdout.write("".join(f"{line}\n" for line in found) or "no known vulnerability\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
