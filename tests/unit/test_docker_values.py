"""What the Docker runtime reads and says, with no engine."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.gpus import DeviceRequest
from llmproxy.runtimes.docker_create import container_body, start_hint
from llmproxy.runtimes.docker_facts import read_container, read_image, read_server
from llmproxy.runtimes.docker_host import docker_host, host_address
from llmproxy.runtimes.docker_reach import Reach, addresses, instance_port, own_container_id
from llmproxy.runtimes.docker_state import (
    Event,
    container_name,
    nanoseconds,
    read_event,
    read_snapshot,
    spec_hash,
)
from llmproxy.runtimes.interface import Address, Exit

ID = "4f" * 32
SPEC = BackendSpec("chat", image="vllm/vllm-openai:latest", args=("--model", "m"), port=8002)
LOCAL = Reach("127.0.0.1", True)


def inspected(**changes: Any) -> dict[str, Any]:
    """An answer of the engine, as 20.10 gives it, with changes at the top."""
    state = {
        "Status": "running",
        "Running": True,
        "StartedAt": "2026-11-23T12:00:00.000000001Z",
        "ExitCode": 0,
    }
    network = {"IPAddress": "172.18.0.3", "NetworkID": "n1", "Gateway": "172.18.0.1"}
    settings = {"Networks": {"models": network}, "Ports": {}}
    return {
        "Id": ID,
        "Name": "/chat",
        "State": state,
        "Config": {"Env": ["A=b=c"], "Cmd": ["--port", "8001"], "Entrypoint": ["vllm", "serve"]},
        "HostConfig": {"NetworkMode": "models"},
        "NetworkSettings": settings,
        **changes,
    }


def test_nanoseconds() -> None:
    """A time keeps all nine digits and its offset; the zero of Go's time is no time."""
    assert nanoseconds("1970-01-01T00:00:01Z") == 1_000_000_000
    assert nanoseconds("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert nanoseconds("1970-01-01T00:00:00.000000001Z") == 1
    assert nanoseconds("1970-01-01T01:00:00+01:00") == 0
    assert nanoseconds("0001-01-01T00:00:00Z") == 0
    assert nanoseconds("") == nanoseconds(None) == nanoseconds("soon") == 0


@given(st.text())
def test_nanoseconds_of_anything(stamp: str) -> None:
    """Whatever stands there, it is read or it is no time."""
    assert nanoseconds(stamp) >= 0


def test_snapshot() -> None:
    """A container's run is named by its id and its start."""
    snapshot = read_snapshot(inspected())
    assert snapshot.run == f"{ID}:2026-11-23T12:00:00.000000001Z"
    assert snapshot.name == "chat"
    assert snapshot.serving
    assert snapshot.stop_signal == "SIGTERM"


@pytest.mark.parametrize(
    ("state", "serving", "alive"),
    [
        ({"Status": "running", "Running": True}, True, True),
        ({"Status": "paused", "Running": True, "Paused": True}, False, True),
        ({"Status": "restarting", "Running": True, "Restarting": True}, False, True),
        ({"Status": "created"}, False, False),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, False, False),
        ({"Status": "dead"}, False, False),
        ({"Status": "removing"}, False, False),
    ],
)
def test_states(state: dict[str, Any], serving: bool, alive: bool) -> None:
    """Only a running container serves; a paused and a restarting one still have to be stopped."""
    snapshot = read_snapshot(inspected(State=state))
    assert (snapshot.serving, snapshot.alive) == (serving, alive)
    assert snapshot.exit == Exit(state.get("ExitCode"), bool(state.get("OOMKilled")))


def test_facts() -> None:
    """The command line is entrypoint and command; a value may hold an equals sign."""
    facts = read_container(inspected())
    assert (facts.args, facts.environment) == (("vllm", "serve", "--port", "8001"), {"A": "b=c"})
    assert read_server({"Cmd": ["x"], "Entrypoint": None}, ("y",)) == (("y",), {})


def request(**fields: Any) -> dict[str, Any]:
    """As Docker tells it of ``--gpus``."""
    return {
        "Driver": "",
        "Count": 0,
        "DeviceIDs": None,
        "Capabilities": [["gpu"]],
        "Options": {},
        **fields,
    }


