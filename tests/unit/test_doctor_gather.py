"""How the doctor learns its facts, from files, sockets and programs that are made for it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from attrs import evolve
from docker.errors import ImageNotFound, NotFound
from hypothesis import given, strategies

from llmproxy.config.compose import read_compose
from llmproxy.config.model import DockerSettings
from llmproxy.config.resolve import CommandLine
from llmproxy.doctor.doctor_client import Target
from llmproxy.doctor.facts import Container, Folder, Mount, Published, Settings
from llmproxy.doctor.gather import engine as engines
from llmproxy.doctor.gather.commands import Ran, read_text, run
from llmproxy.doctor.gather.engine import gather_engine, read_inspection, read_listed
from llmproxy.doctor.gather.everything import Question, read_requirement, source_path
from llmproxy.doctor.gather.host import (
    gather_clock,
    gather_disk,
    gather_folder,
    gather_host,
    is_busy,
    read_mounts,
)
from llmproxy.doctor.gather.nvidia import gather_gpu, read_smi, required_cuda
from llmproxy.doctor.gather.settings import Reading
from llmproxy.doctor.gather.wsl import POWERSHELL, gather_wsl, read_windows, read_wslconfig, wsl_version

GIB = 2**30


class Programs:
    """Programs that answer as they are told to, by the last part of their names."""

    def __init__(self, **answers: Ran) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def __call__(self, command: Sequence[str], timeout: float) -> Ran:
        self.asked.append(list(command))
        name = Path(command[0]).name.partition(".")[0].replace("-", "_")
        return self.answers.get(name, Ran(None, error="it is not installed"))


# -- programs and files --------------------------------------------------------------------------------


def test_programs() -> None:
    """What they write, how they end, and that they are not there."""
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"], 5) == Ran(3, "out", "err")
    assert run(["sh", "-c", "echo $DOCTOR"], 5, {"DOCTOR": "x"}).output == "x"
    assert run(["no-such-program-here"], 5).error == "it is not installed"
    assert run(["sh", "-c", "printf 'a\\0b\\0'"], 5).output == "ab"


def test_programs_that_cannot_be_asked(tmp_path: Path) -> None:
    """One that does not answer in time, and one that the kernel does not run, are told and not waited for."""
    assert run([sys.executable, "-c", "import time; time.sleep(60)"], 0.05).error == (
        "it did not answer within 0.05 s"
    )
    (tmp_path / "odd").write_bytes(b"\x7fELF, but no program")
    (tmp_path / "odd").chmod(0o755)
    ran = run([str(tmp_path / "odd")], 5)
    assert (ran.status, ran.error, ran.well) == (None, "Exec format error", False)


def test_files(tmp_path: Path) -> None:
    """Whatever a file is encoded in, and None for one that is not there."""
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\xff\n")
    assert read_text(tmp_path / "x") == "a�"
    assert read_text(tmp_path / "none") is None


# -- Docker --------------------------------------------------------------------------------------------


@pytest.fixture
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other engine on this machine."""
    monkeypatch.setattr(engines, "_others", lambda host: ())


@pytest.mark.usefixtures("no_others")
def test_sockets(tmp_path: Path) -> None:
    """None, a link to none, something else, and one where nobody listens."""
    place = tmp_path / "docker.sock"
    settings = DockerSettings(f"unix://{place}")
    assert gather_engine(settings).state == "absent"
    os.symlink(tmp_path / "gone", place)
    assert gather_engine(settings).state == "dangling"
    place.unlink()
    place.mkdir()
    assert gather_engine(settings).state == "no_socket"
    place.rmdir()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(place))
        found = gather_engine(settings)
        assert (found.state, found.group, found.user) == ("refused", os.stat(place).st_gid, os.geteuid())


