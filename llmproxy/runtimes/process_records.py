"""What a child leaves behind so that another proxy finds it: one small file for each route."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from attrs import asdict, define, frozen

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.process_group import read_process
from llmproxy.runtimes.spare import SPARE

__all__ = ["SHIM", "Record", "Records", "command_hash"]

SHIM = """\
import json, os, sys
path, record, executable = sys.argv[1:4]
os.setsid()
with open("/proc/self/stat", "rb") as file:
    start_time = int(file.read().rpartition(b")")[2].split()[19])
record = dict(json.loads(record), pid=os.getpid(), start_time=start_time)
with open(path + ".new", "w") as file:
    json.dump(record, file)
os.replace(path + ".new", path)
try:
    os.execv(executable, sys.argv[4:])
except OSError as error:
    sys.stderr.write("llmproxy: %s: %s\\n" % (executable, error.strerror))
    os._exit(126)
"""
"""Runs in the child before its command: it writes the record itself, so that there is no moment in which the
proxy can be killed and leave a child that nobody knows."""


def command_hash(spec: BackendSpec) -> str:
    """Names all that a child process depends on."""
    parts = [spec.command, spec.args, sorted(spec.environment.items()), spec.cwd, spec.port]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@frozen
class Record:
    """One child.

    :ivar boot: the kernel's ``boot_id``; ``start_time`` counts from there.
    :ivar command: :func:`command_hash` of what it was started from.
    :ivar started_at: POSIX time.
    """

    pid: int
    start_time: int
    boot: str
    port: int
    command: str
    started_at: float

    @property
    def run(self) -> str:
        """Names the run."""
        return f"process:{self.pid}:{self.start_time}"

    def is_alive(self) -> bool:
        """Whether its leader lives.

        :raises OSError: it cannot be told.
        """
        info = read_process(self.pid)
        return (
            info is not None and info.alive and info.start_time == self.start_time and self.boot == boot_id()
        )


@cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def boot_id() -> str:
    """Names this boot of this machine."""
    try:
        return SPARE.use(_boot_id)
    except FileNotFoundError:
        return ""


@define
class Records:
    """The files in one directory."""

    directory: str

    def path(self, route: str) -> str:
        """Where the record of that route stands."""
        return os.path.join(self.directory, f"{route}.json")

    def draft(self, spec: BackendSpec, port: int, started_at: float) -> str:
        """A record but for what only the child knows."""
        record = Record(0, 0, boot_id(), port, command_hash(spec), started_at)
        return json.dumps(asdict(record))

    def read(self, route: str) -> Record | None:
        """The record of that route; one that makes no sense, or is not for us to read, counts as none.

        :raises OSError: it cannot be told whether there is one.
        """

        def load() -> Record:
            with open(self.path(route), encoding="utf-8") as file:
                return Record(**json.load(file))

        try:
            return SPARE.use(load)
        except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, TypeError):
            return None

    def write(self, route: str, record: Record) -> None:
        """Put down a record.

        :raises OSError: it cannot be.
        """
        path = self.path(route)

        def put() -> None:
            # Not the name that the child writes to at the same time.
            with open(path + ".here", "w", encoding="utf-8") as file:
                json.dump(asdict(record), file)

        SPARE.use(put)
        os.replace(path + ".here", path)

    def forget(self, route: str, run: str) -> None:
        """Remove the record of that run, unless another run has written its own meanwhile."""
        with suppress(OSError):  # what has ended is known by its number, too
            record = self.read(route)
            if record is not None and record.run == run:
                os.unlink(self.path(route))

    def all(self) -> Iterator[tuple[str, Record]]:
        """All routes that left one.

        :raises OSError: it cannot be told.
        """
        try:
            names = sorted(SPARE.use(lambda: os.listdir(self.directory)))
        except FileNotFoundError:
            return
        for name in names:
            route, dot, ending = name.rpartition(".")
            record = self.read(route) if dot and ending == "json" else None
            if record is not None:
                yield route, record
