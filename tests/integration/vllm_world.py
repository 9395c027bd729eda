"""A real vLLM on the CPU as a backend: a child process, or a container that llmproxy creates."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import define, field

from llmproxy.runtimes.process_group import ProcessInfo, read_process, session_members
from tests.integration.engine import docker, remove_containers, require_docker, unique

__all__ = ["BACKEND_KEY", "READY", "STOP_GRACE", "Kind", "VllmWorld", "find_vllm", "make_empty_image"]

Kind = Literal["process", "docker"]

BACKEND_KEY = "key-of-the-backend-alone"
STOP_GRACE = 10.0
"""Seconds from TERM to KILL in these tests."""
EMPTY_IMAGE = "llmproxy-test-mounts:1"
READY = "Application startup complete."
"""The only line of vLLM's that means it."""
_HOW = "VLLM_VENV names no environment with vLLM: `scripts/vllm_cpu.sh DIR` makes one, then VLLM_VENV=DIR"


def find_vllm() -> Path:
    """The folder of vLLM's virtual environment; skips the test when there is none."""
    named = os.environ.get("VLLM_VENV")
    if not named:
        pytest.skip(_HOW)
    venv = Path(named).resolve()
    if not (venv / "bin" / "vllm").exists():
        pytest.fail(f"{venv} holds no vLLM. {_HOW}")
    return venv


def make_empty_image() -> None:
    """An image of mount points alone: the host's own ``/usr`` and Python are mounted into its containers.
    Skips the test when no engine answers."""
    require_docker()
    if docker("images", "-q", EMPTY_IMAGE):
        return
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        # /sbin is a real folder: the engine mounts its init there.
        for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "var", "root", "sbin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name in ("bin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(entry)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    change = ["-c", "ENV PATH=/usr/local/bin:/usr/bin:/bin", "-c", "LABEL llmproxy.test=1"]
    subprocess.run(
        ["docker", "import", *change, "-", EMPTY_IMAGE],
        input=held.getvalue(),
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )


@define
class VllmWorld:
    """The backends of one proxy (see :class:`tests.integration.world.World`).

    :ivar folder: the proxy's folder.
    :ivar home: where vLLM keeps what it has learnt of models, which makes the next starts faster.
    """

    kind: Kind
    folder: Path
    venv: Path
    model: Path
    home: Path
    _container: str = field(factory=lambda: unique("vllm"))
    _leaders: set[tuple[int, int]] = field(factory=set)

    def environment(self) -> dict[str, str]:
        """What the proxy's environment needs."""
        return {} if self.kind == "docker" else {"DOCKER_HOST": f"unix://{self.folder}/no-engine.sock"}

    def spec(self, route: str, *flags: str, **settings: Any) -> dict[str, Any]:
        """The backend's part of llmproxy.yaml; ``model`` is served in place of the tiny one."""
        inside = self.kind == "docker"
        model = settings.pop("model", "/model" if inside else str(self.model))
        where = ("0.0.0.0", "8000") if inside else ("127.0.0.1", "${port}")
        command = [str(self.venv / "bin" / "vllm"), "serve", model, "--host", where[0], "--port", where[1]]
        command += ["--api-key", BACKEND_KEY, "--enforce-eager", "--dtype", "float32"]
        command += ["--max-model-len", "8192", "--max-num-seqs", "8", *flags]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HOME": "/tmp" if inside else str(self.home),
        }
        common = {"environment": environment, "stop_grace": STOP_GRACE, **settings}
        if not inside:
            return {"runtime": "process", "command": command, **common}
        python = subprocess.run(
            [str(self.venv / "bin" / "python"), "-c", "import sys; print(sys.base_prefix)"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        folders = {"/usr": "/usr", python: python, str(self.venv): str(self.venv), str(self.model): "/model"}
        return {
            "image": EMPTY_IMAGE,
            "container": f"{self._container}-{route}",
            "args": command,
            "port": 8000,
            "volumes": [*(f"{here}:{there}:ro" for here, there in folders.items()), f"{self.home}:/root"],
            **common,
        }

    def processes(self, route: str) -> list[ProcessInfo]:
        """All that runs of it, its first process first."""
        if self.kind == "docker":
            listed = docker("top", f"{self._container}-{route}", "-eo", "pid", check=False).split()[1:]
            found = [read_process(int(pid)) for pid in listed]
            return [info for info in found if info is not None and info.alive]
        for file in self.folder.glob(f"state/processes/{route}.json"):
            record = json.loads(file.read_text())
            self._leaders.add((record["pid"], record["start_time"]))
        return [info for leader in self._leaders for info in session_members(*leader)]

    def find(self, route: str, title: bytes) -> int | None:
        """Process id of the one that has given itself this title, if there is one."""
        for info in self.processes(route):
            with suppress(FileNotFoundError):
                if title in Path(f"/proc/{info.pid}/cmdline").read_bytes():
                    return info.pid
        return None

    def ready_line_at(self, route: str) -> float | None:
        """When the engine stamped vLLM's line that it is ready (POSIX time); only known of containers."""
        told = subprocess.run(
            ["docker", "logs", "-t", f"{self._container}-{route}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        lines = [line for line in told.splitlines() if READY in line]
        return datetime.fromisoformat(lines[-1].split()[0]).timestamp() if lines else None

    def log_file(self, route: str) -> Path:
        """Where a process writes."""
        return self.folder / "state" / "logs" / f"{route}.log"

    def kill(self, route: str) -> None:
        """End all of it with KILL, behind the proxy's back."""
        for info in self.processes(route):
            os.kill(info.pid, signal.SIGKILL)

    def is_running(self, route: str) -> bool:
        """Whether anything of it runs."""
        return bool(self.processes(route))

    def starts(self, route: str) -> int:
        """How often it was started; only known of processes."""
        self.processes(route)
        return len(self._leaders)

    def close(self) -> None:
        """End all that still runs."""
        if self.kind == "docker":
            remove_containers(self._container)
            return
        for file in self.folder.glob("state/processes/*.json"):
            self.kill(file.stem)
