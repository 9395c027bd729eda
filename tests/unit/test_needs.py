"""What a backend needs of the machine, and how it is put to sleep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.compose import read_compose
from llmproxy.config.model import BackendSpec
from llmproxy.engines.gpus import MOST, DeviceRequest
from llmproxy.engines.needs import Needs, read_needs
from llmproxy.engines.sleep import (
    Call,
    Freed,
    asleep,
    fell_asleep,
    is_sleeping,
    read_freed,
    sleep_request,
    wake_requests,
    woke,
)
from llmproxy.runtimes.docker_facts import read_service
from llmproxy.runtimes.interface import Facts

DOCKER = BackendSpec("m", container="m")
PROCESS = BackendSpec("m", runtime="process", command=("vllm",))
GIB = 1024**3
ALL = DeviceRequest(count=-1)


def needs(
    flags: str = "",
    environment: dict[str, str] | None = None,
    devices: DeviceRequest | None = None,
    spec: BackendSpec = DOCKER,
) -> Needs:
    """Of ``vllm serve org/m`` with these flags."""
    return read_needs(spec, Facts(("vllm", "serve", "org/m", *flags.split()), environment or {}, devices))


@pytest.mark.parametrize(
    ("flags", "memory", "why"),
    [
        ("", 0.92, "vLLM's default 0.92"),
        ("--gpu-memory-utilization 0.45", 0.45, "--gpu-memory-utilization 0.45"),
        ("--gpu_memory_utilization=0.5", 0.5, "--gpu-memory-utilization 0.5"),
        ("--gpu-memory-util .9", 0.9, "--gpu-memory-utilization 0.9"),
        ("--gpu-memory-utilization 45", 0.92, "vLLM's default 0.92"),
        ("--gpu-memory-utilization-gb 96", 96 * GIB, "--gpu-memory-utilization-gb 96"),
        # About the host's memory.
        ("--swap-space 16 --cpu-offload-gb 10 --kv-offloading-size 8", 0.92, "vLLM's default 0.92"),
        # Checked all the same when it starts.
        ("--kv-cache-memory-bytes 4G --gpu-memory-utilization 0.3", 0.3, "--gpu-memory-utilization 0.3"),
    ],
)
def test_memory(flags: str, memory: float | int, why: str) -> None:
    """The memory is what vLLM wants free when it starts."""
    found = needs(flags)
    assert found == Needs(("0",), memory, (), f"{why}; no GPU is named", found.remarks)
    assert type(found.memory) is type(memory)


@pytest.mark.parametrize(
    ("flags", "environment", "devices", "gpus"),
    [
        ("", {}, None, "0"),
        ("-tp 2", {}, None, "0 1"),
        ("-tp 2", {}, ALL, "0 1"),
        ("", {}, ALL, "0"),
        ("", {}, DeviceRequest(("1",)), "1"),
        ("-tp 2 -pp 2", {}, DeviceRequest(count=4), "0 1 2 3"),
        ("-tp 2", {}, DeviceRequest(("3", "1", "2")), "1 2"),
        ("-tp 2", {}, DeviceRequest(("10", "9")), "9 10"),
        ("", {}, DeviceRequest(("GPU-b", "GPU-a")), "GPU-b"),
        # The request is stronger than what the image says.
        ("", {"NVIDIA_VISIBLE_DEVICES": "all"}, DeviceRequest(("2",)), "2"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "all"}, None, "0"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "1"}, None, "1"),
        ("-tp 2", {"NVIDIA_VISIBLE_DEVICES": "3, 2"}, None, "2 3"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "GPU-fef8"}, None, "GPU-fef8"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "nvidia.com/gpu=1"}, None, "1"),
        # CUDA counts those that the container has.
        ("", {"CUDA_VISIBLE_DEVICES": "1"}, None, "1"),
        ("", {"CUDA_VISIBLE_DEVICES": "1"}, DeviceRequest(("2", "3")), "3"),
        ("-tp 2", {"CUDA_VISIBLE_DEVICES": "2,0"}, DeviceRequest(("4", "5", "6")), "6 4"),
        ("-tp 2", {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, ALL, "0"),
        ("", {"CUDA_VISIBLE_DEVICES": "GPU-8932"}, ALL, "GPU-8932"),
        ("", {"CUDA_VISIBLE_DEVICES": "GPU-89"}, DeviceRequest(("GPU-77", "GPU-8932")), "GPU-8932"),
        ("", {"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "2,3"}, None, "3"),
        # Physical ones.
        ("--device-ids 1", {"CUDA_VISIBLE_DEVICES": "0,1"}, DeviceRequest(("2", "3")), "3"),
        ("-tp 2 --device-ids 2,GPU-5", {}, None, "2 GPU-5"),
        ("-tp 4 -dp 2", {}, DeviceRequest(count=4), "0 1 2 3"),
    ],
)
def test_gpus(flags: str, environment: dict[str, str], devices: DeviceRequest | None, gpus: str) -> None:
    """It uses the first of the GPUs that it sees, as many as it has workers."""
    found = needs(flags, environment, devices)
    assert (found.gpus, found.memory) == (tuple(gpus.split()), 0.92)


@pytest.mark.parametrize(
    ("flags", "environment", "devices", "why"),
    [
        ("--device cpu", {}, ALL, "--device cpu"),
        ("", {"VLLM_TARGET_DEVICE": "cpu"}, ALL, "VLLM_TARGET_DEVICE=cpu"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "void"}, None, "NVIDIA_VISIBLE_DEVICES=void"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "none"}, None, "NVIDIA_VISIBLE_DEVICES=none"),
        ("", {"NVIDIA_VISIBLE_DEVICES": ""}, None, "NVIDIA_VISIBLE_DEVICES="),
        ("", {"CUDA_VISIBLE_DEVICES": "-1"}, ALL, "CUDA_VISIBLE_DEVICES=-1"),
        ("", {"CUDA_VISIBLE_DEVICES": ""}, ALL, "CUDA_VISIBLE_DEVICES="),
        ("", {"CUDA_VISIBLE_DEVICES": "2"}, DeviceRequest(("0",)), "CUDA_VISIBLE_DEVICES=2"),
        ("", {"NVIDIA_VISIBLE_DEVICES": "all"}, DeviceRequest(), "the container asks for no GPU"),
        ("-dp 2 -dpl 0", {}, None, "--data-parallel-size-local 0"),
    ],
)
def test_no_gpu(flags: str, environment: dict[str, str], devices: DeviceRequest | None, why: str) -> None:
    """One that sees no GPU needs nothing of it."""
    assert needs(flags, environment, devices) == Needs(why=why)


@pytest.mark.parametrize(
    ("settings", "gpus", "memory"),
    [
        ({"gpu_memory": 0.3}, "1", 0.3),
        ({"gpu_memory": 14 * GIB}, "1", 14 * GIB),
        ({"gpus": ("2", "3")}, "2 3", 0.45),
        ({"gpus": ("2",), "gpu_memory": 0.3}, "2", 0.3),
        ({"gpus": ()}, "", 0),
        ({"gpu_memory": 0}, "", 0),
        ({"engine": "generic"}, "", 0),
        ({"engine": "generic", "gpu_memory": 0.3}, "1", 0.3),
        ({"engine": "generic", "gpus": ("2", "3"), "gpu_memory": 0.3}, "2 3", 0.3),
    ],
)
def test_settings_win(settings: dict[str, Any], gpus: str, memory: float | int) -> None:
    """What the settings say is not read."""
    spec = evolve(DOCKER, **settings)
    found = needs("--gpu-memory-utilization 0.45", {}, DeviceRequest(("1",)), spec)
    assert (found.gpus, found.memory) == (tuple(gpus.split()), memory)


def test_memory_without_a_gpu() -> None:
    """Memory in the settings is believed of a container that shows no GPU, and of any generic engine."""
    spec = evolve(DOCKER, gpu_memory=0.3)
    assert needs("--device cpu", {}, DeviceRequest(), spec).gpus == ("0",)
    assert needs("", {}, None, evolve(spec, engine="generic")).gpus == ("0",)
    assert needs("", {}, ALL, evolve(spec, engine="generic")).gpus == ("0",)
    assert needs("", {}, DeviceRequest(count=2), evolve(spec, engine="generic")).gpus == ("0", "1")


def test_processes() -> None:
    """A process needs of the GPU what its settings or its flag say, and nothing otherwise.  Docker's variable
    means nothing to it."""
    assert not needs(spec=PROCESS).gpus
    assert not needs("-tp 2", spec=PROCESS).gpus
    seen = {"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "void"}
    found = needs("--gpu-memory-utilization 0.45", seen, spec=PROCESS)
    assert (found.gpus, found.memory) == (("1",), 0.45)
    assert found.why == "--gpu-memory-utilization 0.45; CUDA_VISIBLE_DEVICES=1"
    found = needs("", {}, spec=evolve(PROCESS, gpu_memory=GIB))
    assert (found.gpus, found.memory) == (("0",), GIB)
    own = Facts(("env", "CUDA_VISIBLE_DEVICES=2", "vllm", "serve", "m", "--gpu-memory-utilization=0.4"))
    assert read_needs(PROCESS, own).gpus == ("2",)


def test_a_flag_is_stronger_than_the_lack_of_a_request() -> None:
    """A container that asks for no GPU and is told how much of one to take is believed to have one; not so
    where the GPUs are taken away from it."""
    found = needs("--gpu-memory-utilization 0.45 -tp 2", {"NVIDIA_VISIBLE_DEVICES": "2,3"}, DeviceRequest())
    assert (found.gpus, found.memory) == (("2", "3"), 0.45)
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    assert not needs("--gpu-memory-utilization 0.45", hidden, DeviceRequest()).gpus


def test_elsewhere() -> None:
    """What runs elsewhere needs nothing here."""
    spec = BackendSpec("m", runtime="url", url="http://far:8000")
    assert read_needs(spec, Facts()) == Needs(why="it runs elsewhere")


def test_nothing_known() -> None:
    """Of a container that nothing is known of, vLLM's defaults are assumed."""
    assert read_needs(DOCKER, Facts()) == Needs(("0",), 0.92, (), "vLLM's default 0.92; no GPU is named")


