"""Print what llmproxy needs at run time, as setup.cfg has it, one requirement to a line.

``requirements.py otel`` adds what that extra needs.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

if __name__ == "__main__":
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parent.parent / "setup.cfg")
    needed = [setup["options"]["install_requires"]]
    needed += [setup["options.extras_require"][extra] for extra in sys.argv[1:]]
    sys.stdout.write("".join(each.strip() + "\n" for each in needed))
