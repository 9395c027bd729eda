"""What a container that llmproxy creates may not have: whatever would let it out onto the host.

Whoever may use Docker's socket is root on its host.  llmproxy may, so that nothing that it reads (a compose
file with variables in it, labels) shall become such a container unless the configuration file says so.
Judged is what the engine itself tells of it (``HostConfig`` of its API), in whatever way it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from docker.api.client import APIClient
from docker.errors import APIError, NotFound

from llmproxy.config.model import DockerSettings
from llmproxy.config.mounts import covered, host_folder
from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.docker_state import Json
from llmproxy.runtimes.interface import StartRefused

__all__ = ["check_created", "dangers", "host_mounts", "refusal"]

_GPU_DEVICE = re.compile(r"/dev/(?:nvidia[a-z0-9-]*(?:/[\w-]+)?|dxg|kfd|dri(?:/[\w-]+)?)")
"""Device nodes of GPUs: NVIDIA's, those of WSL, AMD's and Intel's."""

_GPU_NAME = re.compile(r"(?:nvidia|amd|intel)\.com/gpu=")
_OPEN = re.compile(
    r"unconfined|^label[=:]disable|^no-new-privileges[=:]false|^systempaths[=:]", re.IGNORECASE
)


def dangers(host: Json) -> Iterator[tuple[str, str]]:
    """Everything but mounts: what of ``docker.allow_unsafe`` it needs, and what it is, in words.

    The host's IPC namespace is none: vLLM's processes share memory in it.
    """
    if host.get("Privileged"):
        yield "privileged", "it is privileged"
    if host.get("NetworkMode") == "host":
        yield "host_network", "it shares the host's network"
    if _shared(host.get("PidMode")):
        yield "host_pid", f"it sees the processes of {_whose(host['PidMode'])}"
    # Not CgroupnsMode: the host's is what every container has with control groups of version 1.
    for key, what in (("UTSMode", "name"), ("UsernsMode", "users")):
        if host.get(key) == "host":
            yield "host_namespaces", f"it shares the host's {what}"
    if host.get("CapAdd"):
        yield "capabilities", f"it has the capabilities {', '.join(map(str, host['CapAdd']))} added"
    yield from (("devices", f"it has the device {name}") for name in _devices(host))
    if host.get("DeviceCgroupRules"):
        yield "devices", f"it may make devices ({', '.join(map(str, host['DeviceCgroupRules']))})"
    # The engine adds this one by itself to what shares the host's IPC or processes, and to the privileged.
    own = (
        "label=disable"
        if "host" in (host.get("IpcMode"), host.get("PidMode")) or host.get("Privileged")
        else ""
    )
    for option in host.get("SecurityOpt") or ():
        if _OPEN.search(str(option)) and option != own:
            yield "security_opt", f"it has the security option {option}"
    # What `systempaths=unconfined` becomes.
    if host.get("MaskedPaths") == [] and not host.get("Privileged"):
        yield "security_opt", "no path of /proc is hidden from it"


def _shared(mode: Any) -> bool:
    return mode == "host" or str(mode or "").startswith("container:")


def _whose(mode: Any) -> str:
    return "the host" if mode == "host" else "another container"


def _devices(host: Json) -> Iterator[str]:
    for device in host.get("Devices") or ():
        path = str(device.get("PathOnHost", ""))
        if not _GPU_DEVICE.fullmatch(path) and not _GPU_NAME.match(path):
            yield path
    for request in host.get("DeviceRequests") or ():
        names = [str(name) for name in request.get("DeviceIDs") or ()]
        gpu = any("gpu" in (each or ()) for each in request.get("Capabilities") or ())
        if not gpu and not (names and all(_GPU_NAME.match(name) for name in names)):
            yield ", ".join(names) or str(request.get("Driver") or "of a request for any")


def host_mounts(host: Json, options_of: Any = None) -> Iterator[str]:
    """The host's folders that it gets.

    :param options_of: tells the driver's options of a volume of that name, which may be no more than another
        name for a folder.
    """
    for bind in host.get("Binds") or ():
        source = str(bind).partition(":")[0]
        if source.startswith("/"):
            yield source
        elif options_of is not None:
            yield from _behind(options_of(source))
    for mount in host.get("Mounts") or ():
        source = str(mount.get("Source") or "")
        if mount.get("Type") == "bind":
            yield source
        elif mount.get("Type") == "volume":
            yield from _behind(
                ((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Options") or {}
            )
            if source and options_of is not None:
                yield from _behind(options_of(source))


def _behind(options: Json) -> Iterator[str]:
    device = str(options.get("device") or "")
    if device.startswith("/"):
        yield device


def refusal(name: str, host: Json, folders: Sequence[str], settings: DockerSettings) -> StartRefused | None:
    """Why the container must not be; None when there is no reason.

    :param folders: of the host, that it gets.
    """
    found = [(kind, words) for kind, words in dangers(host) if kind not in settings.allow_unsafe]
    if "mounts" not in settings.allow_unsafe:
        outside = [
            folder for folder in folders if not covered(host_folder(folder) or "", settings.allowed_mounts)
        ]
        found += [("mounts", f"it gets {folder} of the host") for folder in dict.fromkeys(outside)]
        if host.get("VolumesFrom"):
            found.append(("mounts", f"it gets the folders of {', '.join(map(str, host['VolumesFrom']))}"))
    if not found:
        return None
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    fix = f"put {', '.join(kinds)} into docker.allow_unsafe in llmproxy.yaml"
    if kinds == ["mounts"] and not host.get("VolumesFrom"):
        fix = "add the folder to docker.allowed_mounts (LLMPROXY_ALLOWED_MOUNTS)"
    words = "; ".join(words for _, words in found)
    return StartRefused(
        f"container {name!r} is not created: {words}",
        f"That lets what runs in it out onto the host. Leave it away; if it is meant, {fix}.",
    )


def check_created(client: APIClient, name: str, settings: DockerSettings) -> bool:
    """Look at a container that Compose has just created, and remove it where it must not be.

    :return: whether there is one.
    :raises StartRefused: it has what it must not have.
    """

    def options_of(volume: str) -> Json:
        try:
            found: Json = client.inspect_volume(volume).get("Options") or {}
        except APIError:
            return {}
        return found

    try:
        info: Json = client.inspect_container(name)
    except NotFound:
        return False
    host: Json = info.get("HostConfig") or {}
    refused = refusal(name, host, list(host_mounts(host, options_of)), settings)
    if refused is None:
        return True
    try:
        client.remove_container(info["Id"], v=True, force=True)
    except NotFound:
        pass
    except APIError as error:
        raise StartRefused(
            f"{refused}; and it could not be removed: {describe(error)}", refused.hint
        ) from error
    raise refused
