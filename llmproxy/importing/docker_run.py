"""``docker run ...`` read as what it makes: image, arguments, environment, volumes, ports, GPUs.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import Factory, define

__all__ = ["DockerRun", "read_docker_run"]

_MEANINGLESS = frozenset(
    # llmproxy does so anyway, or it is about the command itself.
    [
        "-d",
        "--detach",
        "-i",
        "--interactive",
        "-t",
        "--tty",
        "--init",
        "--rm",
        "-it",
        "-ti",
        "-itd",
        "-dit",
        "-q",
        "--quiet",
        "--sig-proxy",
        "--no-healthcheck",
    ]
)
_IGNORED = frozenset(
    # As above, with a value: how the container is restarted, seen, pulled or looked after.
    [
        "--restart",
        "--label",
        "-l",
        "--log-driver",
        "--log-opt",
        "--pull",
        "--hostname",
        "-h",
        "--stop-timeout",
        "--stop-signal",
        "--cidfile",
        "--attach",
        "-a",
        "--detach-keys",
        "--annotation",
        "--health-cmd",
        "--health-interval",
        "--health-retries",
        "--health-timeout",
        "--health-start-period",
        "--expose",
    ]
)
_READ = frozenset(
    [
        "-e",
        "--env",
        "-v",
        "--volume",
        "-p",
        "--publish",
        "--name",
        "--gpus",
        "--mount",
        "--ipc",
        "--shm-size",
        "--runtime",
        "--network",
        "--net",
        "--ulimit",
        "--security-opt",
    ]
)
_SWITCHES = frozenset(["--privileged", "--read-only", "--oom-kill-disable", "--publish-all", "-P"])


@define
class DockerRun:
    """What the container is to be.

    :ivar environment: ``None`` as a value: it is that of whoever runs the command.
    :ivar ports: host's to container's.
    :ivar gpus: () none; ("all",) every one of them.
    :ivar unknown: options that make it something that an image backend of llmproxy cannot be.
    """

    image: str = ""
    args: tuple[str, ...] = ()
    name: str | None = None
    environment: dict[str, str | None] = Factory(dict)
    volumes: list[str] = Factory(list)
    ports: dict[str, str] = Factory(dict)
    gpus: tuple[str, ...] = ()
    shared_memory: bool = False
    unknown: list[str] = Factory(list)


def read_docker_run(words: Sequence[str]) -> DockerRun | None:
    """The container that a command line makes; None when it is no ``docker run``."""
    rest = list(words)
    if rest and rest[0].rpartition("/")[2] == "sudo":
        rest.pop(0)
    if not rest or rest.pop(0).rpartition("/")[2] != "docker":
        return None
    if rest[:1] == ["container"]:
        rest.pop(0)
    if rest[:1] != ["run"]:
        return None
    rest.pop(0)
    found = DockerRun()
    while rest and rest[0].startswith("-") and rest[0] != "--":
        _option(found, rest)
    if rest[:1] == ["--"]:
        rest.pop(0)
    if not rest or not rest[0].strip():
        return None
    found.image, *args = rest
    found.args = tuple(args)
    return found


def _option(found: DockerRun, rest: list[str]) -> None:
    """Take one option, and its value if it has one, from the words."""
    word = rest.pop(0)
    name, equals, value = word.partition("=")
    if word in _MEANINGLESS or (equals and name in _MEANINGLESS):
        return
    if name in _SWITCHES:
        if value != "false":
            found.unknown.append(name)
        return
    if not equals:
        # -p8080:80, -eNAME=x, -v/a:/b
        short = re.fullmatch(r"(-[evplwuma])(.+)", word)
        if short is not None and not word.startswith("--"):
            name, value = short[1], short[2]
        elif rest:
            value = rest.pop(0)
    elif not name.startswith("--"):
        # -e NAME=x written in one word: -eNAME=x
        name, value = word[:2], word[2:].removeprefix("=")
    if name in _IGNORED:
        return
    if name not in _READ:
        found.unknown.append(name)
        return
    _take(found, name, value)


def _take(found: DockerRun, name: str, value: str) -> None:
    if name in ("-e", "--env"):
        variable, equals, text = value.partition("=")
        if variable:
            found.environment[variable] = text if equals else None
    elif name in ("-v", "--volume"):
        if value:
            found.volumes.append(value)
    elif name in ("-p", "--publish"):
        host, _, inside = value.partition("/")[0].rpartition(":")
        found.ports[host.rpartition(":")[2]] = inside
    elif name == "--name":
        found.name = value
    elif name == "--gpus":
        _gpus(found, value)
    elif name == "--runtime":
        if value == "nvidia":
            found.gpus = found.gpus or ("all",)
        elif value != "runc":
            found.unknown.append(f"--runtime {value}")
    elif name == "--mount":
        _mount(found, value)
    elif name in ("--ipc", "--shm-size"):
        if name == "--ipc" and value not in ("host", "private", "shareable"):
            found.unknown.append(f"--ipc {value}")
        found.shared_memory |= value not in ("private", "shareable")
    elif name in ("--network", "--net"):
        if value not in ("bridge", "default"):
            found.unknown.append(f"--network {value}")
    elif name == "--ulimit":
        # vLLM's and NVIDIA's examples give it; it only makes memory stay where it is.
        if not value.startswith(("memlock", "stack")):
            found.unknown.append(f"--ulimit {value}")
    elif not value.startswith("no-new-privileges"):
        found.unknown.append(f"--security-opt {value}")


def _gpus(found: DockerRun, value: str) -> None:
    value = value.strip("\"'")
    devices = re.fullmatch(r"\"?device=([^\"]+)\"?", value)
    if value == "all":
        found.gpus = ("all",)
    elif devices is not None:
        found.gpus = tuple(part.strip() for part in devices[1].split(",") if part.strip())
    elif value.isdecimal():
        found.gpus = tuple(str(index) for index in range(int(value)))
    elif value not in ("", "none"):
        found.unknown.append(f"--gpus {value}")


def _mount(found: DockerRun, value: str) -> None:
    parts = dict(part.partition("=")[::2] for part in value.split(","))
    source = parts.get("source") or parts.get("src")
    target = parts.get("target") or parts.get("destination") or parts.get("dst")
    known = {"type", "source", "src", "target", "destination", "dst", "readonly", "ro"}
    if (
        parts.get("type", "volume") not in ("bind", "volume")
        or not source
        or not target
        or parts.keys() - known
    ):
        found.unknown.append(f"--mount {value}")
        return
    read_only = any(parts.get(name, "no") in ("", "true", "1") for name in ("readonly", "ro"))
    found.volumes.append(f"{source}:{target}:ro" if read_only else f"{source}:{target}")