DEV = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.mark.parametrize(
    ("sleep", "flags", "environment", "levels", "remarks"),
    [
        ("auto", "--enable-sleep-mode", DEV, (1, 2), 0),
        ("auto", "--enable-sleep-mode", {}, (), 1),
        ("auto", "--enable-sleep-mode", {"VLLM_SERVER_DEV_MODE": "0"}, (), 1),
        ("auto", "--enable-sleep-mode", {"VLLM_SERVER_DEV_MODE": "true"}, (), 1),
        ("auto", "--enable-sleep-mode --no-enable-sleep-mode", DEV, (), 0),
        ("auto", "", DEV, (), 0),
        ("auto", "", {}, (), 0),
        ("off", "--enable-sleep-mode", DEV, (), 0),
        ("1", "--enable-sleep-mode", DEV, (1,), 0),
        ("2", "--enable-sleep-mode", DEV, (2,), 0),
        ("2", "", {}, (2,), 1),
    ],
)
def test_sleep(
    sleep: Any, flags: str, environment: dict[str, str], levels: tuple[int, ...], remarks: int
) -> None:
    """It can sleep when it has the flag and the paths; what is missing is told to who wants it."""
    for spec in (DOCKER, evolve(PROCESS, gpu_memory=0.5), PROCESS):
        found = needs(flags, environment, None, evolve(spec, sleep=sleep))
        assert (found.sleep, len(found.remarks)) == (levels, remarks)
        assert all("VLLM_SERVER_DEV_MODE=1" in remark for remark in found.remarks)