@pytest.mark.parametrize(
    ("host", "devices"),
    [
        ({"DeviceRequests": [request(Count=-1)]}, DeviceRequest(count=-1)),
        ({"DeviceRequests": [request(Count=2)]}, DeviceRequest(count=2)),
        ({"DeviceRequests": [request(DeviceIDs=["1", "3"])]}, DeviceRequest(("1", "3"))),
        ({"DeviceRequests": [request(Driver="nvidia", DeviceIDs=["GPU-5"])]}, DeviceRequest(("GPU-5",))),
        (
            {"DeviceRequests": [request(Driver="cdi", Capabilities=None, DeviceIDs=["nvidia.com/gpu=1"])]},
            DeviceRequest(("1",)),
        ),
        (
            {"DeviceRequests": [request(Driver="cdi", DeviceIDs=["nvidia.com/gpu=all"])]},
            DeviceRequest((), -1),
        ),
        ({"DeviceRequests": [request()]}, DeviceRequest()),
        # Somebody else's devices, and what may let a GPU in by another door: it is not known.
        ({"DeviceRequests": [request(Driver="tpu", Capabilities=[["tpu"]])], "Runtime": "runc"}, None),
        ({"Devices": [{"PathOnHost": "/dev/dxg"}], "Runtime": "runc"}, None),
        ({"Privileged": True, "Runtime": "runc"}, None),
        ({"DeviceRequests": None, "Runtime": "nvidia"}, None),
        ({}, None),
        # Nothing was asked for, and nothing more is given.
        ({"DeviceRequests": None, "Devices": [], "Runtime": "runc"}, DeviceRequest()),
    ],
)
def test_devices(host: dict[str, Any], devices: DeviceRequest | None) -> None:
    """The GPUs of a container are those that it was created with."""
    assert read_container(inspected(HostConfig=host)).devices == devices


def test_fingerprint() -> None:
    """Another image, command or environment is another configuration; another run and place is not."""
    first = read_container(inspected(Image="sha256:1"))
    assert len(first.fingerprint) == 16
    again = inspected(Image="sha256:1", State={"Status": "exited"}, Id="0" * 64)
    again["NetworkSettings"]["Ports"] = {"8001/tcp": [{"HostIp": "", "HostPort": "1"}]}
    assert read_container(again).fingerprint == first.fingerprint
    changed: list[dict[str, Any]] = [
        {"Cmd": ["--port", "1"]},
        {"Env": ["A=b"]},
        {"Env": []},
        {"Entrypoint": ["x"]},
    ]
    names = {
        read_container(inspected(Image="sha256:1", Config={**inspected()["Config"], **change})).fingerprint
        for change in changed
    }
    other = read_container(inspected(Image="sha256:2")).fingerprint
    assert len({first.fingerprint, other, *names}) == 6


def test_a_container_to_be_is_the_one_that_comes() -> None:
    """What is read of a container before llmproxy creates it has the fingerprint of the container."""
    image = {"Id": "sha256:1", "Config": {"Env": ["A=b"], "Entrypoint": ["vllm", "serve"], "Cmd": ["--help"]}}
    planned = read_image(evolve(SPEC, environment={"C": "d"}, gpus=("1",)), image, "k")
    created = inspected(
        Image="sha256:1",
        Config={
            "Env": ["VLLM_API_KEY=k", "C=d", "A=b"],
            "Entrypoint": ["vllm", "serve"],
            "Cmd": ["--model", "m"],
        },
        HostConfig={"DeviceRequests": [request(DeviceIDs=["1"])]},
    )
    assert planned == read_container(created)
    generic = read_image(evolve(SPEC, engine="generic", gpus=("1",)), image, "k")
    assert (generic.environment, generic.devices) == ({"A": "b"}, None)
    nothing = read_image(evolve(SPEC, image=None), {}, "k")
    assert (nothing.environment, nothing.fingerprint) == ({}, "")


