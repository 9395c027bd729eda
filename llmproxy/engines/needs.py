"""What a backend needs of the machine: read from its settings, and from the container or process.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from attrs import frozen

from llmproxy.engines.flags import VllmFlags, read_command, read_flags
from llmproxy.engines.gpus import (
    DeviceRequest,
    Visible,
    choose,
    hide,
    visible_to_container,
    visible_to_process,
)

__all__ = ["DEFAULT_UTILIZATION", "Needs", "Readings", "Settings", "read_needs"]

DEFAULT_UTILIZATION = 0.92
"""vLLM's ``--gpu-memory-utilization`` from 0.32 on (``vllm/config/cache.py``); 0.9 before.  The version is
not known before it runs, and the higher one is the safe one."""

_DEFAULT_GPUS = ("0",)


class Settings(Protocol):
    """What is asked of a backend's settings (:class:`llmproxy.config.model.BackendSpec`)."""

    @property
    def runtime(self) -> str: ...

    @property
    def engine(self) -> str: ...

    @property
    def gpu_memory(self) -> float | int | None: ...

    @property
    def gpus(self) -> tuple[str, ...] | None: ...

    @property
    def sleep(self) -> str: ...


class Readings(Protocol):
    """What is asked of what was read from it (:class:`llmproxy.runtimes.interface.Facts`)."""

    @property
    def args(self) -> tuple[str, ...]: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def devices(self) -> DeviceRequest | None: ...


@frozen
class Needs:
    """What a backend needs of the machine while it runs.

    :ivar gpus: GPUs that it uses, as the host counts them ("0", "1") or by UUID; empty: none.
    :ivar memory: on each of them: a fraction (``float``) or bytes (``int``); 0 when ``gpus`` is empty.
    :ivar sleep: levels of sleep that it offers: () none, (1, 2) both, or the one that the operator fixed.
    :ivar why: one line for a person: where ``gpus`` and ``memory`` come from.
    :ivar remarks: what a person should know or could do, a sentence each.
    """

    gpus: tuple[str, ...] = ()
    memory: float | int = 0
    sleep: tuple[int, ...] = ()
    why: str = ""
    remarks: tuple[str, ...] = ()


@frozen
class _Memory:
    amount: float | int
    why: str


def read_needs(spec: Settings, facts: Readings) -> Needs:
    """What it needs: what the settings say, else what can be read.

    vLLM refuses to start unless its fraction of the whole GPU is free (``request_memory`` in
    ``vllm/v1/worker/utils.py``, called from ``Worker.init_device``), and then takes about that much.  It
    refuses also with ``--kv-cache-memory-bytes``, which is documented to make it ignore the fraction: that
    comes only later, when the cache is made (``determine_available_memory`` in
    ``vllm/v1/worker/gpu_worker.py``; vLLM's pull request 39852, which would skip the check, was closed).
    ``--swap-space``, ``--cpu-offload-gb`` and ``--kv-offloading-size`` are about the host's memory and change
    nothing of it.
    """
    if spec.runtime == "url":
        return Needs(why="it runs elsewhere")
    if spec.runtime == "swarm":
        return Needs(why="the Swarm fits it to its nodes")
    _, environment = read_command(facts.args, facts.environment)
    flags = read_flags(facts.args, facts.environment) if spec.engine == "vllm" else None
    sleep, remarks = _sleep(spec, flags, environment)
    memory = _memory(spec, flags, environment)
    if not memory.amount:
        return Needs(sleep=sleep, why=memory.why, remarks=remarks)
    devices = facts.devices
    if devices == DeviceRequest() and flags is not None and _is_asked_for(flags):
        # Its flags speak of GPU memory, so that there may be a door for GPUs that is not seen from here.
        devices = None
        if spec.gpus is None and spec.gpu_memory is None:
            remarks += ("Its flags ask for GPU memory, and its container asks for no GPU.",)
    visible, wanted = _gpus(spec, flags, devices, environment)
    gpus = visible.first(wanted)
    if not gpus:
        return Needs(sleep=sleep, why=visible.why, remarks=remarks)
    if flags is not None and spec.gpus is None and len(gpus) < wanted:
        remarks += (f"Its flags ask for {wanted} GPUs, and it sees {len(gpus)}.",)
    if flags is not None and spec.gpu_memory is None:
        remarks += _unsure(flags)
    why = f"{memory.why}; {visible.why or 'no GPU is named'}"
    return Needs(gpus, memory.amount, sleep, why, remarks)


