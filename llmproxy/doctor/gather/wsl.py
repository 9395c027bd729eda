"""Looks at the Windows Subsystem for Linux from within, and asks Windows, where its programs may be run."""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from llmproxy.doctor.facts import WindowsFacts, WslFacts
from llmproxy.doctor.gather.commands import Runner, read_text

__all__ = ["gather_wsl", "read_windows", "read_wslconfig", "wsl_version"]

POWERSHELL = "mnt/c/Windows/System32/WindowsPowerShell/v1.0/powershell.exe"
WINDOWS_TIMEOUT = 25.0
"""Seconds: PowerShell takes some to start, and a firewall with hundreds of rules some more."""

# It only reads.  Each part may fail by itself, for lack of rights or in an older Windows.
_QUESTION = """
$ErrorActionPreference = 'Stop'
$told = @{}
$told.now = [DateTimeOffset]::UtcNow.ToUnixTimeMilliseconds()
try { $told.networks = @(Get-NetConnectionProfile | ForEach-Object { "$($_.NetworkCategory)" }) } catch {}
try { $told.rules = @(Get-NetFirewallPortFilter -Protocol TCP |
  Where-Object { $_.LocalPort -contains 'PORT' } |
  Get-NetFirewallRule | Where-Object { "$($_.Enabled)" -eq 'True' -and "$($_.Direction)" -eq 'Inbound' -and
  "$($_.Action)" -eq 'Allow' } | ForEach-Object { "$($_.Profile)" }) } catch {}
try { $told.hyperv = "$((Get-NetFirewallHyperVVMSetting -PolicyStore ActiveStore -Name `
  '{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}').DefaultInboundAction)" } catch {}
$told | ConvertTo-Json -Compress
"""


def wsl_version(release: str) -> int | None:
    """1 or 2, from the kernel's release; None elsewhere.

    >>> wsl_version("5.15.167.4-microsoft-standard-WSL2"), wsl_version("4.4.0-19041-Microsoft")
    (2, 1)
    """
    if "microsoft" not in release.lower():
        return None
    return 1 if "Microsoft" in release and "WSL2" not in release else 2


def gather_wsl(port: int, runner: Runner, root: Path = Path("/")) -> WslFacts | None:
    """What it is; None where this is none."""
    version = wsl_version(read_text(root / "proc/sys/kernel/osrelease") or "")
    if version is None:
        return None
    path = _wslconfig(root, runner)
    text = None if path is None else read_text(path)
    return WslFacts(
        version,
        os.environ.get("WSL_DISTRO_NAME", ""),
        _networking(runner),
        None if text is None else read_wslconfig(text),
        None if path is None else str(path),
        (root / "run/systemd/system").is_dir(),
        _desktop(root),
        _windows(port, runner, root),
    )


def _networking(runner: Runner) -> str | None:
    ran = runner(["wslinfo", "--networking-mode"], 10)
    return ran.output.lower() if ran.well and re.fullmatch(r"[A-Za-z]+", ran.output) else None


def _desktop(root: Path) -> str:
    """Docker Desktop puts its own distribution's folders there while it runs."""
    if (root / "mnt/wsl/docker-desktop").exists():
        return "running"
    return "installed" if (root / "mnt/c/Program Files/Docker/Docker").exists() else "absent"


def _wslconfig(root: Path, runner: Runner) -> Path | None:
    """Where it is: with one user of Windows that is clear, else Windows has to be asked."""
    users = root / "mnt/c/Users"
    found: list[Path] = []
    try:
        for user in users.iterdir():
            try:
                if (user / ".wslconfig").is_file():
                    found.append(user / ".wslconfig")
            except OSError:
                continue  # another user's
    except OSError:
        return None
    if len(found) < 2:
        return found[0] if found else None
    ran = runner(["cmd.exe", "/d", "/c", "echo %USERNAME%"], 10)
    name = ran.output.strip().lower() if ran.well else ""
    return next((path for path in found if path.parent.name.lower() == name), None)


def read_wslconfig(text: str) -> dict[str, str]:
    """Its ``[wsl2]`` section, and where newer versions have it ``[experimental]``; names in lower case."""
    parser = configparser.ConfigParser(
        strict=False,
        interpolation=None,
        allow_no_value=True,
        delimiters=("=",),
        inline_comment_prefixes=("#",),
    )
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    found = {}
    for section in parser.sections():
        if section.lower() in ("experimental", "wsl2"):
            found.update({name.lower(): (value or "").strip() for name, value in parser.items(section)})
    return found


def _windows(port: int, runner: Runner, root: Path) -> WindowsFacts:
    program = root / POWERSHELL
    if not program.exists():
        return WindowsFacts(error="PowerShell is not to be had from here (interop or automount is off)")
    began = time.time()
    question = _QUESTION.replace("PORT", str(port))
    # As a plain argument its quotes would be lost on the way.
    encoded = base64.b64encode(question.encode("utf-16-le")).decode()
    ran = runner([str(program), "-NoProfile", "-NonInteractive", "-EncodedCommand", encoded], WINDOWS_TIMEOUT)
    if not ran.well:
        return WindowsFacts(error=f"PowerShell did not tell: {(ran.error or ran.output)[:200]}")
    # It read the clock when it had started, which takes most of its time: somewhere in between.
    return read_windows(ran.output, began, time.time())


def read_windows(text: str, began: float, ended: float) -> WindowsFacts:
    """The answer to the question, which was asked and answered at these times."""
    try:
        told: Any = json.loads(text[text.index("{") :])
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return WindowsFacts(error="PowerShell told something else")
    now = told.get("now")
    apart = None
    if isinstance(now, int | float) and not isinstance(now, bool):
        there = now / 1000
        apart = there - ended if there > ended else there - began if there < began else 0.0
    rules = _texts(told.get("rules"))
    allowed = None if rules is None else tuple(name.strip() for rule in rules for name in rule.split(","))
    hyperv = told.get("hyperv")
    return WindowsFacts(
        apart,
        _texts(told.get("networks")) or (),
        allowed,
        hyperv if isinstance(hyperv, str) and hyperv else None,
    )


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts; PowerShell writes a list of one as the one."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(each) for each in value) if isinstance(value, list) else None