@pytest.mark.usefixtures("no_others")
def test_an_engine_across_the_network() -> None:
    """Nobody listens there; a DOCKER_HOST that is none is an error with its reason."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        found = gather_engine(DockerSettings(f"tcp://127.0.0.1:{free.getsockname()[1]}"), timeout=1)
    assert (found.state, found.local) == ("refused", False)
    found = gather_engine(DockerSettings("nonsense://x"), timeout=1)
    assert found.state == "error"
    assert found.detail


def causes(*errors: Exception) -> Exception:
    """The first of them, each caused by the next."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (causes(OSError("a"), ValueError("b"), PermissionError(13, "c")), "forbidden"),
        (causes(OSError("a"), ConnectionRefusedError(111, "b")), "refused"),
        (causes(OSError("a"), TimeoutError("b")), "silent"),
        (OSError("a"), "error"),
    ],
)
def test_why_an_engine_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, state: str) -> None:
    """Whatever the libraries wrap the cause in."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("llmproxy.runtimes.docker_client.make_client", refuse)
    assert gather_engine(DockerSettings("tcp://127.0.0.1:1")).state == state


@pytest.mark.usefixtures("no_others")
def test_a_socket_below_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be there; that nobody may look is told."""
    real = os.stat

    def closed(path: Any, *words: Any, **more: Any) -> os.stat_result:
        if str(path) == str(tmp_path / "docker.sock"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *words, **more)

    monkeypatch.setattr(os, "stat", closed)
    found = gather_engine(DockerSettings(f"unix://{tmp_path}/docker.sock"))
    assert (found.state, found.detail) == ("forbidden", "a folder above it is closed")


