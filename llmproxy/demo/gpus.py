"""A folder that stands for the GPUs of a machine: demo servers that share it share their memory.

====================  ===================================================================================
``lock``              whoever reads or changes the ledger holds ``flock`` on it meanwhile
``total``             bytes of every GPU, written by the first server
``claim-...``         one server's claim, as JSON: who, pid, host, and bytes by GPU
``faults``            a line of JSON for each error that a GPU which is too full has caused
====================  ===================================================================================

Each server holds ``flock`` on its own claim as long as it lives, and a claim counts only while it is held.
So nothing is left of a server that was killed, and containers that see the same folder but not each other's
processes agree about who lives.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from attrs import define, field

from llmproxy.demo.ledger import GpuError, Ledger

__all__ = ["DEFAULT_TOTAL", "Disagreement", "SharedGpus", "look"]

DEFAULT_TOTAL = 24 * 1024**3  # a common card of one's own
_ALL = 0o666  # servers of several users (of containers) share the folder


class Disagreement(Exception):
    """The folder's GPUs have another size than this server was told."""


def _open(path: Path, flags: int = 0) -> int:
    """Open or create a file that everybody may write, whatever the umask is."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, _ALL)
    except FileExistsError:
        return os.open(path, os.O_RDWR | flags)
    os.fchmod(opened, _ALL)
    return opened


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _open(folder / "lock")
    try:
        flock(lock, LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lives(path: Path) -> bool:
    """Whether the server still lives whose claim this is.  The ledger is locked."""
    try:
        claim = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        flock(claim, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(claim)


def _read(folder: Path, total: int) -> Ledger:
    """The claims of the living; those of the dead are removed.  The ledger is locked."""
    claims = {}
    for path in sorted(folder.glob("claim-*")):
        if _lives(path):
            claims[path.name] = dict(json.loads(path.read_text())["gpus"])
        else:
            with suppress(OSError):  # it counts for nothing where it cannot be removed
                path.unlink()
    return Ledger(total, claims)


def _total(folder: Path) -> int | None:
    try:
        return int((folder / "total").read_text())
    except FileNotFoundError:
        return None


def look(folder: Path) -> Ledger:
    """The ledger as it is now, for those who look on."""
    with _locked(folder):
        return _read(folder, _total(folder) or DEFAULT_TOTAL)


@define
class SharedGpus:
    """One server's hand on the folder.

    :ivar owner: the name of its claim.
    """

    _folder: Path
    _who: str
    _total: int
    owner: str
    _claim: int
    _now: Callable[[], float] = field(default=time.time)

    @classmethod
    def join(
        cls, folder: Path, who: str, total: int | None = None, now: Callable[[], float] = time.time
    ) -> SharedGpus:
        """Come in with nothing claimed.

        :param who: the name told in the file of faults.
        :param total: bytes of every GPU; ``None``: as the folder says, or 24 GiB.
        :raises Disagreement: the folder says something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            written = _total(folder)
            if written is None:
                written = total or DEFAULT_TOTAL
                file = _open(folder / "total")
                os.write(file, b"%d\n" % written)
                os.close(file)
            elif total not in (None, written):
                raise Disagreement(f"The GPUs of {folder} have {written} bytes each, not {total}")
            owner = f"claim-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
            claim = _open(folder / owner)
            flock(claim, LOCK_EX)
            joined = cls(folder, who, written, owner, claim, now)
            joined._write({})
            return joined

    def _write(self, amounts: dict[str, int]) -> None:
        # In place: a file put in its place would not be the one that is locked.
        what = {"who": self._who, "pid": os.getpid(), "host": socket.gethostname(), "gpus": amounts}
        data = json.dumps(what).encode() + b"\n"
        os.pwrite(self._claim, data, 0)
        os.ftruncate(self._claim, len(data))

    def change(self, act: Callable[[Ledger], Ledger]) -> Ledger:
        """Let ``act`` look at the ledger and tell what it shall be; only the own claim may differ.

        :raises GpuError: ``act`` did; nothing is changed then.
        """
        with _locked(self._folder):
            after = act(_read(self._folder, self._total))
            self._write(dict(after.claims.get(self.owner, {})))
        return after

    def note(self, wrong: GpuError) -> None:
        """Add an error to the file of faults."""
        line = {
            "time": self._now(),
            "who": self._who,
            "pid": os.getpid(),
            "kind": wrong.kind,
            "what": str(wrong),
        }
        file = _open(self._folder / "faults", os.O_APPEND)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
        finally:
            os.close(file)

    def leave(self) -> None:
        """Give everything back, as the process's end does by itself."""
        os.close(self._claim)
