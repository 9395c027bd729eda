"""Look for secrets in what Git tracks or would track, and in all that it ever has: known forms of keys, and
random-looking text under a secret's name.

    python scripts/secret_scan.py                the tree and the history (`make secrets`)
    python scripts/secret_scan.py --staged       what the next commit adds (for a pre-commit hook)
    python scripts/secret_scan.py FILE...        these files

Exit status 1 when something was found, each with its place and what it looks like; never the secret itself.
What is known to be none stands in .secretscan-allow, or on a line that ends with ``# no secret``.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

# Each begins with letters that are searched for quickly, and counts where a word begins.
KNOWN = (
    ("private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    ("Hugging Face token", r"hf_[A-Za-z0-9]{30,}"),
    ("llmproxy key", r"llmp_[A-Za-z0-9_-]{40,}"),
    ("OpenAI or Anthropic key", r"sk-[A-Za-z0-9_-]{32,}"),
    ("Stripe key", r"sk_live_[A-Za-z0-9]{20,}"),
    ("Stripe key", r"rk_live_[A-Za-z0-9]{20,}"),
    ("GitHub token", r"gh[pousr]_[A-Za-z0-9]{36,}"),
    ("GitHub token", r"github_pat_[A-Za-z0-9_]{60,}"),
    ("GitLab token", r"glpat-[A-Za-z0-9_-]{20,}"),
    ("AWS key", r"AKIA[0-9A-Z]{16}\b"),
    ("AWS key", r"ASIA[0-9A-Z]{16}\b"),
    ("Google key", r"AIza[A-Za-z0-9_-]{35}"),
    ("Slack token", r"xox[abeprs]-[A-Za-z0-9-]{10,}"),
    ("Slack webhook", r"hooks\.slack\.com/services/[A-Za-z0-9/]{30,}"),
    ("Docker Hub token", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}"),
    ("NVIDIA key", r"nvapi-[A-Za-z0-9_-]{40,}"),
    ("PyPI token", r"pypi-AgE[A-Za-z0-9_-]{50,}"),
    ("npm token", r"npm_[A-Za-z0-9]{36}"),
    ("SendGrid key", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("JSON Web Token", r"eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"),
    # A tunnel's is JSON in base64, as is the head of a JSON Web Token.
    ("Cloudflare Tunnel token", r"eyJ[A-Za-z0-9_-]{100,}={0,2}"),
    ("password in a URL", r"://[^\s/:@'\"{}<>$*]+:[^\s/:@'\"{}<>$*]{6,}@[A-Za-z0-9]"),
)
_KNOWN = tuple((kind, re.compile(form)) for kind, form in KNOWN)
ASSIGNED = re.compile(
    r"""(?i)(?:key|token|secret|password|passwd|bearer|basic|credential)s?["']?\s*[:=]?\s*["']?([A-Za-z0-9+/_=-]{24,})"""
)
# Bits for each character: words stay below 3.5, base64 is above 4; 32 hexadecimal digits are random above 3.
ENTROPY = 3.6
HEX = re.compile(r"[0-9a-fA-F]{32,}")
HEX_ENTROPY = 3.0
RANDOM = "random text under a secret's name"
LARGEST = 1_000_000
# What lies in a repository by mistake only, whatever is in it.
MISPLACED = re.compile(
    r"(?:^|/)(?:\.env|\.netrc|\.htpasswd|id_(?:rsa|dsa|ecdsa|ed25519)|[^/]+\.(?:p12|pfx|jks|kdbx))$"
)
ALLOWED = ".secretscan-allow"
ROOT = Path(__file__).resolve().parent.parent


class Found(NamedTuple):
    """Something that looks like a secret."""

    where: str
    line: int
    kind: str
    text: str

    def told(self) -> str:
        """Its place, what it looks like, and no more of it than helps to find it."""
        shown = f"{self.text[:4]}***" if len(self.text) > 12 else "***"
        return f"{self.where}:{self.line}: {self.kind}: {shown} ({len(self.text)} characters)"


def entropy(text: str) -> float:
    """Shannon entropy in bits for each character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def _suspects(text: str) -> Iterator[tuple[int, str, str]]:
    for kind, form in _KNOWN:
        for match in form.finditer(text):
            begins = match.start()
            if (
                text[begins] in "-:"
                or not begins
                or not (text[begins - 1].isalnum() or text[begins - 1] == "_")
            ):
                yield begins, kind, match[0]
    for match in ASSIGNED.finditer(text):
        word = match[1]
        # Names in code have no digits, or are made of short words.
        name = not re.search(r"\d", word) or re.search(r"[-_].*[-_]", word)
        if not name and entropy(word) > (HEX_ENTROPY if HEX.fullmatch(word) else ENTROPY):
            yield match.start(1), RANDOM, word


def scan(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, kind and text of whatever looks like a secret, each text once a line."""
    seen: set[tuple[int, str]] = set()
    for place, kind, word in sorted(_suspects(text)):
        number = text.count("\n", 0, place) + 1
        end = text.find("\n", place)
        line = text[text.rfind("\n", 0, place) + 1 : end if end >= 0 else len(text)]
        if line.rstrip().endswith("# no secret") or any(number == n and word in other for n, other in seen):
            continue
        seen.add((number, word))
        yield number, kind, word