def test_generic_engines_do_not_sleep() -> None:
    """Whatever stands on their command line."""
    assert needs("--enable-sleep-mode", DEV, None, evolve(DOCKER, engine="generic")).sleep == ()


@pytest.mark.parametrize(
    ("flags", "devices", "word"),
    [
        ("-tp 2", DeviceRequest(("1",)), "asks for 2"),
        ("--kv-cache-memory-bytes 4G", None, "--kv-cache-memory-bytes"),
        ("--config /etc/vllm.yaml", None, "/etc/vllm.yaml"),
        ("--gpu-memory-utilization 0.4", DeviceRequest(), "no GPU"),
    ],
)
def test_remarks(flags: str, devices: DeviceRequest | None, word: str) -> None:
    """What cannot be known or cannot be right is remarked, unless the settings say it."""
    (remark,) = needs(flags, {}, devices).remarks
    assert word in remark.replace("ask for", "asks for")
    settings = evolve(DOCKER, gpus=("0",), gpu_memory=0.5)
    assert needs(flags, {}, devices, settings).remarks == ()


COMPOSE = """
services:
  reserved:
    command: ["org/m", "-tp", "2"]
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}}
  every:
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}
  unsaid:
    deploy: {resources: {reservations: {devices: [{capabilities: [gpu, utility]}]}}}
  named:
    command: org/m --gpu-memory-utilization 0.4
    deploy: {resources: {reservations: {devices: [{device_ids: ["3", '2'], capabilities: [gpu]}]}}}
  filled:
    deploy: {resources: {reservations: {devices: [{device_ids: ["${GPU}"], capabilities: [gpu]}]}}}
  short:
    gpus: all
  long:
    gpus: [{driver: nvidia, count: 2}]
  cdi:
    devices: ["nvidia.com/gpu=1", "/dev/fuse:/dev/fuse"]
  runtime:
    runtime: nvidia
    environment: [NVIDIA_VISIBLE_DEVICES=2]
  other:
    deploy: {resources: {reservations: {devices: [{driver: tpu, count: 1, capabilities: [tpu]}]}}}
  none: {}
  odd:
    gpus: 5
    devices: {a: b}
    deploy: {resources: {reservations: {devices: [x, {count: many, capabilities: gpu, device_ids: 7}]}}}
"""