def _memory(spec: Settings, flags: VllmFlags | None, environment: Mapping[str, str]) -> _Memory:
    if spec.gpu_memory is not None:
        return _Memory(spec.gpu_memory, "gpu_memory in the settings")
    if flags is None:
        return _Memory(0, f"nothing is known of an engine that is {spec.engine}, and gpu_memory is not set")
    no_gpu = _on_cpu(flags, environment)
    if no_gpu:
        return _Memory(0, no_gpu)
    if flags.gpu_memory_bytes is not None:
        gibibytes = flags.gpu_memory_bytes / 1024**3
        return _Memory(flags.gpu_memory_bytes, f"--gpu-memory-utilization-gb {gibibytes:g}")
    if flags.gpu_memory_utilization is not None:
        return _Memory(
            flags.gpu_memory_utilization, f"--gpu-memory-utilization {flags.gpu_memory_utilization:g}"
        )
    if spec.runtime == "process":
        return _Memory(0, "a process needs no GPU unless gpu_memory or --gpu-memory-utilization says so")
    return _Memory(DEFAULT_UTILIZATION, f"vLLM's default {DEFAULT_UTILIZATION:g}")


def _is_asked_for(flags: VllmFlags) -> bool:
    return flags.gpu_memory_utilization is not None or flags.gpu_memory_bytes is not None


def _on_cpu(flags: VllmFlags, environment: Mapping[str, str]) -> str:
    """What says that it runs without a GPU; empty when nothing does."""
    if (flags.device or "").partition(":")[0] == "cpu":
        return "--device cpu"
    if environment.get("VLLM_TARGET_DEVICE", "").strip().lower() == "cpu":
        return "VLLM_TARGET_DEVICE=cpu"
    if flags.gpus == 0:
        return "--data-parallel-size-local 0"
    return ""


def _gpus(
    spec: Settings, flags: VllmFlags | None, devices: DeviceRequest | None, environment: Mapping[str, str]
) -> tuple[Visible, int]:
    """The GPUs of which it uses the first, and how many of them."""
    if spec.gpus is not None:
        return Visible(spec.gpus, "gpus in the settings"), len(spec.gpus)
    if spec.runtime == "process":
        given, visible = Visible(), visible_to_process(environment)
    else:
        given = visible_to_container(devices, environment)
        visible = hide(given, environment)
    if flags is None:
        # It is left to the engine how many of them it uses: all, if it is known which these are.
        wanted = 1 if visible.ids is None else len(visible.ids)
    else:
        wanted = max(1, flags.gpus)
        if flags.device_ids:
            # "Physical" ones, so those that CUDA hides count as well (vLLM, --device-ids).
            visible = choose(given, flags.device_ids, f"--device-ids {','.join(flags.device_ids)}")
    if visible.ids == () and spec.gpu_memory is not None:
        # The settings know better than the container that it needs GPU memory, but not where.
        return Visible(_DEFAULT_GPUS), 1
    return visible, wanted


def _unsure(flags: VllmFlags) -> tuple[str, ...]:
    remarks: tuple[str, ...] = ()
    if flags.kv_cache_memory is not None and flags.gpu_memory_bytes is None:
        remarks += (
            "With --kv-cache-memory-bytes vLLM wants the fraction of --gpu-memory-utilization free when it "
            "starts, and then takes what weights and cache need; lower that flag, or set gpu_memory.",
        )
    if flags.config is not None and flags.gpu_memory_utilization is None:
        remarks += (f"The flags in {flags.config} are not read; set gpu_memory if they change it.",)
    return remarks


def _sleep(
    spec: Settings, flags: VllmFlags | None, environment: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The levels of sleep, and remarks.  Without development mode there are no such paths (vLLM, "Sleep
    Mode")."""
    if flags is None or spec.sleep == "off":
        return (), ()
    missing = []
    if not flags.sleep_mode:
        missing.append("--enable-sleep-mode")
    if not _is_on(environment.get("VLLM_SERVER_DEV_MODE", "")):
        missing.append("VLLM_SERVER_DEV_MODE=1")
    if spec.sleep in ("1", "2"):
        remark = f"To be put to sleep it needs {' and '.join(missing)} as well." if missing else ""
        return (int(spec.sleep),), (remark,) if remark else ()
    if missing == ["VLLM_SERVER_DEV_MODE=1"]:
        return (), (
            "It has --enable-sleep-mode, but can be put to sleep only with VLLM_SERVER_DEV_MODE=1 in its "
            "environment.",
        )
    return (() if missing else (1, 2)), ()


def _is_on(text: str) -> bool:
    """vLLM reads a whole number there (``vllm/envs.py``), and ends at once if it is none."""
    return re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text) is not None and int(text) != 0