def test_events() -> None:
    """An event carries who, what and when; those of other things are not ours."""
    raw = {
        "Type": "container",
        "Action": "die",
        "Actor": {"ID": ID, "Attributes": {"name": "chat", "exitCode": "137", "llmproxy.route": "chat"}},
        "timeNano": 17,
    }
    event = read_event(raw)
    assert isinstance(event, Event)
    assert (event.action, event.id, event.name, event.at, event.exit_code) == ("die", ID, "chat", 17, 137)
    rename = read_event(
        {
            "Type": "container",
            "Action": "rename",
            "Actor": {"Attributes": {"name": "b", "oldName": "/a"}},
            "time": 1,
        }
    )
    assert rename is not None
    assert (rename.old_name, rename.name, rename.at) == ("a", "b", 1_000_000_000)
    health = read_event({"Type": "container", "Action": "health_status: healthy", "Actor": {"ID": ID}})
    assert health is not None
    assert health.action == "health_status"
    assert read_event({"Type": "image", "Action": "pull"}) is None


def test_names() -> None:
    """A container is called as configured, else by its route."""
    assert container_name(BackendSpec("a", container="x")) == "x"
    assert container_name(BackendSpec("a")) == "a"
    assert container_name(BackendSpec("a", image="i")) == "llmproxy-a"


def test_hash() -> None:
    """Another image, argument, environment, volume, port, GPU or key asks for another container; another idle
    time does not."""
    first = spec_hash(SPEC, "k")
    assert spec_hash(evolve(SPEC, idle=1.0, health="/x"), "k") == first
    others = [
        spec_hash(evolve(SPEC, **change), "k")
        for change in (
            {"image": "i"},
            {"args": ()},
            {"environment": {"A": "b"}},
            {"volumes": ("/a:/b",)},
            {"port": 1},
            {"gpus": ("1",)},
        )
    ]
    assert len({first, spec_hash(SPEC, "other"), *others}) == len(others) + 2


def test_own_container() -> None:
    """Our own id is read from the mounts that Docker makes for us, not from others on the host."""
    mine = f"600 577 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw"
    theirs = f"700 30 0:50 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw"
    assert own_container_id(f"{theirs}\n{mine}", "box") == ID
    assert own_container_id(theirs, "box") is None
    assert own_container_id("", "0123456789ab") == "0123456789ab"
    assert own_container_id("", "0123456789aB") is None


def test_shared_network_first() -> None:
    """In a container, the address on a shared network comes first and the bridge is not tried."""
    reach = Reach("172.18.0.1", False, {"models": "n1"})
    ports = {"8002/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9000"}, {"HostIp": "::", "HostPort": "9000"}]}
    info = inspected()
    info["NetworkSettings"]["Ports"] = ports
    found = addresses(SPEC, read_snapshot(info), reach)
    assert found == (Address("172.18.0.3", 8002, "network"), Address("172.18.0.1", 9000, "published"))


def test_network_of_the_same_name() -> None:
    """A network of the same name with another id is not shared."""
    found = addresses(SPEC, read_snapshot(inspected()), Reach("172.18.0.1", False, {"models": "n2"}))
    assert [address.via for address in found] == ["published"]


def test_host_addresses() -> None:
    """On the host, a published port comes before the container's own address."""
    info = inspected()
    info["NetworkSettings"]["Ports"] = {"8002/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9000"}]}
    found = addresses(SPEC, read_snapshot(info), LOCAL)
    assert found == (Address("127.0.0.1", 9000, "published"), Address("172.18.0.3", 8002, "bridge"))


def test_published_on_one_address() -> None:
    """A port published on one address of the host is reached there."""
    info = inspected()
    info["NetworkSettings"]["Ports"] = {"8002/tcp": [{"HostIp": "192.168.1.5", "HostPort": "9000"}]}
    assert addresses(SPEC, read_snapshot(info), LOCAL)[0] == Address("192.168.1.5", 9000, "published")


def test_far_engine() -> None:
    """Bridges of an engine elsewhere are out of reach, its published ports are not."""
    info = inspected()
    info["NetworkSettings"]["Ports"] = {"8002/tcp": [{"HostIp": "", "HostPort": "9000"}]}
    found = addresses(SPEC, read_snapshot(info), Reach("gpu.example", False))
    assert found == (Address("gpu.example", 9000, "published"),)


def test_host_network() -> None:
    """A container on the host's network listens on the host."""
    info = inspected(
        HostConfig={"NetworkMode": "host"}, NetworkSettings={"Networks": {"host": {"IPAddress": ""}}}
    )
    assert addresses(SPEC, read_snapshot(info), LOCAL) == (Address("127.0.0.1", 8002, "published"),)


