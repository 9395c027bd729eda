"""Several real Docker engines on this one machine, joined into a real Swarm.

Each engine is in a network namespace of its own, with data, state, sockets and firewall rules of its own.
A further namespace is the wire between them: a bridge, so that nothing is asked of the firewall of this
machine.  The machine itself has one more cable to that bridge, by which the clients of a test come in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from urllib.parse import urlencode

import pytest
from attrs import define

from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, require_docker
from tests.integration.swarm_node import Node, ask, ip, processes_of
from tests.integration.world import until

__all__ = ["HEARTBEAT", "SwarmWorld", "require_swarm"]

HEARTBEAT = 2.0
"""Seconds between two signs of life of a node.  One without any is ``down`` 5 to 7 s after the last, and 1 to
3 s later others run in place of its tasks; with the default, 5 s, that takes 12 to 17 s."""

KEEPER = "keeper"
_PLACES = Path("/var/tmp")
_PREFIX = "llmps"
_LETTERS = iter(ascii_lowercase)
"""One for each Swarm of this process; an interface's name may have 15 bytes."""


def require_swarm() -> None:
    """Skip the test where several engines cannot be run; fail it in continuous integration."""
    require_docker("demo")
    wanted = ("dockerd", "containerd", "ip", "nsenter", "iptables")
    missing = [each for each in wanted if shutil.which(each) is None]
    if os.geteuid() == 0 and not missing:
        return
    reason = (
        f"several Docker engines need root and {', '.join(wanted)}; missing: {', '.join(missing) or 'root'}"
    )
    if os.environ.get("LLMPROXY_REQUIRE_DOCKER") or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@define(eq=False)
class SwarmWorld:
    """One Swarm: ``nodes[0]`` is its manager; ``network`` is an attachable overlay network."""

    nodes: list[Node]
    name: str
    folder: Path
    network: str = "models"

    @classmethod
    def make(cls, workers: int = 2) -> SwarmWorld:
        """Make it, with the demo server's image on each node.

        :param workers: beside the manager.
        """
        _sweep()
        require_swarm()
        name = f"{_PREFIX}{os.getpid()}{next(_LETTERS)}"
        folder = _PLACES / name
        folder.mkdir(mode=0o700)
        first = _free_network()
        nodes = []
        for number in range(workers + 1):
            each = "m" if number == 0 else f"w{number}"
            place = folder / each
            place.mkdir()
            nodes.append(Node(each, f"{name}{each}", place, f"198.51.100.{first + 2 + number}", f"{name}x"))
        world = cls(nodes, name, folder)
        try:
            world._build(f"198.51.100.{first + 1}")
        except BaseException:
            world.close()
            raise
        return world

    def _build(self, ours: str) -> None:
        wire = f"{self.name}x"
        ip("netns", "add", wire)
        ip("-n", wire, "link", "add", "wire", "type", "bridge")
        ip("-n", wire, "link", "set", "wire", "up")
        ip("link", "add", f"{self.name}h", "type", "veth", "peer", "host", "netns", wire)
        ip("-n", wire, "link", "set", "host", "master", "wire", "up")
        ip("addr", "add", f"{ours}/28", "dev", f"{self.name}h")
        ip("link", "set", f"{self.name}h", "up")
        for node in self.nodes:
            node.connect()
        self.manager.start()
        self.manager.until_up()
        _load(self.manager)
        if self.nodes[1:]:
            self._spread()
        self._join()
        options = ("--driver", "overlay", "--attachable", "--label", TEST_LABEL)
        self.manager.docker("network", "create", *options, self.network)
        # A node that has nobody on a network takes up to 30 s to join it while another one is lost: it waits
        # for that one's part of what is known of the network.
        keeper = ("--mode", "global", "--network", self.network, "--stop-signal", "KILL")
        self.manager.docker(
            *("service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", KEEPER, *keeper),
            *("--restart-delay", "100ms", "--label", TEST_LABEL, DEMO_IMAGE, "sleep", "infinity"),
        )
        until(self._joined, 60, 0.2)

    def _joined(self) -> bool:
        """Whether all nodes are on the network."""
        filters = json.dumps({"service": [KEEPER], "desired-state": ["running"]})
        tasks = ask(self.manager.socket, "GET", f"/tasks?{urlencode({'filters': filters})}")
        running = [task for task in tasks if task["Status"]["State"] == "running"]
        return len(running) == len(self.nodes)

    def _spread(self) -> None:
        self.manager.stop()  # while it runs its files are on a mount of their own, and cannot be linked
        for node in self.nodes[1:]:
            _copy_images(self.manager, node)
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.until_up()
            if not node.docker("images", "--quiet", DEMO_IMAGE):
                _load(node)  # an engine that keeps its images elsewhere

    def _join(self) -> None:
        manager = self.manager
        at = ("--advertise-addr", manager.address, "--listen-addr", f"{manager.address}:2377")
        manager.docker("swarm", "init", *at, "--dispatcher-heartbeat", f"{HEARTBEAT:g}s")
        token = manager.docker("swarm", "join-token", "--quiet", "worker")
        for node in self.nodes[1:]:
            at = ("--advertise-addr", node.address, "--listen-addr", f"{node.address}:2377")
            node.docker("swarm", "join", "--token", token, *at, f"{manager.address}:2377")
        for node in self.nodes:
            # Their host names are the same.
            self.change(node, "--label-add", f"place={node.name}")

    @property
    def manager(self) -> Node:
        """The one that is asked."""
        return self.nodes[0]

    def node(self, name: str) -> Node:
        """``m``, ``w1``, ``w2``."""
        return next(each for each in self.nodes if each.name == name)

    # -- the Swarm -------------------------------------------------------------------------------------------

    def status(self, node: Node) -> tuple[str, str]:
        """State (``ready``, ``down``) and availability (``active``, ``drain``) of a node, to the manager."""
        for each in self.nodes_listed():
            if each["Status"].get("Addr") == node.address:
                return each["Status"]["State"], each["Spec"]["Availability"]
        raise AssertionError(f"the manager knows no {node.name}")

    def nodes_listed(self) -> list[dict[str, Any]]:
        """``GET /nodes``."""
        found = ask(self.manager.socket, "GET", "/nodes")
        assert isinstance(found, list)
        return found

    def id_of(self, node: Node) -> str:
        """The manager's name for a node."""
        known = {each["Status"].get("Addr"): str(each["ID"]) for each in self.nodes_listed()}
        return known[node.address]

    def make_available(self, node: Node, how: str = "active") -> None:
        """``active``, ``drain`` or ``pause``."""
        self.change(node, "--availability", how)

    def change(self, node: Node, *options: str) -> None:
        """``docker node update``, again where a node has just changed by itself or the managers vote."""
        update = ("node", "update", *options, self.id_of(node))

        def changed() -> bool:
            try:
                self.manager.docker(*update)
            except AssertionError as refused:
                if "rpc error" not in str(refused):
                    raise
                return False
            return True

        until(changed, 30, 0.3)

    def make_managers(self, count: int) -> None:
        """Have so many managers, :attr:`manager` among them, and wait until they agree."""
        for node in self.nodes[1:]:
            wanted = self.nodes.index(node) < count
            if (node in until(self._managers, 60, 0.3)) != wanted:
                self.change(node, "--role", "manager" if wanted else "worker")
                self._until_manager(node, wanted)

    def _until_manager(self, node: Node, wanted: bool) -> None:
        until(lambda: (found := self._managers()) and (node in found) == wanted, 60, 0.3)

    def _managers(self) -> list[Node]:
        """Those that the others reach; none while they agree on nothing."""
        try:
            listed = self.nodes_listed()
        except (AssertionError, OSError):
            return []
        found = [each["ManagerStatus"] for each in listed if "ManagerStatus" in each]
        reached = {each["Addr"].rpartition(":")[0] for each in found if each["Reachability"] == "reachable"}
        return [node for node in self.nodes if node.address in reached]

    def until_ready(self) -> None:
        """Wait until the manager says of every node that it is."""
        until(lambda: all(each["Status"]["State"] == "ready" for each in self.nodes_listed()), 60, 0.2)

    def recover(self) -> None:
        """Make it whole again after whatever a test did."""
        for node in self.nodes:
            node.heal()
        for node in self.nodes:
            if not node.runs:
                node.start()
        for node in self.nodes:
            node.until_up()
        self.make_managers(1)
        self.until_ready()
        for node in self.nodes:
            if self.status(node)[1] != "active":
                self.make_available(node)
        until(self._joined, 60, 0.2)

    # -- its end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it with all that it has."""
        _remove(self.name)
        for node in self.nodes:
            node.wait()


