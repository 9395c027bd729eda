"""The GPU: its driver, and the way into containers.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.doctor.checks.backends import known_backends, wants_gpu
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn
from llmproxy.doctor.numbers import size

__all__ = ["check_cuda", "check_driver", "check_gpu_runtime"]

TOOLKIT = (
    "Install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure"
    " --runtime=docker; sudo systemctl"
    " restart docker."
)


def check_driver(facts: Facts) -> Iterator[Finding]:
    """Whether there is one, and a GPU that it finds."""
    gpu, routes = facts.gpu, wants_gpu(known_backends(facts))
    if gpu.gpus:
        names = ", ".join(f"{name} ({size(memory)})" for name, memory in gpu.gpus)
        yield ok("gpu.driver", f"Driver {gpu.driver} finds {names}.")
        return
    if facts.host.contained:
        yield skipped("gpu.driver", "This container sees no GPU, and the launcher needs none to see.")
        return
    if not routes:
        yield skipped(
            "gpu.driver",
            f"No GPU was found ({gpu.error or 'the driver finds none'}); no backend asks for one.",
        )
        return
    needed = f"the backends of {', '.join(routes)} need one"
    if not facts.engine.local:
        yield skipped("gpu.driver", "Docker runs on another machine, whose GPUs cannot be seen from here.")
    elif gpu.devices:
        fix = (
            "Restart the machine (wsl --shutdown in WSL) after an update of the driver; pip"
            " install 'llmproxy[nvml]'."
        )
        yield warn(
            "gpu.driver", f"{gpu.devices[0]} is there, but no GPU answers ({gpu.error}); {needed}.", fix
        )
    elif facts.host.wsl is not None:
        yield fail(
            "gpu.driver",
            f"WSL has no /dev/dxg: no GPU of Windows is passed through; {needed}.",
            "Install the newest NVIDIA driver on Windows (none in WSL), wsl --update, wsl --shutdown.",
        )
    else:
        yield fail(
            "gpu.driver",
            f"There is no NVIDIA driver (/dev/nvidiactl is not there); {needed}.",
            "Install NVIDIA's driver and restart; nvidia-smi has to list the GPU.",
        )


def check_gpu_runtime(facts: Facts) -> Iterator[Finding]:
    """Whether Docker can give a container a GPU: by NVIDIA's runtime, by CDI, or by the toolkit's hook."""
    engine, routes = facts.engine, wants_gpu(known_backends(facts))
    if not engine.answers:
        if routes:
            yield skipped("gpu.runtime", "Docker does not answer, so its runtimes cannot be looked at.")
        return
    if "nvidia" in engine.runtimes:
        yield ok("gpu.runtime", "Docker has NVIDIA's runtime.")
    elif any(device.startswith("nvidia.com/gpu") for device in engine.cdi):
        yield ok("gpu.runtime", "Docker knows NVIDIA's GPUs by the container device interface (CDI).")
    elif engine.local and facts.gpu.tool is not None and not facts.host.contained:
        yield ok("gpu.runtime", f"The container toolkit is installed ({facts.gpu.tool}).")
    elif not routes:
        yield skipped("gpu.runtime", "Docker has no GPU runtime, and no backend asks for a GPU.")
    elif engine.desktop:
        yield fail(
            "gpu.runtime",
            f"Docker Desktop offers no GPU; {', '.join(routes)} ask for one.",
            "Install the newest NVIDIA driver on Windows, update WSL (wsl --update) and"
            " Docker Desktop, restart it.",
        )
    else:
        runtimes = ", ".join(engine.runtimes) or "none"
        text = f"Docker cannot give containers a GPU (runtimes: {runtimes}); {', '.join(routes)} ask for one."
        if engine.local and not facts.host.contained:
            yield fail("gpu.runtime", text, TOOLKIT)
        else:
            # The toolkit's hook alone would do, and whether its host has that is not seen.
            text = (
                f"Docker tells of no GPU runtime (runtimes: {runtimes}); {', '.join(routes)} ask for a GPU."
            )
            yield warn("gpu.runtime", text, TOOLKIT)


def check_cuda(facts: Facts) -> Iterator[Finding]:
    """Whether the driver is new enough for the images."""
    able = facts.gpu.cuda
    if able is None:
        return
    asked = {
        one.image: image.cuda
        for one in known_backends(facts)
        if one.wants_gpu and (image := facts.engine.images.get(one.image or "")) is not None and image.cuda
    }
    old = {name: cuda for name, cuda in asked.items() if cuda > able}
    for name, cuda in old.items():
        yield warn(
            "gpu.cuda",
            f"{name} asks for CUDA {cuda[0]}.{cuda[1]}, and driver {facts.gpu.driver} can"
            f" do {able[0]}.{able[1]}.",
            "Update NVIDIA's driver, or use an older image; data-centre GPUs may run it nevertheless.",
        )
    if asked and not old:
        yield ok("gpu.cuda", f"The driver can do CUDA {able[0]}.{able[1]}, which is enough for the images.")
