"""Where usage is written down: an SQLite database in the state folder.

All of this blocks, and is called in a thread of its own.  The database is in WAL mode: what was committed is
there after a kill, and a power failure costs at most the last commits (https://sqlite.org/pragma.html,
``synchronous``).

A day's row of each account is added to, and so is no larger after a million requests than after one.  Of
requests the newest are kept.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field

from llmproxy.usage.ledger import Account, Sums
from llmproxy.usage.records import Kept, Record, StoreError

__all__ = ["NAME", "Store"]

NAME = "usage.sqlite3"

VERSION = 1
"""Of the tables, as ``PRAGMA user_version`` has it."""

_TABLES = """
CREATE TABLE usage (
    day TEXT NOT NULL, backend TEXT NOT NULL, key TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt INTEGER NOT NULL, completion INTEGER NOT NULL, estimated INTEGER NOT NULL,
    held REAL NOT NULL, gpu REAL NOT NULL,
    PRIMARY KEY (day, backend, key)
) WITHOUT ROWID;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL, at REAL NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    backend TEXT NOT NULL, key TEXT NOT NULL, client TEXT NOT NULL, status INTEGER NOT NULL,
    outcome TEXT NOT NULL, held REAL NOT NULL, first_byte REAL, seconds REAL NOT NULL,
    prompt INTEGER, completion INTEGER, estimated INTEGER NOT NULL,
    received INTEGER NOT NULL, sent INTEGER NOT NULL
);
"""

_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, backend, key) DO UPDATE SET
    requests = requests + excluded.requests, prompt = prompt + excluded.prompt,
    completion = completion + excluded.completion, estimated = estimated + excluded.estimated,
    held = held + excluded.held, gpu = gpu + excluded.gpu
"""

_COLUMNS = (
    "request_id, at, method, path, backend, key, client, status, outcome, held, first_byte, seconds, prompt,"
    " completion, estimated, received, sent"
)


_ESTIMATED = 1 + Record._fields.index("estimated")


@define(eq=False)
class Store:
    """The database; opened when it is first used.

    :ivar folder: where it stands; made when it is missing.
    :ivar kept: how much of it is kept, as it is wanted at the time.
    :ivar notes: what is to be told to the operator; taken by whoever tells it.
    """

    folder: str
    kept: Callable[[], Kept]
    notes: list[str] = field(factory=list)
    _database: sqlite3.Connection | None = field(default=None, init=False)

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(self.folder, NAME)

    def write(self, sums: Mapping[Account, Sums], records: Sequence[Record], today: str) -> None:
        """Add to what is there, all of it or nothing.

        :raises StoreError: it cannot be written.
        """
        kept = self.kept()
        try:
            database = self._open()
            with database:
                database.executemany(
                    _ADD,
                    (
                        (*account, one.requests, one.prompt, one.completion, one.estimated, one.held, one.gpu)
                        for account, one in sums.items()
                    ),
                )
                if records:
                    self._add(database, records[-kept.history :] if kept.history else (), kept.history)
                database.execute("DELETE FROM usage WHERE day < date(?, ?)", (today, f"-{kept.days} days"))
        except (sqlite3.Error, OSError) as cause:
            raise self._failed(cause) from cause

    @staticmethod
    def _add(database: sqlite3.Connection, records: Sequence[Record], most: int) -> None:
        places = ", ".join("?" * len(Record._fields))
        database.executemany(f"INSERT INTO requests ({_COLUMNS}) VALUES ({places})", records)
        newest = database.execute("SELECT max(id) FROM requests").fetchone()[0]
        if newest is not None:
            database.execute("DELETE FROM requests WHERE id <= ?", (newest - most,))

    def requests(self, limit: int, before: int | None, where: Mapping[str, str]) -> list[dict[str, Any]]:
        """Requests, the newest first.

        :param before: only those with a smaller id.
        :param where: what ``backend``, ``key`` and ``outcome`` have to be.
        :raises StoreError: it cannot be read.
        """
        clauses = [f"{name} = ?" for name in where if name in ("backend", "key", "outcome")]
        values: list[Any] = list(where.values())
        if before is not None:
            clauses.append("id < ?")
            values.append(before)
        condition = f" WHERE {' AND '.join(clauses)}" if clauses else ""
        asked = f"SELECT id, {_COLUMNS} FROM requests{condition} ORDER BY id DESC LIMIT ?"
        return [
            {**dict(zip(("id", *Record._fields), row, strict=True)), "estimated": bool(row[_ESTIMATED])}
            for row in self._all(asked, (*values, limit))
        ]

    def usage(self, by: Sequence[str], first: str, last: str) -> list[dict[str, Any]]:
        """Sums of the days from ``first`` to ``last``, both included, for each of what ``by`` names."""
        names = [name for name in by if name in ("day", "backend", "key")]
        group = ", ".join(names)
        sums = "sum(requests), sum(prompt), sum(completion), sum(estimated), sum(held), sum(gpu)"
        asked = f"SELECT {group}{', ' if group else ''}{sums} FROM usage WHERE day BETWEEN ? AND ?" + (
            f" GROUP BY {group} ORDER BY {group}" if group else " HAVING count(*)"
        )
        told = (*names, "requests", "prompt", "completion", "estimated", "held", "gpu")
        return [dict(zip(told, row, strict=True)) for row in self._all(asked, (first, last))]

    def close(self) -> None:
        """Let the file go."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def _all(self, asked: str, values: Iterable[Any]) -> list[Any]:
        try:
            return self._open().execute(asked, tuple(values)).fetchall()
        except (sqlite3.Error, OSError) as cause:
            raise self._failed(cause) from cause

    def _failed(self, cause: Exception) -> StoreError:
        self.close()
        # Of that very class is only what says that the file is none of SQLite's, or malformed.
        if type(cause) is sqlite3.DatabaseError:
            self._put_aside(str(cause))
        return StoreError(f"{self.path}: {cause}")

    def _put_aside(self, why: str) -> None:
        """A damaged database is kept under another name, and a new one is begun."""
        with suppress(OSError):
            os.replace(self.path, self.path + ".damaged")
            for rest in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(self.path + rest)
            self.notes.append(f"{self.path} is damaged ({why}); it is kept as {self.path}.damaged")

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            # What is in it is nobody else's business; SQLite gives its other files the mode of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # Each of its threads is the only one at its time.
            database = sqlite3.connect(self.path, timeout=5, check_same_thread=False)
            try:
                self._prepare(database)
            except BaseException:  # whatever it is, the file is let go
                database.close()
                raise
            self._database = database
        return self._database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # 512 KiB of cache instead of 2 MiB: what is written is small.
        for setting in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -512"):
            database.execute(f"PRAGMA {setting}").close()
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION:
            return
        if version > VERSION:
            raise OSError(f"a newer llmproxy has written it: version {version}, and this one knows {VERSION}")
        database.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {VERSION};COMMIT;")
