"""Write requirements/*.lock from setup.cfg and pyproject.toml: every package with its version and the hashes
of its files, so that nothing else can be installed in its place.

    make lock                     what is locked stays, what is new is added
    make lock ARGS=--upgrade      the newest versions that setup.cfg allows

``runtime`` is what the proxy needs, ``build`` is what its image is built with, and each extra has a lock of
its own, with what the proxy needs in it.  A lock holds for every platform and for Python 3.11 and later, and
says nothing of where packages come from.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
RUNTIME = "runtime"
BUILD = "build"


def wanted() -> dict[str, list[str]]:
    """The requirements of each lock, as they are written."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    base = _lines(setup["options"]["install_requires"])
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    extras = {name: _lines(text) for name, text in setup["options.extras_require"].items()}
    # What an image is built with makes its bill of materials, too.
    tools = [each for each in extras["supply"] if each.startswith("cyclonedx")]
    return {RUNTIME: base, BUILD: [*build, "wheel", *tools], **{n: base + each for n, each in extras.items()}}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def pins(lock: str) -> dict[str, str]:
    """The version of each package in a lock."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^\s;\\]+)", lock, re.MULTILINE))


def _compile(needed: Sequence[str], output: Path, *options: str) -> None:
    command = (sys.executable, "-m", "uv", "pip", "compile", "-", "-o", str(output), "--universal", "--quiet")
    subprocess.run(
        [*command, "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", *options],
        input="\n".join(needed),
        text=True,
        check=True,
        # Where packages come from is this machine's affair.
        cwd=FOLDER,
    )


def lock(every: Mapping[str, Sequence[str]], options: Sequence[str]) -> None:
    """Write all locks; what stands in several has one version in all of them."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder) / "all.lock"
        known = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.lock")))
        # The compiler keeps what stands in the file that it is to write.
        together.write_text("\n".join(f"{name}=={version}" for name, version in pins(known).items()))
        _compile(sorted({each for needed in every.values() for each in needed}), together, *options)
        for name, needed in every.items():
            output = FOLDER / f"{name}.lock"
            output.unlink(missing_ok=True)
            _compile(needed, output, "--constraints", str(together))
    for path in FOLDER.glob("*.lock"):
        if path.stem not in every:
            path.unlink()


if __name__ == "__main__":
    lock(wanted(), sys.argv[1:])
