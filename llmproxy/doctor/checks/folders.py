"""Folders that backends mount, and space on disks.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.doctor.checks.backends import Known, known_backends
from llmproxy.doctor.facts import DiskFacts, Facts, Folder, Mount
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn
from llmproxy.doctor.numbers import GIB, MIB, size

__all__ = ["check_disks", "check_folders"]

SLOW = ("9p", "drvfs", "fuseblk", "ntfs", "ntfs3", "v9fs", "cifs", "smb3")
"""File systems that are NTFS, or reach Windows' own through one more layer."""

NEEDED = {
    "state": (10 * MIB, 200 * MIB),
    "docker": (2 * GIB, 25 * GIB),
    "cache": (2 * GIB, 20 * GIB),
    "windows": (2 * GIB, 20 * GIB),
}
"""Bytes below which it fails, and below which it is worth a warning: an image of vLLM takes 20 GiB when it is
unpacked, and a quantized model of 7 billion weights 5 GiB."""

TITLES = {
    "state": "the proxy's state",
    "docker": "Docker's images and volumes",
    "cache": "models",
    "windows": "the disk of Windows, on which WSL's own lies",
}
FIXES = {
    "state": "Free some space there, or put state_dir elsewhere.",
    "docker": "docker system df tells what takes it; docker image prune frees what nothing uses.",
    "cache": "Delete models that are not used any more (huggingface-cli delete-cache), or move the folder.",
    "windows": (
        "Free space on the drive; WSL's disk grows by itself and shrinks only with wsl --manage --set-sparse."
    ),
}


def check_folders(facts: Facts) -> Iterator[Finding]:
    """Each folder of the host that backends mount."""
    users: dict[str, list[tuple[Known, Mount]]] = {}
    for one in known_backends(facts):
        for mount in one.mounts:
            if mount.bind:
                users.setdefault(mount.source, []).append((one, mount))
    if not users:
        return
    if facts.host.contained or not facts.engine.local:
        where = "this runs in a container" if facts.host.contained else "Docker runs on another machine"
        text = f"{', '.join(users)}: not to be seen from here, as {where}."
        yield skipped("folders.mounts", text, "Run llmproxy doctor on the host itself.")
        return
    for source, mounts in users.items():
        folder = facts.folders.get(source)
        if folder is not None:
            yield from _judge(folder, mounts, in_wsl=facts.host.wsl is not None)


def _judge(folder: Folder, mounts: list[tuple[Known, Mount]], *, in_wsl: bool) -> Iterator[Finding]:
    name, path = "folders.mounts", folder.path
    routes = ", ".join(dict.fromkeys(one.route for one, _ in mounts))
    written = [one for one, mount in mounts if not mount.read_only]
    if folder.kind == "missing":
        yield _missing(path, routes, mounts, written)
        return
    if folder.kind == "hidden":
        yield skipped(name, f"{path} ({routes}) is closed to this user; Docker may see it.")
        return
    if written and folder.read_only:
        text = f"{path} ({routes}) is on a file system that is mounted read-only: no model can be downloaded."
        yield fail(
            name,
            text,
            "Mount it writable (sudo mount -o remount,rw ...; dmesg tells whether the disk has faults).",
        )
        return
    other = next((one for one in written if _is_other(one, folder)), None)
    if other is not None and other.container is not None:
        yield warn(
            name,
            f"{path} ({other.route}): its container runs as user {other.container.user},"
            " who may not write there.",
            f"sudo chown -R {other.container.user} {path}",
        )
    elif folder.filesystem in SLOW or (in_wsl and path.startswith("/mnt/") and path[6:7] in ("", "/")):
        yield warn(
            name,
            f"{path} ({routes}) is on a disk of Windows: models load several times slower from there.",
            "Move it into WSL's own disk (/srv/llm), or exclude it from Windows Defender if it has to stay.",
        )
    else:
        how = "read" if not written else "read and written"
        yield ok(name, f"{path} ({routes}) is there, to be {how}.")


def _is_other(one: Known, folder: Folder) -> bool:
    """Whether its container's user, who is not root, can certainly not write there."""
    user = one.container.user.partition(":")[0] if one.container is not None else ""
    if not (user.isascii() and user.isdecimal()) or int(user) == 0:
        return False  # a name means what the image says
    own, group_or_all = folder.mode & 0o200, folder.mode & 0o022
    return not group_or_all and not (own and int(user) == folder.owner)


def _missing(path: str, routes: str, mounts: list[tuple[Known, Mount]], written: list[Known]) -> Finding:
    name, make = "folders.mounts", f"sudo mkdir -p {path}"
    readers = [one.route for one, mount in mounts if any(mount.target in word for word in one.args)]
    if readers:
        text = f"{path} is not there, and the command of {', '.join(readers)} names files in it."
        return fail(name, text, f"{make}, and put the model there.")
    if written:
        return warn(name, f"{path} ({routes}) is not there: Docker will make it, for root alone.", make)
    return ok(name, f"{path} ({routes}) is not there, and nothing that is configured needs it.")


def check_disks(facts: Facts) -> Iterator[Finding]:
    """Space that is left."""
    for disk in facts.disks:
        yield _space(disk)


def _space(disk: DiskFacts) -> Finding:
    name, least = f"disk.{disk.what}", NEEDED[disk.what]
    if disk.full_of_files:
        text = f"{disk.path} ({TITLES[disk.what]}) can take no more files: it has no inodes left."
        return fail(name, text, FIXES[disk.what])
    text = f"{size(disk.free)} of {size(disk.total)} are free for {TITLES[disk.what]} ({disk.path})."
    if disk.free < least[0]:
        return fail(name, text, FIXES[disk.what])
    return warn(name, text, FIXES[disk.what]) if disk.free < least[1] else ok(name, text)
