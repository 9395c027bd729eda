"""Look for secrets in the files that Git tracks: known forms of keys, and assignments of random-looking text.

``python scripts/secret_scan.py [FILE...]``; exit status 1 when something was found.  Only the place and
the kind are told, never the secret.  A line that ends with ``# no secret`` is left alone.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

KNOWN = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "OpenAI key": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
}
ASSIGNED = re.compile(
    r"""(?i)(?:key|token|secret|password|bearer)["']?\s*[:=]?\s*["']?([A-Za-z0-9+/_=-]{24,})"""
)
# Bits for each character: words stay below 3.5, base64 is above 4; 32 hexadecimal digits are random above 3.
ENTROPY = 3.6
HEX = re.compile(r"[0-9a-fA-F]{32,}")
HEX_ENTROPY = 3.0
LARGEST = 1_000_000


def entropy(text: str) -> float:
    """Shannon entropy in bits for each character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def scan(text: str) -> Iterator[tuple[int, str]]:
    """Line number and kind of whatever looks like a secret."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.rstrip().endswith("# no secret"):
            continue
        for kind, pattern in KNOWN.items():
            if pattern.search(line):
                yield number, kind
        for found in ASSIGNED.findall(line):
            # Names in code have no digits, or are made of short words.
            name = not re.search(r"\d", found) or re.search(r"[-_].*[-_]", found)
            if not name and entropy(found) > (HEX_ENTROPY if HEX.fullmatch(found) else ENTROPY):
                yield number, "random text assigned to a secret's name"


def tracked() -> list[Path]:
    """The files that Git tracks."""
    told = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout
    return [Path(name) for name in told.decode().split("\0") if name]


def main(arguments: Sequence[str]) -> int:
    """Scan, tell, and give the exit status."""
    found = 0
    for path in [Path(name) for name in arguments] or tracked():
        if not path.is_file() or path.stat().st_size > LARGEST:
            continue
        for number, kind in scan(path.read_text(encoding="utf-8", errors="replace")):
            found += 1
            sys.stdout.write(f"{path}:{number}: {kind}\n")
    sys.stdout.write(f"{found} suspicious {'place' if found == 1 else 'places'}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
