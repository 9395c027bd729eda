"""What containers may not have that llmproxy creates."""

from __future__ import annotations

from typing import Any

import pytest
from docker.errors import NotFound
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.config.mounts import (
    UNSAFE,
    covered,
    host_folder,
    mount_folders,
    source_of,
    supposed_mounts,
    unsafe_names,
)
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError
from llmproxy.runtimes.docker_create import container_body, create_container
from llmproxy.runtimes.docker_guard import check_created, dangers, host_mounts, refusal
from llmproxy.runtimes.docker_reach import Reach
from llmproxy.runtimes.docker_state import is_called
from llmproxy.runtimes.interface import StartRefused

ID = "beefcafe0123" + "4" * 52
PLAIN = {
    "Binds": ["/srv/llm/.cache:/root/.cache/huggingface:rw", "models:/weights"],
    "NetworkMode": "llm_default",
    "IpcMode": "host",
    "PidMode": "",
    "UTSMode": "",
    "UsernsMode": "",
    "CgroupnsMode": "host",
    "CapAdd": None,
    "CapDrop": ["ALL"],
    "Privileged": False,
    "SecurityOpt": ["no-new-privileges:true", "label=disable"],
    "Devices": [
        {"PathOnHost": "/dev/nvidia0"},
        {"PathOnHost": "/dev/dri/renderD128"},
        {"PathOnHost": "/dev/dxg"},
    ],
    "DeviceRequests": [
        {"Driver": "nvidia", "Count": 1, "DeviceIDs": None, "Capabilities": [["gpu"]]},
        {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=0"], "Capabilities": None},
    ],
    "DeviceCgroupRules": None,
    "VolumesFrom": None,
    "MaskedPaths": ["/proc/kcore"],
}
"""As an engine tells of a container of docker-compose.yml."""

UNSAFE_HOSTS = [
    ("privileged", {"Privileged": True}),
    ("privileged", {"Privileged": True, "MaskedPaths": []}),
    ("host_network", {"NetworkMode": "host"}),
    ("host_pid", {"PidMode": "host"}),
    ("host_pid", {"PidMode": "container:other"}),
    ("host_namespaces", {"UTSMode": "host"}),
    ("host_namespaces", {"UsernsMode": "host"}),
    ("capabilities", {"CapAdd": ["SYS_ADMIN"]}),
    ("devices", {"Devices": [{"PathOnHost": "/dev/sda"}]}),
    ("devices", {"Devices": [{"PathOnHost": "/dev/nvidia0/../sda"}]}),
    ("devices", {"DeviceCgroupRules": ["b 8:0 rwm"]}),
    ("devices", {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/disk=0"]}]}),
    ("devices", {"DeviceRequests": [{"Driver": "", "Capabilities": [["storage"]]}]}),
    ("security_opt", {"SecurityOpt": ["seccomp=unconfined"]}),
    ("security_opt", {"SecurityOpt": ["apparmor:unconfined"]}),
    ("security_opt", {"SecurityOpt": ["label=disable"], "IpcMode": "private"}),
    ("security_opt", {"MaskedPaths": []}),
]


def test_a_models_container_is_let_through() -> None:
    """What vLLM needs is no danger: GPUs, the host's IPC namespace, its cache, and a volume."""
    assert list(dangers(PLAIN)) == []
    assert list(host_mounts(PLAIN)) == ["/srv/llm/.cache"]
    assert refusal("c", PLAIN, ["/srv/llm/.cache"], DockerSettings()) is None


@pytest.mark.parametrize(("kind", "changes"), UNSAFE_HOSTS)
def test_what_lets_it_out_is_refused(kind: str, changes: dict[str, Any]) -> None:
    """Each is told by its name, and let through where the file allows just that."""
    host = {**PLAIN, **changes}
    assert {each for each, _ in dangers(host)} == {kind}
    refused = refusal("c", host, (), DockerSettings())
    assert refused is not None
    assert "'c' is not created" in str(refused)
    assert refused.hint is not None
    assert f"put {kind} into docker.allow_unsafe" in refused.hint
    assert refusal("c", host, (), DockerSettings(allow_unsafe=(kind,))) is None
    others = tuple(each for each in UNSAFE if each != kind)
    assert refusal("c", host, (), DockerSettings(allow_unsafe=others)) is not None


@pytest.mark.parametrize(
    "folder", ["/", "/etc", "/srv", "/srv/llmother", "/srv/llm/../../etc", "/var/run/docker.sock", "//etc"]
)
def test_folders_outside_the_list_are_refused(folder: str) -> None:
    """However they are written, and with the setting that would allow them."""
    refused = refusal("c", PLAIN, [folder], DockerSettings())
    assert refused is not None
    assert "docker.allowed_mounts" in str(refused.hint)
    assert refusal("c", PLAIN, [folder], DockerSettings(allow_unsafe=("mounts",))) is None
    assert refusal("c", PLAIN, [folder], DockerSettings(allowed_mounts=("/",))) is None


def test_folders_are_found_however_they_are_mounted() -> None:
    """Binds, mounts, volumes that are another name for a folder, and those of another container."""
    host = {
        "Binds": ["/a:/a", "named:/b"],
        "Mounts": [
            {"Type": "bind", "Source": "/c", "Target": "/c"},
            {"Type": "volume", "Source": "other", "Target": "/d"},
            {
                "Type": "volume",
                "Target": "/e",
                "VolumeOptions": {"DriverConfig": {"Options": {"type": "none", "o": "bind", "device": "/e"}}},
            },
            {"Type": "tmpfs", "Target": "/f"},
        ],
    }
    options = {"named": {"device": "/b", "o": "bind"}, "other": {}}
    assert list(host_mounts(host, options.__getitem__)) == ["/a", "/b", "/c", "/e"]
    refused = refusal("c", {"VolumesFrom": ["launcher"]}, (), DockerSettings(allowed_mounts=("/",)))
    assert refused is not None
    assert "launcher" in str(refused)


class Engine:
    """An engine with one container, as far as the check asks."""

    def __init__(self, host: dict[str, Any]) -> None:
        self.host = host
        self.removed: list[str] = []
        self.made: list[str] = []

    def inspect_container(self, name: str) -> dict[str, Any]:
        if name != "c":
            raise NotFound("no such container")
        return {"Id": ID, "Name": "/c", "HostConfig": self.host}

    def inspect_volume(self, name: str) -> dict[str, Any]:
        return {"Name": name, "Options": {"device": "/etc"} if name == "models" else None}

    def remove_container(self, which: str, **_: bool) -> None:
        self.removed.append(which)

    def inspect_image(self, _: str) -> dict[str, Any]:
        return {"Config": {}}

    def info(self) -> dict[str, Any]:
        return {}

    def create_container_from_config(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        self.made.append(name)
        return {"Id": ID}


def test_what_compose_made_and_must_not_be_is_removed_again() -> None:
    """A volume that stands for /etc is no way around the list."""
    engine: Any = Engine(PLAIN)
    with pytest.raises(StartRefused, match=r"it gets /etc of the host"):
        check_created(engine, "c", DockerSettings())
    assert engine.removed == [ID]
    engine = Engine({**PLAIN, "Binds": []})
    assert check_created(engine, "c", DockerSettings())
    assert not check_created(engine, "another", DockerSettings())
    assert engine.removed == []


@pytest.mark.parametrize("reach", [Reach("127.0.0.1", True), Reach("127.0.0.1", False, {"llm": "n1"})])
@pytest.mark.parametrize("engine_kind", ["vllm", "generic"])
def test_what_is_created_for_an_image_is_harmless(reach: Reach, engine_kind: Any) -> None:
    """No danger, nothing to gain by setuid programs, and no port that others than this machine reach."""
    spec = BackendSpec("chat", image="i", engine=engine_kind, port=8002, container="c", gpus=("0",))
    body = container_body(spec, {}, backend_key="k", reach=reach, nvidia=True)
    host = body["HostConfig"]
    assert list(dangers(host)) == []
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    published = [each["HostIp"] for bound in host.get("PortBindings", {}).values() for each in bound]
    assert published == ([] if reach.networks else ["127.0.0.1"])
    engine: Any = Engine(PLAIN)
    assert create_container(engine, spec, reach, "k", DockerSettings()) == ID


def test_no_container_on_the_hosts_network_unless_it_is_meant() -> None:
    """A launcher on a network called host makes no models there."""
    spec = BackendSpec("chat", image="i", port=8002, container="c")
    reach = Reach("127.0.0.1", True, {"host": "n"})
    engine: Any = Engine(PLAIN)
    with pytest.raises(StartRefused, match="shares the host's network"):
        create_container(engine, spec, reach, None, DockerSettings())
    assert engine.made == []
    assert create_container(engine, spec, reach, None, DockerSettings(allow_unsafe=("host_network",))) == ID


# -- the settings -----------------------------------------------------------------------------------------


def test_the_list_is_written_in_several_ways() -> None:
    """In the file a list, in the environment with commas; what is no absolute path is refused."""
    assert mount_folders(["/srv/llm/", "/data/../data/x", "/srv/llm"]) == ("/srv/llm", "/data/x")
    assert mount_folders("/a, /b") == ("/a", "/b")
    assert mount_folders([]) == ()
    assert mount_folders(["C:\\models"]) == ("/c/models",)
    for wrong in (["models"], [1], 1, "models", ["~/x"]):
        with pytest.raises(ValueError, match="absolute paths"):
            mount_folders(wrong)
    assert unsafe_names(["devices", "devices"]) == ("devices",)
    for wrong in (["everything"], "privileged", [1]):
        with pytest.raises(ValueError, match="a list of privileged"):
            unsafe_names(wrong)


def test_the_folder_of_models_is_allowed_by_itself() -> None:
    """That of docker-compose.yml, which .env may set."""
    assert supposed_mounts({}) == ("/srv/llm",)
    assert supposed_mounts({"LLM_ROOT": "/data/llm/"}) == ("/data/llm",)
    assert supposed_mounts({"LLM_ROOT": "here"}) == ()


@given(st.text(alphabet="/.ab", max_size=20))
def test_no_detour_leads_out(path: str) -> None:
    """What is inside by its name is inside when all detours are taken."""
    folder = host_folder("/" + path)
    assert folder is not None
    assert ".." not in folder.split("/")
    assert covered(folder, ("/a",)) == (folder.split("/")[1:2] == ["a"])


def test_sources_of_volumes() -> None:
    """The host's part of a volume, if it has one; a relative one is in no list."""
    assert source_of("/a/../b:/x:ro") == "/b"
    assert source_of("C:\\models:/x") == "/c/models"
    assert source_of("cache:/x") is None
    assert source_of("/x") is None
    assert source_of("./a:/x") == "./a"
    assert source_of("~/a:/x") == "~/a"


FILE = "backends: {chat: {image: i, volumes: ['/etc:/x']}}"


def test_the_file_is_the_operators_word() -> None:
    """Its own volumes are taken as they are; those of variables and labels stay in the list."""
    assert read_sources(Sources({}, FILE)).backends["chat"].volumes == ("/etc:/x",)
    outside = {"MAP__chat__image": "i", "MAP__chat__volumes": "/etc:/x"}
    with pytest.raises(ConfigError, match=r"volumes has /etc, which is not in docker\.allowed_mounts"):
        read_sources(Sources(outside))
    inside = {**outside, "LLMPROXY_ALLOWED_MOUNTS": "/srv,/etc"}
    assert read_sources(Sources(inside)).docker.allowed_mounts == ("/srv", "/etc")
    over = {"MAP__chat__volumes": "/root:/x"}
    with pytest.raises(ConfigError, match="environment MAP__chat__volumes"):
        read_sources(Sources(over, FILE))
    allowed = "docker: {allow_unsafe: [mounts]}\n" + FILE
    assert read_sources(Sources(over, allowed)).backends["chat"].volumes == ("/root:/x",)


def test_only_the_file_allows_what_is_unsafe() -> None:
    """No variable does."""
    names = {"LLMPROXY_ALLOW_UNSAFE": "privileged", "DOCKER_ALLOW_UNSAFE": "privileged"}
    assert read_sources(Sources(names)).docker.allow_unsafe == ()
    written = read_sources(Sources({}, "docker: {allow_unsafe: [privileged], allowed_mounts: [/a]}")).docker
    assert (written.allow_unsafe, written.allowed_mounts) == (("privileged",), ("/a",))


# -- whose container it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours"),
    [("coder", True), (ID[:12], True), (ID, True), ("beef", False), ("beefcafe", False), ("other", False)],
)
def test_a_name_is_no_beginning_of_an_id(name: str, ours: bool) -> None:
    """A missing container called beef is not somebody else's whose id begins so."""
    assert is_called({"Id": ID, "Name": "/coder"}, name) is ours