class Docker:
    """An engine with a container and an image; some that it is asked for have gone meanwhile."""

    def __init__(self, time: object) -> None:
        self.time = time
        self.closed = 0

    def version(self) -> dict[str, Any]:
        return {"Version": "28.0", "ApiVersion": "1.48"}

    def info(self) -> dict[str, Any]:
        return {"SystemTime": self.time, "DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}, "odd"]}

    def containers(self, **_: object) -> list[Any]:
        return [LISTED, {"Names": []}, "odd", {**LISTED, "Names": ["/gone"], "Image": "vllm:2"}]

    def inspect_container(self, name: str) -> dict[str, Any]:
        if name == "gone":
            raise NotFound("no such container")
        return {"Config": {"Image": "vllm:1", "User": "7"}}

    def inspect_image(self, image: str) -> dict[str, Any]:
        if image != "vllm:1":
            raise ImageNotFound("no such image")
        return {"Config": {"Env": ["NVIDIA_REQUIRE_CUDA=cuda>=12.4"]}}

    def close(self) -> None:
        self.closed += 1


@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize(
    ("time", "apart"),
    [
        ("2026-01-01T00:00:10.123456789Z", 10.0),
        ("2026-01-01T01:00:10.123456789+01:00", 10.0),
        ("yesterday", None),
        (None, None),
    ],
)
def test_an_engine_that_answers(monkeypatch: pytest.MonkeyPatch, time: object, apart: float | None) -> None:
    """What it tells, and how far its clock is from ours."""
    docker = Docker(time)
    monkeypatch.setattr("llmproxy.runtimes.docker_client.make_client", lambda *_, **__: docker)
    monkeypatch.setattr("llmproxy.doctor.gather.engine.time.time", lambda: 1767225600.0)
    found = gather_engine(DockerSettings("tcp://127.0.0.1:1"))
    assert (found.answers, found.version, found.apart) == (True, "28.0", apart)
    assert sorted(found.containers) == ["coder3b", "gone"]
    assert found.cdi == ("nvidia.com/gpu=0",)
    assert docker.closed == 1


@pytest.mark.usefixtures("no_others")
def test_a_closer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are not there are known not to be; when a container has gone, what was seen is told."""
    docker = Docker(None)
    monkeypatch.setattr("llmproxy.runtimes.docker_client.make_client", lambda *_, **__: docker)
    settings = DockerSettings("tcp://127.0.0.1:1")
    found = gather_engine(settings)
    looked = engines.inspect_backends(settings, found, ["coder3b", "other"], ["vllm:9"])
    assert looked.containers["coder3b"].user == "7"
    assert {name: image.present for name, image in looked.images.items()} == {"vllm:9": False, "vllm:1": True}
    left = engines.inspect_backends(settings, found, ["coder3b", "gone"], ["vllm:9"])
    assert (left.containers["coder3b"].user, left.images) == ("7", {})
    silent = evolve(found, state="silent")
    assert engines.inspect_backends(settings, silent, ["coder3b"], []) is silent


LISTED: dict[str, Any] = {
    "Names": ["/other/link", "/coder3b"],
    "State": "running",
    "Image": "vllm:1",
    "Labels": {"com.docker.compose.service": "coder3b", "com.docker.compose.project": "llm"},
    "Ports": [
        {"IP": "127.0.0.1", "PublicPort": 8001, "PrivatePort": 8001, "Type": "tcp"},
        {"PrivatePort": 9, "Type": "tcp"},
        {"PublicPort": 53, "PrivatePort": 53, "Type": "udp"},
    ],
}


def test_a_container_in_the_list() -> None:
    """Its own name, not a link's; its published TCP ports."""
    found = read_listed(LISTED)
    wanted = Container(
        "coder3b", "running", "vllm:1", "coder3b", "llm", (Published("127.0.0.1", 8001, 8001),)
    )
    assert found == wanted
    assert read_listed({"Names": ["/x"]}) == Container("x")


def test_a_container_inspected() -> None:
    """Mounts, restart policy, user, GPU and command; the ports that it will have when it does not run."""
    info = {
        "Config": {
            "Image": "vllm:1",
            "User": "1000",
            "Cmd": ["serve"],
            "Entrypoint": ["vllm"],
            "Env": ["A=b"],
        },
        "HostConfig": {
            "RestartPolicy": {"Name": "always"},
            "PortBindings": {
                "8001/tcp": [{"HostIp": "", "HostPort": "9001"}, {"HostPort": ""}],
                "1/udp": None,
            },
            "DeviceRequests": [{"Driver": "nvidia", "Count": -1}],
        },
        "Mounts": [
            {"Type": "bind", "Source": "/srv", "Destination": "/x", "RW": False},
            {
                "Type": "volume",
                "Name": "v",
                "Source": "/var/lib/docker/volumes/v/_data",
                "Destination": "/y",
                "RW": True,
            },
        ],
    }
    found = read_inspection(info, Container("coder3b", "exited"))
    assert found.published == (Published("0.0.0.0", 9001, 8001),)
    assert found.mounts == (Mount("/srv", "/x", True), Mount("v", "/y", False, False))
    assert (found.restart, found.user, found.gpu, found.args) == ("always", "1000", True, ("vllm", "serve"))
    bare = read_inspection({}, read_listed(LISTED))
    assert (bare.restart, bare.gpu, bare.mounts) == ("no", None, ())
    assert bare.published == (Published("127.0.0.1", 8001, 8001),)


def test_the_volumes_of_a_service() -> None:
    """Compose's long form is told in the short one."""
    text = """
services:
  one:
    volumes:
      - /srv:/x:ro
      - {type: bind, source: ./m, target: /m, read_only: true}
      - {type: volume, source: v, target: /v}
      - {type: tmpfs, target: /t}
"""
    (service,) = read_compose(text, "c.yml", {})
    assert service.volumes == ("/srv:/x:ro", "./m:/m:ro", "v:/v", "/t")


# -- GPU -----------------------------------------------------------------------------------------------


def test_nvidia_smi() -> None:
    """Driver and GPUs; anything else is none."""
    told = "570.124.06, 24564, NVIDIA GeForce RTX 4090, with a comma\n570.124.06, 8192, B\n"
    driver, gpus = read_smi(told)
    assert driver == "570.124.06"
    assert gpus == (("NVIDIA GeForce RTX 4090, with a comma", 24564 * 2**20), ("B", 8 * GIB))
    assert read_smi("NVIDIA-SMI has failed because it couldn't communicate") == (None, ())


@given(strategies.text())
def test_any_text_may_come_from_programs(text: str) -> None:
    """Nothing that a program says breaks the reading of it."""
    read_smi(text)
    read_windows(text, 0.0, 1.0)
    read_wslconfig(text)
    read_mounts(text)
    wsl_version(text)
    read_requirement(text)
    required_cuda([text, f"NVIDIA_REQUIRE_CUDA={text}"])


@given(strategies.recursive(strategies.none() | strategies.text() | strategies.floats(), strategies.lists))
def test_any_value_may_come_from_powershell(value: Any) -> None:
    """Of whatever type its values are."""
    read_windows(json.dumps({"now": value, "networks": value, "rules": value, "hyperv": value}), 0.0, 1.0)


def test_no_driver() -> None:
    """Without devices and nvidia-smi nothing is asked; with a device nvidia-smi is, where NVML fails."""
    programs = Programs()
    found = gather_gpu(programs, ())
    assert (found.gpus, found.devices) == ((), ())
    assert found.error
    found = gather_gpu(Programs(nvidia_smi=Ran(0, "570.1, 1024, X")), ("/dev/null", "/dev/no-such"))
    assert found.devices == ("/dev/null",)
    assert (found.driver, found.gpus) == ("570.1", (("X", GIB),))
    found = gather_gpu(Programs(nvidia_smi=Ran(9, "", "no devices")), ("/dev/null",))
    assert "no devices" in str(found.error)


class Nvml(ModuleType):
    """NVIDIA's library, with one GPU, or with an error where it is asked for something."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("pynvml")
        self.broken, self.ended = broken, False

    def _answer(self, name: str, value: Any) -> Any:
        if name == self.broken:
            raise RuntimeError(f"{name} is broken")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlShutdown(self) -> None:
        self.ended = True

    def nvmlDeviceGetCount(self) -> int:
        return int(self._answer("count", 1))

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"RTX"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=self._answer("memory", 8 * GIB))

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"


def test_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, memory, driver and CUDA; where it is broken, wherever that is, nvidia-smi is asked."""
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found = gather_gpu(Programs(), ("/dev/null",))
    assert (found.driver, found.cuda, found.gpus) == ("570.1", (12, 8), (("RTX", 8 * GIB),))
    assert library.ended
    for broken in ("init", "count", "memory"):
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(broken))
        found = gather_gpu(Programs(), ("/dev/null",))
        assert found.gpus == ()
        assert f"{broken} is broken" in str(found.error)


