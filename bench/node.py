"""Where Node and its http-proxy are; the latter is installed on first use, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable

from bench.processes import ROOT, bare_environment

__all__ = ["find", "module_path"]

FOLDER = ROOT / "build" / "node"

PACKAGES = {
    "http-proxy": "1.18.1",
    "eventemitter3": "4.0.7",
    "follow-redirects": "1.15.9",
    "requires-port": "1.0.0",
}
"""http-proxy and all that it needs, so that nothing is chosen by the day of the run."""

INSTALL_LIMIT = 60.0
"""Seconds."""

HINT = "Debian, Ubuntu: apt install nodejs node-http-proxy"


def module_path() -> str:
    """``NODE_PATH``: what was installed here, then what Debian's node-http-proxy has brought."""
    return f"{FOLDER / 'node_modules'}:/usr/share/nodejs:/usr/lib/nodejs"


def _has_proxy(node: str) -> bool:
    asked = subprocess.run(
        [node, "-e", "require('http-proxy')"],
        env=bare_environment(NODE_PATH=module_path()),
        capture_output=True,
        timeout=30,
        check=False,
    )
    return asked.returncode == 0


def find(tell: Callable[[str], None]) -> str | None:
    """The command of a Node that has http-proxy, installed here if need be; None, and told why, if not."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        tell(f"Node is not installed ({HINT}): measuring without it")
        return None
    if _has_proxy(node):
        return node
    npm = shutil.which("npm")
    if npm is None:
        tell(f"Node has no http-proxy, and npm is not there to install it ({HINT}): measuring without it")
        return None
    tell(f"installing Node's http-proxy {PACKAGES['http-proxy']} into {FOLDER.relative_to(ROOT)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    manifest = {"name": "bench", "private": True, "dependencies": PACKAGES}
    (FOLDER / "package.json").write_text(json.dumps(manifest, indent=1) + "\n")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
    try:
        subprocess.run(command, cwd=FOLDER, capture_output=True, timeout=INSTALL_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        tell("npm did not end in time")
    if _has_proxy(node):
        return node
    tell(f"npm could not install http-proxy ({HINT}): measuring without Node")
    return None