class Allowed:
    """What is known to be no secret: in files whose path matches, texts that match as a whole."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[str, re.Pattern[str]]] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            path, _, form = line.partition(" ")
            if not form.strip():
                raise SystemExit(f"{ALLOWED}:{number}: write a path, a blank, and a regular expression")
            self._rules.append((path, re.compile(form.strip())))

    def allows(self, path: str, text: str) -> bool:
        """Whether that text may stand in that file."""
        return any(fnmatchcase(path, glob) and form.fullmatch(text) for glob, form in self._rules)


def git(*arguments: str) -> str:
    """What Git says."""
    done = subprocess.run(["git", *arguments], check=True, capture_output=True)
    return done.stdout.decode("utf-8", "replace")


def tree() -> list[str]:
    """The files that Git tracks, or would."""
    return [
        name
        for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        if name
    ]


def scan_files(names: Iterable[str]) -> Iterator[Found]:
    """Files as they are."""
    for name in names:
        path = Path(name)
        if MISPLACED.search(path.as_posix()):
            yield Found(name, 1, "a file that holds secrets", path.name)
        if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST:
            continue
        for number, kind, text in scan(path.read_text(encoding="utf-8", errors="replace")):
            yield Found(name, number, kind, text)


_FILE = re.compile(r'^\+\+\+ (?:"?b/(.*?)"?|/dev/null)$')
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)")
_COMMIT = re.compile(r"^commit ([0-9a-f]{12})")


def scan_patch(patch: str, prefix: bool) -> Iterator[Found]:
    """The lines that a patch adds.

    :param prefix: name the commit that each stands in.
    """
    where, number, commit = "", 0, ""
    block: list[str] = []

    def over() -> Iterator[Found]:
        for line, kind, text in scan("\n".join(block)) if block else ():
            name = f"{commit}:{where}" if prefix else where
            yield Found(name, number - len(block) + line - 1, kind, text)
        block.clear()

    for line in patch.splitlines():
        if line.startswith("+") and not line.startswith("+++ "):
            if len(line) <= LARGEST:
                block.append(line[1:])
                number += 1
            continue
        yield from over()
        if found := _COMMIT.match(line):
            commit = found[1]
        elif found := _FILE.match(line):
            where = found[1] or ""
            if where and MISPLACED.search(where):
                yield Found(f"{commit}:{where}" if prefix else where, 1, "a file that holds secrets", where)
        elif found := _HUNK.match(line):
            number = int(found[1])
    yield from over()


def history() -> Iterator[Found]:
    """All that was ever committed, on any branch."""
    log = (
        "log",
        "--all",
        "-p",
        "--unified=0",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
    )
    yield from scan_patch(
        git(*log, "--abbrev=12", "--abbrev-commit", "--diff-filter=AM", "--format=commit %h"), True
    )


def main(arguments: Sequence[str]) -> int:
    """Scan, tell, and give the exit status."""
    parser = argparse.ArgumentParser(description="Look for secrets in the tree and in Git's history.")
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--staged", action="store_true", help="what the next commit adds")
    parser.add_argument("--no-history", action="store_true", help="the tree only")
    parser.add_argument("--allow", default=str(ROOT / ALLOWED), help=f"what is none [{ALLOWED}]")
    asked = parser.parse_args(arguments)
    allow = Path(asked.allow)
    allowed = Allowed(allow.read_text(encoding="utf-8") if allow.is_file() else "")
    if asked.staged:
        staged = git("diff", "--cached", "--unified=0", "--no-color", "--no-ext-diff", "--no-renames")
        suspects: list[Found] = list(scan_patch(staged, False))
    elif asked.files:
        suspects = list(scan_files(asked.files))
    else:
        suspects = list(scan_files(tree()))
        if not asked.no_history:
            present = {(found.text, found.kind) for found in suspects}
            suspects += [found for found in history() if (found.text, found.kind) not in present]
    told: set[tuple[str, str]] = set()
    count = 0
    for found in suspects:
        path = found.where.partition(":")[2] if re.match("[0-9a-f]{12}:", found.where) else found.where
        repeated = (path, found.text) in told and path != found.where
        if repeated or allowed.allows(path, found.text):
            continue
        told.add((path, found.text))
        count += 1
        sys.stdout.write(found.told() + "\n")
    sys.stdout.write(f"{count} suspicious {'place' if count == 1 else 'places'}\n")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