@pytest.mark.parametrize(
    ("name", "devices", "gpus"),
    [
        ("reserved", DeviceRequest(count=1), "0"),
        ("every", ALL, "0"),
        ("unsaid", ALL, "0"),
        ("named", DeviceRequest(("3", "2")), "2"),
        ("filled", DeviceRequest(("GPU-7",)), "GPU-7"),
        ("short", ALL, "0"),
        ("long", DeviceRequest(count=2), "0"),
        ("cdi", DeviceRequest(("1",)), "1"),
        ("runtime", None, "2"),
        ("other", None, "0"),
        ("none", None, "0"),
        ("odd", DeviceRequest(("7",)), "7"),
    ],
)
def test_compose(name: str, devices: DeviceRequest | None, gpus: str) -> None:
    """The GPUs of a service that has no container yet are read from the compose file."""
    services = {each.name: each for each in read_compose(COMPOSE, "c.yml", {"GPU": "GPU-7"})}
    facts = read_service(services[name])
    assert facts.devices == devices
    assert read_needs(DOCKER, facts).gpus == tuple(gpus.split())
    assert len(facts.fingerprint) == 16


NAMES = st.sampled_from(
    ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "VLLM_TARGET_DEVICE"]
)
WORDS = """-tp -pp -dp -dpl -pcp --device-ids --device --gpu-memory-utilization --gpu-memory-utilization-gb
    --kv-cache-memory-bytes --enable-sleep-mode --config sh -c env vllm serve 1 2 999999999999 0 -1 1e999 nan
    GPU-1 all none , 1,0"""
FLAGS = st.sampled_from(WORDS.split())
SPECS = st.builds(
    BackendSpec,
    route=st.just("m"),
    runtime=st.sampled_from(["docker", "process", "swarm", "url"]),
    engine=st.sampled_from(["vllm", "generic"]),
    gpu_memory=st.none() | st.floats(0, 1) | st.integers(0, 10**12),
    gpus=st.none() | st.lists(st.text()).map(tuple),
    sleep=st.sampled_from(["auto", "off", "1", "2"]),
)
DEVICES = st.none() | st.builds(DeviceRequest, st.lists(st.text()).map(tuple), st.integers())


@given(SPECS, st.lists(FLAGS | st.text()), st.dictionaries(NAMES | st.text(), FLAGS | st.text()), DEVICES)
def test_needs_of_anything(
    spec: BackendSpec, args: list[str], environment: dict[str, str], devices: DeviceRequest | None
) -> None:
    """Whatever stands there, it is read: GPUs and memory come together, and there is a reason."""
    found = read_needs(spec, Facts(tuple(args), environment, devices))
    assert bool(found.gpus) == bool(found.memory)
    assert len(found.gpus) <= max(MOST, len(spec.gpus or ()), len(devices.ids) if devices else 0)
    assert found.why
    assert "\n" not in found.why or "\n" in "".join((*args, *environment.values()))


JSON = st.recursive(st.none() | st.text() | st.integers(), lambda value: st.lists(value))