def test_never_no_address() -> None:
    """One that has ended has an address all the same."""
    info = inspected(NetworkSettings={"Networks": {"models": {"IPAddress": ""}}})
    assert addresses(SPEC, read_snapshot(info), LOCAL) == (Address("127.0.0.1", 8002, "published"),)


def test_port() -> None:
    """The port is the setting, vLLM's --port, the only exposed one, or vLLM's default, in this order."""
    spec = evolve(SPEC, port=None)
    exposed: dict[str, Any] = {"ExposedPorts": {"7000/tcp": {}, "7000/udp": {}}}
    assert instance_port(SPEC, exposed) == 8002
    assert instance_port(spec, {**exposed, "Cmd": ["vllm", "serve", "m", "--port", "8001"]}) == 8001
    assert instance_port(spec, exposed) == 7000
    assert instance_port(spec, {"ExposedPorts": {"1/tcp": {}, "2/tcp": {}}}) == 8000
    assert instance_port(evolve(spec, engine="generic"), {"Cmd": ["x", "--port", "8001"]}) == 8000


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is where the setting says, else the environment; its ports are on that host."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
    assert docker_host(DockerSettings()) == "tcp://far:2375"
    assert docker_host(DockerSettings(host="unix:///x")) == "unix:///x"
    assert host_address("tcp://far:2375") == "far"
    assert host_address("tcp://0.0.0.0:2375") == "127.0.0.1"
    assert host_address("unix:///var/run/docker.sock") == "127.0.0.1"


def test_body_on_the_host() -> None:
    """A created container publishes its port on this machine only, has the key, an init, the host's shared
    memory, and all GPUs where the engine knows them."""
    body = container_body(SPEC, {}, backend_key="k", reach=LOCAL, nvidia=True)
    host = body["HostConfig"]
    assert body["Cmd"] == ["--model", "m"]
    assert body["Env"] == ["VLLM_API_KEY=k"]
    assert host["PortBindings"] == {"8002/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert host["Init"] is True
    assert host["IpcMode"] == "host"
    assert host["DeviceRequests"] == [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    assert body["Labels"]["llmproxy.managed.spec"] == spec_hash(SPEC, "k")
    assert (
        "DeviceRequests"
        not in container_body(SPEC, {}, backend_key="k", reach=LOCAL, nvidia=False)["HostConfig"]
    )


def test_body_in_a_container() -> None:
    """Created from within a container, it joins that one's network and publishes nothing; what is no vLLM
    gets the GPUs that are named."""
    reach = Reach("172.17.0.1", False, {"bridge": "n0", "models": "n1"})
    spec = evolve(SPEC, engine="generic", environment={"VLLM_API_KEY": "own"}, gpus=("1",))
    body = container_body(spec, {}, backend_key="k", reach=reach, nvidia=True)
    assert body["HostConfig"]["NetworkMode"] == "models"
    assert "PortBindings" not in body["HostConfig"]
    assert body["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["1"]
    assert body["Env"] == ["VLLM_API_KEY=own"]
    bare = container_body(evolve(spec, gpus=None), {}, backend_key="k", reach=reach, nvidia=True)
    assert "DeviceRequests" not in bare["HostConfig"]


def test_body_with_gpus() -> None:
    """Named GPUs are asked for by their names, whatever the engine says of itself."""
    body = container_body(evolve(SPEC, gpus=("1",)), {}, backend_key=None, reach=LOCAL, nvidia=False)
    assert body["HostConfig"]["DeviceRequests"] == [
        {"Driver": "", "DeviceIDs": ["1"], "Capabilities": [["gpu"]]}
    ]
    assert body["Env"] == []


@pytest.mark.parametrize(
    "said",
    [
        "No such image: x:latest",
        "driver failed programming: Bind for 0.0.0.0:80 failed: port is already allocated",
        'could not select device driver "" with capabilities: [[gpu]]',
        'exec: "/x": stat /x: no such file or directory: unknown',
        "network 0123 not found",
        "write /x: no space left on device",
    ],
)
def test_hints(said: str) -> None:
    """What an engine usually complains of has a fix."""
    assert start_hint(said)
