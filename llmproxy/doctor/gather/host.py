"""Looks at this machine: whether it is a container, folders, disks, ports, the clock."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from llmproxy.doctor.facts import ClockFacts, DiskFacts, Folder, FolderKind, HostFacts
from llmproxy.doctor.gather.commands import Runner, read_text, run
from llmproxy.doctor.gather.wsl import gather_wsl

__all__ = ["gather_clock", "gather_disk", "gather_folder", "gather_host", "is_busy", "read_mounts"]


def gather_host(port: int, runner: Runner = run, root: Path = Path("/")) -> HostFacts:
    """What it is.

    :param port: the proxy's, for the rules of the Windows firewall.
    """
    contained = (root / "run/.containerenv").exists() or _in_docker(root)
    # In a container the kernel's name would tell of the machine below, whose settings are not to be seen.
    wsl = None if contained else gather_wsl(port, runner, root)
    return HostFacts(contained, _memory(root), _lan_address(), wsl)


def _in_docker(root: Path) -> bool:
    """A machine that was made from an image has the file, too, but none of a container's mounts."""
    if not (root / ".dockerenv").exists():
        return False
    from llmproxy.runtimes.docker_reach import own_container_id

    return own_container_id(read_text(root / "proc/self/mountinfo") or "", socket.gethostname()) is not None


def _memory(root: Path) -> int | None:
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal" and value.split()[:1] and value.split()[0].isdecimal():
            return int(value.split()[0]) * 1024
    return None


def _lan_address() -> str | None:
    """The address that the way out of here has; to connect a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return None


def read_mounts(text: str) -> dict[str, str]:
    """Types of file systems by mount point, from ``/proc/self/mountinfo`` (``proc(5)``)."""
    found = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if separator and len(fields) > 4:
            # Spaces and the like are written as \040.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found[point] = more[0]
    return found


def _filesystem(path: str, mounts: dict[str, str]) -> str:
    fitting = [point for point in mounts if path == point or path.startswith(point.rstrip("/") + "/")]
    return mounts[max(fitting, key=len)] if fitting else ""


def gather_folder(path: str, mountinfo: str | None = None) -> Folder:
    """One folder; what it is a link to counts."""
    text = mountinfo if mountinfo is not None else read_text("/proc/self/mountinfo") or ""
    try:
        real = os.path.realpath(path)
    except ValueError:  # no path at all
        return Folder(path, "hidden")
    filesystem = _filesystem(real, read_mounts(text))
    try:
        told = os.stat(real)
        read_only = bool(os.statvfs(real).f_flag & os.ST_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return Folder(path, "missing", filesystem)
    except OSError:
        return Folder(path, "hidden", filesystem)
    kind: FolderKind = "folder" if stat.S_ISDIR(told.st_mode) else "file"
    writable = os.access(real, os.W_OK)
    return Folder(path, kind, filesystem, read_only, writable, told.st_uid, stat.S_IMODE(told.st_mode))


def gather_disk(what: str, path: str) -> DiskFacts | None:
    """The file system that a folder is on, or will be on when it is made."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        told = os.statvfs(place)
    except OSError:
        return None
    # Some file systems have no fixed number of files, and say 0 of 0.
    full = told.f_files > 0 and told.f_favail == 0
    return DiskFacts(what, path, told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize, full)


def is_busy(address: str, port: int) -> bool:
    """Whether something listens there; what cannot be told counts as no."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # With it only a listening socket is in the way, and none that has just been closed.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def gather_clock(
    runner: Runner = run, now: Callable[[], float] = time.time, installed: str | None = None
) -> ClockFacts:
    """The clock, and what may be known of it without asking anybody.

    :param installed: a file that was written when llmproxy was installed.
    """
    try:
        built = os.stat(installed or __file__).st_mtime
    except OSError:
        built = None
    synchronized = None
    if shutil.which("timedatectl"):
        ran = runner(["timedatectl", "show", "--property=NTPSynchronized", "--value"], 5)
        synchronized = {"yes": True, "no": False}.get(ran.output) if ran.well else None
    return ClockFacts(now(), built, synchronized)


def gather_folders(paths: Iterable[str]) -> dict[str, Folder]:
    """Several."""
    mountinfo = read_text("/proc/self/mountinfo") or ""
    return {path: gather_folder(path, mountinfo) for path in dict.fromkeys(paths)}