def test_the_cuda_that_an_image_asks_for() -> None:
    """The first alternative is the version."""
    variable = "NVIDIA_REQUIRE_CUDA=cuda>=12.8 brand=unknown,driver>=470,driver<471"
    assert required_cuda(["PATH=/bin", variable]) == (12, 8)
    assert required_cuda(["NVIDIA_REQUIRE_CUDA=driver>=470", "X"]) is None


# -- WSL -----------------------------------------------------------------------------------------------


@pytest.fixture
def wsl(tmp_path: Path) -> Path:
    """The files of a WSL 2 with Docker Desktop, mirrored by .wslconfig."""
    for path in ("proc/sys/kernel", "run/systemd/system", "mnt/wsl/docker-desktop", "mnt/c/Users/Me"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.6.87.2-microsoft-standard-WSL2\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16384000 kB\nMemFree: 5 kB\n")
    (tmp_path / "mnt/c/Users/Me/.wslconfig").write_text(
        "\ufeff[wsl2]\r\nMemory=16GB # half\r\nnetworkingMode=mirrored\r\n"
    )
    program = tmp_path / POWERSHELL
    program.parent.mkdir(parents=True)
    program.touch()
    return tmp_path


def test_wsl(wsl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, network, settings, systemd, Docker Desktop and Windows, all from within."""
    monkeypatch.setenv("WSL_DISTRO_NAME", "Ubuntu")
    told = json.dumps(
        {"now": time.time() * 1000, "networks": "Private", "rules": ["Domain, Private"], "hyperv": "Block"}
    )
    programs = Programs(wslinfo=Ran(0, "mirrored"), powershell=Ran(0, told))
    host = gather_host(8123, programs, wsl)
    found = host.wsl
    assert host.memory == 16384000 * 1024
    assert found is not None
    assert found.windows is not None
    assert (found.version, found.distribution, found.networking, found.systemd) == (
        2,
        "Ubuntu",
        "mirrored",
        True,
    )
    assert found.config == {"memory": "16GB", "networkingmode": "mirrored"}
    assert found.desktop == "running"
    assert found.windows.networks == ("Private",)
    assert found.windows.allowed == ("Domain", "Private")
    assert found.windows.hyperv == "Block"
    (asked,) = [command for command in programs.asked if command[0].endswith("powershell.exe")]
    question = base64.b64decode(asked[-1]).decode("utf-16-le")
    assert "'8123'" in question
    assert "PORT" not in question
    assert not any(word in question for word in ("Set-", "New-", "Remove-", "Enable-", "Disable-"))


def test_wsl_with_little(wsl: Path) -> None:
    """Without interop, wslinfo and systemd; Docker Desktop is installed and does not run."""
    (wsl / POWERSHELL).unlink()
    (wsl / "run/systemd/system").rmdir()
    (wsl / "mnt/wsl/docker-desktop").rmdir()
    (wsl / "mnt/c/Program Files/Docker/Docker").mkdir(parents=True)
    found = gather_wsl(8000, Programs(wslinfo=Ran(1, "", "unknown option")), wsl)
    assert found is not None
    assert found.windows is not None
    assert (found.networking, found.systemd, found.desktop) == (None, False, "installed")
    assert "interop" in str(found.windows.error)


def test_several_users_of_windows(wsl: Path) -> None:
    """Whose .wslconfig counts is asked of Windows."""
    (wsl / "mnt/c/Users/You").mkdir()
    (wsl / "mnt/c/Users/You/.wslconfig").write_text("[wsl2]\nmemory=4GB\n")
    found = gather_wsl(8000, Programs(cmd=Ran(0, "YOU")), wsl)
    assert found is not None
    assert found.config == {"memory": "4GB"}
    found = gather_wsl(8000, Programs(), wsl)
    assert found is not None
    assert found.config is None


def test_elsewhere_is_no_wsl(wsl: Path) -> None:
    """Neither on Linux nor in a container, whatever its kernel is called."""
    (wsl / ".dockerenv").touch()
    assert not gather_host(8000, Programs(), wsl).contained
    (wsl / "proc/self").mkdir()
    mount = f"/var/lib/docker/containers/{'0a' * 32}/hostname /etc/hostname rw - ext4 /dev/sda rw"
    (wsl / "proc/self/mountinfo").write_text(f"9 8 8:1 {mount}\n")
    host = gather_host(8000, Programs(), wsl)
    assert (host.contained, host.wsl) == (True, None)
    (wsl / "proc/sys/kernel/osrelease").write_text("6.8.0-generic")
    assert gather_wsl(8000, Programs(), wsl) is None


def test_what_windows_tells() -> None:
    """Its clock was read between the question and the answer; what it could not read is not known."""
    for now, apart in ((100_500, 0.0), (160_000, 59.0), (40_000, -60.0)):
        assert read_windows(json.dumps({"now": now}), 100.0, 101.0).apart == apart
    found = read_windows('noise {"now":1,"rules":[],"networks":["Public"]}', 0.0, 1.0)
    assert (found.allowed, found.networks, found.hyperv) == ((), ("Public",), None)
    assert read_windows("{}", 0.0, 1.0).allowed is None
    assert read_windows("access denied", 0.0, 1.0).error
    assert read_windows("[1]", 0.0, 1.0).error


def test_wslconfig() -> None:
    """Names in any case, newer settings in a section of their own, and a broken file."""
    text = "[experimental]\nnetworkingMode=nat\n[WSL2]\nNetworkingMode = mirrored\nkernel\n[x]\nmemory=1GB"
    assert read_wslconfig(text) == {"networkingmode": "mirrored", "kernel": ""}
    assert read_wslconfig("memory=1GB") == {}


# -- this machine --------------------------------------------------------------------------------------


def test_folders(tmp_path: Path) -> None:
    """What is there, what is not, and the file system below it by the innermost mount."""
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        f"2 1 0:9 / {tmp_path.resolve()}/a\\040b rw,relatime shared:1 - 9p C: rw",
        "broken",
    ]
    text = "\n".join(lines)
    (tmp_path / "a b" / "c").mkdir(parents=True)
    found = gather_folder(str(tmp_path / "a b" / "c"), text)
    assert (found.kind, found.filesystem, found.writable, found.owner) == ("folder", "9p", True, os.geteuid())
    assert gather_folder(str(tmp_path / "a bc"), text).filesystem == "ext4"
    assert gather_folder(str(tmp_path / "none"), text).kind == "missing"
    (tmp_path / "file").touch()
    assert gather_folder(str(tmp_path / "file"), text).kind == "file"
    assert gather_folder(str(tmp_path / "file" / "x"), text).kind == "missing"
    assert gather_folder(f"{tmp_path}/\0", text).kind == "hidden"


def test_disks(tmp_path: Path) -> None:
    """A folder that is yet to be made is on the disk of the one above it."""
    found = gather_disk("state", str(tmp_path / "none" / "deeper"))
    told = os.statvfs(tmp_path)
    assert found is not None
    assert (found.what, found.total) == ("state", told.f_blocks * told.f_frsize)
    assert 0 < found.free <= found.total


def test_what_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be looked at is hidden, and a disk that cannot be is none."""

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "statvfs", refuse)
    assert gather_folder(str(tmp_path), "1 0 8:1 / / rw - ext4 /dev/sda rw") == Folder(
        str(tmp_path), "hidden", "ext4"
    )
    assert gather_disk("state", str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("MemFree: 1 kB\nMemTotal:       2048 kB\n", 2048 * 1024),
        ("MemTotal:\n", None),
        ("MemTotal: much\n", None),
        ("", None),
    ],
)
def test_the_memory_of_the_machine(tmp_path: Path, text: str, memory: int | None) -> None:
    """As the kernel tells it; None where it does not."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(text)
    assert gather_host(8000, Programs(), tmp_path).memory == memory


def test_a_machine_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no address that others could use."""

    class Cut(socket.socket):
        def connect(self, *_: object) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("llmproxy.doctor.gather.host.socket.socket", Cut)
    assert gather_host(8000, Programs(), tmp_path).lan is None


