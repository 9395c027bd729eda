"""Looks for NVIDIA's driver, and for what lets containers use it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Iterable
from typing import Any

from llmproxy.doctor.facts import GpuFacts
from llmproxy.doctor.gather.commands import Runner, run

__all__ = ["gather_gpu", "read_smi", "required_cuda"]

DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""What a driver's library talks to: on Linux, and in WSL2."""
TOOLS = ("nvidia-container-runtime-hook", "nvidia-container-runtime", "nvidia-container-cli", "nvidia-ctk")
SMI_TIMEOUT = 20.0
"""A GPU that sleeps takes seconds to wake."""


def gather_gpu(runner: Runner = run, devices: Iterable[str] = DEVICES) -> GpuFacts:
    """By NVML, else by ``nvidia-smi``."""
    here = tuple(path for path in devices if os.path.exists(path))
    tool = next((one for one in TOOLS if shutil.which(one)), None)
    try:
        # Not every installation has it (llmproxy[nvml]), and no types come with it.
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return _by_smi(runner, here, tool, "nvidia-ml-py is not installed (pip install 'llmproxy[nvml]')")
    try:
        nvml.nvmlInit()
    except Exception as error:  # a missing driver is NVMLError, a broken library may be anything
        return _by_smi(runner, here, tool, f"NVML does not answer: {error or type(error).__name__}")
    try:
        gpus = []
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            name = _text(nvml.nvmlDeviceGetName(handle))
            gpus.append((name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total)))
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        cuda = (version // 1000, version % 1000 // 10)
        return GpuFacts(here, driver, cuda, tuple(gpus), None, tool)
    except Exception as error:  # the same, of each question
        return _by_smi(runner, here, tool, f"NVML does not answer: {error or type(error).__name__}")
    finally:
        nvml.nvmlShutdown()


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _by_smi(runner: Runner, here: tuple[str, ...], tool: str | None, why: str) -> GpuFacts:
    if not here and shutil.which("nvidia-smi") is None:
        return GpuFacts(error=why, tool=tool)
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.total,name", "--format=csv,noheader,nounits"]
    ran = runner(query, SMI_TIMEOUT)
    driver, gpus = read_smi(ran.output) if ran.well else (None, ())
    if driver is None:
        return GpuFacts(
            here, error=f"{why}; nvidia-smi: {ran.error or ran.output or 'nothing told'}"[:300], tool=tool
        )
    return GpuFacts(here, driver, None, gpus, None, tool)


def read_smi(output: str) -> tuple[str | None, tuple[tuple[str, int], ...]]:
    """The driver's version, and the GPUs."""
    driver, gpus = None, []
    for line in output.splitlines():
        parts = [part.strip() for part in line.split(",", 2)]
        if len(parts) == 3 and re.fullmatch(r"[0-9.]+", parts[0]) and re.fullmatch(r"[0-9]{1,9}", parts[1]):
            driver = parts[0]
            gpus.append((parts[2], int(parts[1]) * 2**20))
    return driver, tuple(gpus)


def required_cuda(environment: Iterable[str]) -> tuple[int, int] | None:
    """The CUDA version in an image's ``NVIDIA_REQUIRE_CUDA``.

    Alternatives are separated by spaces; the first is the version, the others are older drivers of certain
    GPUs that can do it nevertheless.
    """
    for line in environment:
        name, _, value = str(line).partition("=")
        match = (
            re.match(r"cuda>=([0-9]{1,3})\.([0-9]{1,3})", value) if name == "NVIDIA_REQUIRE_CUDA" else None
        )
        if match:
            return int(match[1]), int(match[2])
    return None
