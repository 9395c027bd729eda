"""The group of processes that may have hardly more memory, by a folder that stands for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.chaos import memory
from tests.integration.chaos.memory import MemoryGroup, NoMemoryGroup, memory_group

PID = 17


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is none of the kernel's stays while files are in it."""
    monkeypatch.setattr(memory, "_PATIENCE", 0)


def process(folder: Path, *lines: str) -> Path:
    """Processes of which one is in these groups."""
    (folder / "proc" / str(PID)).mkdir(parents=True)
    (folder / "proc" / str(PID) / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return folder / "proc"


def take_and_let_go(group: MemoryGroup, limit: str, home: Path) -> str:
    """Have it limit the process; what stands in the file for the limit afterwards."""
    home.mkdir(parents=True)
    group.limited(2 << 20)
    group.take(PID)
    assert (group.folder / limit).read_text() == str(2 << 20)
    assert (group.folder / "cgroup.procs").read_text() == str(PID)
    group.close()
    assert (home / "cgroup.procs").read_text() == str(PID)
    return (group.folder / limit).read_text()


def test_version_1(tmp_path: Path) -> None:
    """Memory has a tree of its own."""
    kernel, root = tmp_path / "kernel", tmp_path / "kernel" / "memory"
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text("9223372036854771712")
    proc = process(tmp_path, "5:cpu,cpuacct:/c", "4:memory:/a/b", "0::/d")
    group = memory_group("ours", kernel, proc)
    assert group.folder == root / "ours"
    assert take_and_let_go(group, "memory.limit_in_bytes", root / "a" / "b") == "-1"


@pytest.mark.parametrize("given", ["cpu memory", "cpu", ""])
def test_version_2(tmp_path: Path, given: str) -> None:
    """All have one tree, whose root gives memory to the groups in it, or is told to."""
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (kernel / "cgroup.subtree_control").write_text(given)
    group = memory_group("ours", kernel, process(tmp_path, "0::/user.slice/a"))
    told = (kernel / "cgroup.subtree_control").read_text()
    assert told == ("cpu memory" if given == "cpu memory" else "+memory")
    assert take_and_let_go(group, "memory.max", kernel / "user.slice" / "a") == "max"


def test_who_cannot_go_home(tmp_path: Path) -> None:
    """Its group is gone, or is not to be seen from here: it goes to the root."""
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    (kernel / "cgroup.controllers").write_text("memory")
    group = memory_group("ours", kernel, process(tmp_path, "0::/gone"))
    group.limited(1)
    group.take(PID)
    group.close()
    assert (kernel / "cgroup.procs").read_text() == str(PID)


@pytest.mark.parametrize("controllers", [None, "cpu io"])
def test_a_kernel_without(tmp_path: Path, controllers: str | None) -> None:
    """Neither version has memory: it is said."""
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers)
    with pytest.raises(NoMemoryGroup, match="this kernel has no groups"):
        memory_group("ours", tmp_path)


def test_what_is_not_allowed(tmp_path: Path) -> None:
    """The root does not give memory away: it is said why."""
    (tmp_path / "cgroup.controllers").write_text("memory")
    (tmp_path / "cgroup.subtree_control").mkdir()
    with pytest.raises(NoMemoryGroup, match=r"can be made here: .*subtree_control"):
        memory_group("ours", tmp_path)