def test_ports() -> None:
    """Busy while somebody listens; a host that is none is not."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        assert is_busy("127.0.0.1", port)
        assert is_busy("0.0.0.0", port)
    assert not is_busy("127.0.0.1", port)
    assert not is_busy("203.0.113.9", port)


def test_the_clock(tmp_path: Path) -> None:
    """Now, and when llmproxy was installed."""
    (tmp_path / "x").touch()
    os.utime(tmp_path / "x", (5, 5))
    found = gather_clock(Programs(timedatectl=Ran(0, "no")), lambda: 7.0, str(tmp_path / "x"))
    assert (found.now, found.built) == (7.0, 5.0)
    assert gather_clock(Programs(), lambda: 7.0, str(tmp_path / "none")).built is None


@pytest.mark.parametrize(
    ("ran", "synchronized"),
    [(Ran(0, "yes"), True), (Ran(0, "no"), False), (Ran(0, "maybe"), None), (Ran(1, "yes"), None)],
)
def test_whether_the_clock_is_set_by_others(
    monkeypatch: pytest.MonkeyPatch, ran: Ran, synchronized: bool | None
) -> None:
    """As timedatectl says, where it is there and knows."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert gather_clock(Programs(timedatectl=ran), lambda: 7.0).synchronized is synchronized
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert gather_clock(Programs(timedatectl=ran), lambda: 7.0).synchronized is None


