"""A real systemd with the proxy as its service: a small Debian in namespaces of its own, systemd its PID 1.

It takes root, ``unshare`` and, the first time, ``debootstrap`` (a minute); where that is not to be had the
tests are skipped.  The network is that of this machine, and this checkout is mounted read-only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import define

from tests.integration.proxy import ADMIN, KEY, Proxy, free_port
from tests.integration.world import ROOT, ProcessWorld, until

__all__ = ["UNITS", "Machine", "machine"]

UNITS = ROOT / "deploy" / "systemd"

PACKAGES = "python3,ca-certificates,systemd,systemd-sysv,dbus,procps"

CGROUPS = Path("/sys/fs/cgroup")

BOOT = """\
set -e
root=$1 folder=$2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" -o ro
mount -t tmpfs tmpfs "$root/run" -o mode=755
mount -t tmpfs tmpfs "$root/tmp" -o mode=1777
mount -t tmpfs tmpfs "$root/dev" -o mode=755
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup" -o mode=755
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup cgroup "$root/sys/fs/cgroup/systemd" -o none,name=systemd
fi
mount -t tmpfs tmpfs "$root/srv" -o mode=755
mkdir "$root/srv/llmproxy" "$root/srv/site"
mount --bind "$3" "$root/srv/llmproxy"
mount --bind "$4" "$root/srv/site"
mount -o remount,bind,ro "$root/srv/llmproxy"
mount -o remount,bind,ro "$root/srv/site"
for place in etc/systemd/system etc/llmproxy opt/llmproxy var/lib; do
    mkdir -p "$root/$place" "$folder/$place"
    mount --bind "$folder/$place" "$root/$place"
done
exec chroot "$root" /usr/bin/env -i container=llmproxy-test /lib/systemd/systemd --log-target=null
"""

PROGRAM = """\
#!/usr/bin/python3
import sys
sys.path[:0] = ["/srv/llmproxy", "/srv/site"]
"""


def _debian() -> Path:
    """The root file system, made once."""
    state = Path(os.environ.get("LLMPROXY_CI_STATE", "/var/tmp/llmproxy-ci"))
    root = state / "systemd-1"
    if root.exists():
        return root
    if shutil.which("debootstrap") is None:
        pytest.skip("there is no debootstrap")
    state.mkdir(parents=True, exist_ok=True)
    new = state / f"systemd-new-{os.getpid()}"
    try:
        mirror = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()[:1]
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(new), *mirror]
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("debootstrap takes too long here")
        if made.returncode:
            pytest.skip(f"debootstrap failed: {made.stdout[-300:]}")
        users = "groupadd docker && useradd --system --home-dir /var/lib/llmproxy llmproxy"
        subprocess.run(["chroot", str(new), "sh", "-c", users], check=True)
        # Nothing of it is to be looked for in the network of this machine.
        for unit in ("systemd-resolved", "systemd-networkd", "systemd-timesyncd"):
            (new / "etc/systemd/system" / f"{unit}.service").symlink_to("/dev/null")
        with suppress(OSError):
            # Another run may have been faster.
            new.rename(root)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return root


@define(eq=False)
class Machine:
    """Where the proxy is a service."""

    folder: Path
    proxy: Proxy
    pid: int

    def run(self, *words: str, check: bool = True) -> str:
        """Run something there."""
        enter = [
            "nsenter",
            f"--target={self.pid}",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--root",
        ]
        done = subprocess.run(
            [*enter, "--wd=/", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *words],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr, self.journal())
        return done.stdout

    def systemctl(self, *words: str) -> str:
        """Tell systemd something."""
        return self.run("systemctl", "--no-pager", *words)

    def journal(self) -> str:
        """What the service has written."""
        return self.run("journalctl", "--no-pager", "-u", "llmproxy.service", "-n", "200", check=False)

    def shows(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", "llmproxy.service", "--value", "-p", name).strip()

    def unit(self, name: str, text: str) -> None:
        """Have a file of units."""
        path = self.folder / "etc/systemd/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def stat(self, pid: str) -> dict[str, str]:
        """What the kernel says of a process there."""
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _prepare(folder: Path, port: int) -> None:
    for place in ("etc/systemd/system", "etc/llmproxy", "opt/llmproxy/bin", "var/lib"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    units = folder / "etc/systemd/system"
    listen = (UNITS / "llmproxy.socket").read_text()
    (units / "llmproxy.socket").write_text(listen.replace("0.0.0.0:8000", f"127.0.0.1:{port}"))
    shutil.copy(UNITS / "llmproxy.service", units)
    drop = units / "llmproxy.service.d"
    drop.mkdir()
    shutil.copy(UNITS / "process-backends.conf", drop)
    (folder / "etc/llmproxy/llmproxy.yaml").write_text(
        f"""\
keys: [{{name: site, secret: {KEY}}}, {{name: boss, secret: {ADMIN}, admin: true}}]
drain: 20s
backends:
  a:
    runtime: process
    command: [/opt/llmproxy/bin/demo, --host, 127.0.0.1, --port, "${{port}}", --model, a-model]
    models: [a-model]
"""
    )
    programs = {
        "twistd": "from twisted.scripts.twistd import run\nsys.exit(run())\n",
        "demo": "import runpy\nrunpy.run_module('llmproxy.demo', run_name='__main__', alter_sys=True)\n",
    }
    for name, text in programs.items():
        program = folder / "opt/llmproxy/bin" / name
        program.write_text(PROGRAM + text)
        program.chmod(0o755)


def _group(name: str) -> Path:
    """A cgroup of our own, of which the machine sees no more."""
    top = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "systemd"
    group = top / name
    group.mkdir()
    return group


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Boot it, with the proxy installed as docs/operations.md says and not started."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a systemd of its own")
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "chroot")):
        pytest.skip("there is no unshare, nsenter or chroot")
    root = _debian()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not (root / "usr/bin" / version).exists():
        pytest.skip(f"that Debian has no {version}")
    port = free_port()
    _prepare(folder, port)
    group = None
    try:
        group = _group(f"llmproxy-test-{os.getpid()}")
    except OSError as cause:
        pytest.skip(f"no cgroup can be made here: {cause}")
    site = sysconfig.get_paths()["purelib"]
    apart = "unshare --mount --pid --fork --uts --ipc --cgroup"
    inner = f'echo $$ >{group}/cgroup.procs; exec {apart} sh -c "$0" "$@"'
    with open(folder / "console", "wb") as console:
        outer = subprocess.Popen(
            ["sh", "-c", inner, BOOT, "boot", str(root), str(folder), str(ROOT), site],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    pid = 0
    try:

        def booted() -> int:
            assert outer.poll() is None, (folder / "console").read_text()
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            return int(children[0]) if children else 0

        try:
            pid = until(booted, 5)
            one = Machine(folder, Proxy(folder, ProcessWorld(folder), port=port), pid)
            until(lambda: "running" in one.run("systemctl", "is-system-running", check=False), 20, 0.2)
        except AssertionError as cause:
            pytest.skip(f"systemd does not come up here: {cause}")
        yield one
        print(one.journal()[-20_000:])
    finally:
        if pid:
            # The end of PID 1 is the end of all that is in there.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        outer.kill()
        outer.wait()
        for _ in range(50):
            with suppress(OSError):
                for below in sorted(group.rglob("*/"), reverse=True):
                    below.rmdir()
                group.rmdir()
                break
            time.sleep(0.05)
