"""Print what llmproxy needs at run time, as setup.cfg has it, one requirement to a line."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

if __name__ == "__main__":
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parent.parent / "setup.cfg")
    sys.stdout.write(setup["options"]["install_requires"].strip() + "\n")