def _load(node: Node) -> None:
    load = ["docker", "-H", node.host, "load", "--quiet"]
    with subprocess.Popen(["docker", "save", DEMO_IMAGE], stdout=subprocess.PIPE) as save:
        try:
            subprocess.run(load, stdin=save.stdout, stdout=subprocess.DEVNULL, timeout=300, check=True)
        finally:
            save.terminate()


def _copy_images(loaded: Node, new: Node) -> None:
    """To load an image takes 6 s, to link its files does not: an engine only reads what is in a layer."""
    (new.folder / "data").mkdir()
    for part in ("image", "overlay2"):
        source = loaded.folder / "data" / part
        if source.exists():
            subprocess.run(["cp", "-al", str(source), str(new.folder / "data")], timeout=120, check=True)


def _free_network() -> int:
    """The first address of 16 that nobody has, of those that are for documentation (RFC 5737)."""
    taken = subprocess.run(
        ["ip", "-4", "addr"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    for first in range(0, 256, 16):
        if f"198.51.100.{first + 1}/" not in taken:
            return first
    raise AssertionError("no addresses are left")


def _sweep() -> None:
    """Remove what runs that were killed have left."""
    listed = subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=False
    ).stdout.split()
    for name in {*os.listdir(_PLACES), *listed}:
        found = re.match(rf"{_PREFIX}(\d+)[a-z]", name)
        if found and not Path("/proc", found[1]).exists():
            _remove(found[0])


def _remove(name: str) -> None:
    folder = _PLACES / name
    places = [each for each in folder.iterdir() if each.is_dir()] if folder.exists() else []

    def ended() -> bool:
        left = [pid for place in places for pid in processes_of(place)]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    until(ended, 30, 0.1)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mounted in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False)
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        if re.match(rf"{name}[a-z]", line):
            ip("netns", "del", line.split()[0], check=False)
    ip("link", "del", f"{name}h", check=False)
    shutil.rmtree(folder, ignore_errors=True)
    for place in places:
        _remove_cgroups(f"{name}{place.name}")


def _remove_cgroups(name: str) -> None:
    for top in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        for each in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                each.rmdir()
        with suppress(OSError):
            top.rmdir()