# -- settings ------------------------------------------------------------------------------------------


COMPOSE = """
services:
  coder3b:
    container_name: coder3b
    image: vllm:1
    labels: {llmproxy.route: coder, llmproxy.port: "8001"}
"""


def read(
    folder: Path, shell: dict[str, str], written: dict[str, str] | None = None, **options: Any
) -> tuple[Reading, Settings]:
    """What is read in that folder."""
    reading = Reading({"HOME": str(folder), **shell}, written or {}, CommandLine(**options))
    reading.begin()
    return reading, reading.finish([])


def test_the_compose_file_that_make_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-compose.yml of this folder, unless another is configured; none with --demo."""
    monkeypatch.chdir(tmp_path)
    reading, settings = read(tmp_path, {})
    assert (reading.compose.file, settings.error) == (None, None)
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    reading, settings = read(tmp_path, {})
    assert settings.config is not None
    assert (reading.compose.by_default, [*settings.config.backends]) == (True, ["coder"])
    (tmp_path / "other.yml").write_text(COMPOSE.replace("route: coder", "route: other"))
    reading, settings = read(tmp_path, {"COMPOSE_FILE": "other.yml"})
    assert settings.config is not None
    assert (reading.compose.by_default, [*settings.config.backends]) == (False, ["other"])
    reading, settings = read(tmp_path, {}, demo=True)
    assert (reading.compose.file, settings.demo) == (None, True)


@pytest.mark.parametrize("text", [None, "a: [", "x: 1", "\xff"])
def test_a_compose_file_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """It is told by itself, and what else is configured is still read."""
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "c.yml").write_bytes(text.encode("latin-1"))
    (tmp_path / "llmproxy.yaml").write_text("backends: {far: {runtime: url, url: 'http://x'}}")
    reading, settings = read(tmp_path, {"COMPOSE_FILE": "c.yml"})
    assert str(reading.compose.error).startswith("c.yml: ")
    assert settings.config is not None
    assert [*settings.config.backends] == ["far"]


def test_settings_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is kept, and how Docker is reached is still known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llmproxy.yaml").write_text("nonsense: 1")
    reading, settings = read(tmp_path, {"DOCKER_HOST": "unix:///x"})
    assert settings.config is None
    assert "nonsense" in str(settings.error)
    assert reading.docker.host == "unix:///x"


def test_variables_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that was opened before .env was changed; what it leaves open does not differ."""
    monkeypatch.chdir(tmp_path)
    _, settings = read(
        tmp_path, {"A": "old", "B": "same ", "C": ""}, {"A": "new", "B": "same", "C": "x", "D": "y"}
    )
    assert settings.differing == ("A",)


def test_programs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up in PATH, a path in the folder that it is run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    text = "backends:\n" + "".join(
        f"  {name}: {{runtime: process, command: [{program}], cwd: {tmp_path}}}\n"
        for name, program in (("a", "./run"), ("b", "./none"), ("c", "sh"), ("d", "no-such-program"))
    )
    (tmp_path / "llmproxy.yaml").write_text(text)
    _, settings = read(tmp_path, {})
    assert settings.missing_commands == {"b": "./none", "d": "no-such-program"}


def test_where_mounted_folders_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative ones are meant from the compose file's folder."""
    monkeypatch.setenv("HOME", "/home/me")
    assert source_path("/srv/x/", "/etc/c.yml") == "/srv/x"
    assert source_path("./x", "/etc/c.yml") == "/etc/x"
    assert source_path("~/x", "/etc/c.yml") == "/home/me/x"


def test_secrets_do_not_show_in_the_question() -> None:
    """Not even when it is printed."""
    question = Question(
        Target(False, "h", 1, ""), "sesame", {"VLLM_API_KEY": "sesame"}, {"A_TOKEN": "sesame"}
    )
    assert "sesame" not in repr(question)