@given(st.dictionaries(st.sampled_from(["gpus", "deploy", "devices", "runtime"]), JSON))
def test_compose_of_anything(service: dict[str, Any]) -> None:
    """An error in the compose file is for Compose to tell."""
    read_compose(json.dumps({"services": {"m": service}}), "c.yml", {})


def test_requests() -> None:
    """Level 1 is woken by one request; level 2 gets its weights before its cache, and forgets the old one."""
    assert sleep_request(1) == ("POST", "/sleep?level=1&mode=wait", None)
    assert sleep_request(2).path == "/sleep?level=2&mode=wait"
    assert wake_requests(1) == (("POST", "/wake_up", None),)
    assert wake_requests(2) == (
        ("POST", "/wake_up?tags=weights", None),
        ("POST", "/collective_rpc", {"method": "reload_weights"}),
        ("POST", "/wake_up?tags=kv_cache", None),
        ("POST", "/reset_prefix_cache", None),
    )
    assert is_sleeping() == ("GET", "/is_sleeping", None)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"status":"sleeping","level":1}', True),
        (200, b"", True),
        (200, b'{"status":"awake"}', False),
        (400, b'{"error":"level"}', False),
        (404, b'{"detail":"Not Found"}', False),
        (500, b"Internal Server Error", False),
    ],
)
def test_fell_asleep(status: int, body: bytes, expected: bool) -> None:
    """It sleeps when it says so, or says nothing, as earlier versions do."""
    assert fell_asleep(status, body) is expected


@pytest.mark.parametrize(
    ("path", "status", "body", "expected"),
    [
        ("/wake_up", 200, b'{"status":"awake","tags":null}', True),
        ("/wake_up", 200, b"", True),
        ("/wake_up", 200, b'{"status":"sleeping"}', False),
        ("/wake_up", 500, b"", False),
        ("/wake_up?tags=weights", 200, b'{"status":"sleeping","tags":["weights"]}', True),
        ("/wake_up?tags=weights", 404, b"", False),
        ("/collective_rpc", 200, b'{"results":[null]}', True),
        ("/collective_rpc", 200, b"[" * 100_000, True),
        ("/collective_rpc", 500, b"", False),
        ("/wake_up?tags=kv_cache", 200, b'{"status":"awake","tags":["kv_cache"]}', True),
        ("/wake_up?tags=kv_cache", 200, b'{"status":"sleeping","tags":["kv_cache"]}', False),
        ("/reset_prefix_cache", 200, b'{"success":true}', True),
        ("/reset_prefix_cache", 200, b"", True),
        ("/reset_prefix_cache", 200, b'{"success":false}', False),
    ],
)
def test_woke(path: str, status: int, body: bytes, expected: bool) -> None:
    """Each request of a waking says whether it did its part; only the last one of them need say awake."""
    assert woke(Call("POST", path), status, body) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"is_sleeping":true}', True),
        (200, b'{"is_sleeping":false}', False),
        (404, b'{"detail":"Not Found"}', None),
        (503, b'{"is_sleeping":true}', None),
        (200, b"[]", None),
        (200, b"\xff", None),
    ],
)
def test_asleep(status: int, body: bytes, expected: bool | None) -> None:
    """Without the path it cannot be asleep."""
    assert asleep(status, body) is expected


@given(st.integers(), st.binary())
def test_answers_of_anything(status: int, body: bytes) -> None:
    """No answer is an error."""
    assert fell_asleep(status, body) in (True, False)
    assert asleep(status, body) in (True, False, None)
    assert all(woke(call, status, body) in (True, False) for call in wake_requests(2))


def test_freed() -> None:
    """What was freed stands in its log, of old and new versions, with whatever prefix."""
    line = "Sleep mode freed 36.60 GiB memory, 1.97 GiB memory is still in use."
    freed = Freed(int(36.6 * GIB), int(1.97 * GIB))
    assert read_freed(line) == freed
    assert read_freed(f"(EngineCore pid=1) INFO 11-23 09:15:10 [gpu_worker.py:150] {line}") == freed
    assert read_freed("Sleep mode freed 8 GiB memory, 0 GiB memory is still in use.") == Freed(8 * GIB, 0)
    assert read_freed("It took 0.05 seconds to fall asleep.") is None
    assert read_freed("Sleep mode freed -1 GiB memory, x GiB memory is still in use.") is None
