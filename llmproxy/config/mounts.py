"""Which folders of the host a container may see, and what else would let it out.  Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "UNSAFE",
    "covered",
    "host_folder",
    "mount_folders",
    "source_of",
    "supposed_mounts",
    "unsafe_names",
]

UNSAFE = (
    "privileged",
    "host_network",
    "host_pid",
    "host_namespaces",
    "capabilities",
    "devices",
    "security_opt",
    "mounts",
)
"""What ``docker.allow_unsafe`` may name.  Each of them lets what runs in a container out of it."""

_WINDOWS = re.compile(r"([A-Za-z]):[\\/]")


def unsafe_names(value: Any) -> tuple[str, ...]:
    """``docker.allow_unsafe`` as it is written.

    :raises ValueError: with what is allowed.
    """
    if not isinstance(value, list) or any(each not in UNSAFE for each in value):
        raise ValueError(f"a list of {', '.join(UNSAFE)}")
    return tuple(dict.fromkeys(value))


def mount_folders(value: Any) -> tuple[str, ...]:
    """``docker.allowed_mounts`` as it is written: folders of the Docker host; an empty list allows none.

    :raises ValueError: with what is allowed.
    """
    if isinstance(value, str):
        value = [word for word in re.split(r"[,\n]", value) if word.strip()]
    if not isinstance(value, list):
        raise ValueError("a list of absolute paths")
    found = [host_folder(each.strip()) if isinstance(each, str) else None for each in value]
    if None in found:
        raise ValueError("a list of absolute paths")
    return tuple(dict.fromkeys(folder for folder in found if folder is not None))


def supposed_mounts(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The same where nobody has said: the folder that docker-compose.yml keeps models in."""
    root = environ.get("LLM_ROOT", "").strip() or "/srv/llm"
    folder = host_folder(root)
    return () if folder is None else (folder,)


def host_folder(source: str) -> str | None:
    """A folder of the host, without detours; None for what is no folder, such as a volume's name."""
    windows = _WINDOWS.match(source)
    if windows:
        # Docker Desktop has C:\models in its machine so.
        source = f"/{windows[1].lower()}/" + source[3:].replace("\\", "/")
    if not source.startswith("/"):
        return None
    return posixpath.normpath("/" + source.lstrip("/"))


def covered(folder: str, allowed: Sequence[str]) -> bool:
    """Whether that is one of these folders, or in one of them."""
    return any(folder == each or each == "/" or folder.startswith(each + "/") for each in allowed)


def source_of(volume: str) -> str | None:
    """The host's folder in ``[source:]target[:mode]``; None when it has none."""
    windows = _WINDOWS.match(volume)
    start = 2 if windows else 0
    source, colon, _ = volume[start:].partition(":")
    source = volume[:start] + source
    if not colon:
        return None
    if source.startswith((".", "~")):
        # From a place that is not known here, and so in no folder that is allowed.
        return source
    return host_folder(source)
