"""The document that is kept between runs."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.fleet.state_file import GATHER, LARGEST, StateFile


class StateFileTests(SynchronousTestCase):
    """A document of two parts in a folder that is not there yet."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name, "state", "llmproxy")
        self.path = self.folder / "state.json"
        self.clock = Clock()
        self.values: dict[str, Any] = {"learned": {"a": 1}, "history": [1, 2]}
        self.events: list[dict[str, Any]] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def file(self) -> StateFile:
        """Another run's."""
        parts = {name: (lambda name=name: self.values[name]) for name in self.values}
        return StateFile(self.clock, str(self.folder), parts)

    def warnings(self) -> int:
        """How much was told since the last time."""
        warnings = [event for event in self.events if event["log_level"] >= LogLevel.warn]
        self.events.clear()
        return len(warnings)

    def test_what_was_written_is_read(self) -> None:
        """By another run, and nothing else is left in the folder; for the owner's eyes alone."""
        file = self.file()
        self.assertEqual(file.read(), {})
        file.changed()
        file.close()
        self.assertEqual(self.file().read(), self.values)
        self.assertEqual(os.listdir(self.folder), ["state.json"])
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.assertEqual(self.warnings(), 0)

    def test_changes_are_gathered(self) -> None:
        """The first one sets the time of the write, and the parts are asked then."""
        file = self.file()
        file.changed()
        self.clock.advance(GATHER - 0.1)
        self.values["learned"] = {"a": 2}
        file.changed()
        self.assertFalse(self.path.exists())
        self.clock.advance(0.1)
        self.assertEqual(json.loads(self.path.read_bytes()), self.values)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_end_writes_what_is_not_written(self) -> None:
        """Once, and nothing that comes afterwards."""
        file = self.file()
        file.close()
        self.assertFalse(self.path.exists())
        file = self.file()
        file.changed()
        file.close()
        self.path.unlink()
        file.changed()
        file.close()
        self.assertFalse(self.path.exists())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_damaged_one_is_put_aside(self) -> None:
        """With one warning; the next write begins afresh."""
        self.folder.mkdir(parents=True)
        for damage in (b'{"learned": {"a"', b"", b"[]", b"\xff", b"NaN", b"[" * 100_000, b" " * 3 * LARGEST):
            self.path.write_bytes(damage)
            file = self.file()
            self.assertEqual(file.read(), {}, damage[:20])
            self.assertEqual(self.warnings(), 1)
            self.assertEqual(Path(f"{self.path}.damaged").read_bytes(), damage)
            file.changed()
            file.close()
            self.assertEqual(self.file().read(), self.values)
            self.assertEqual(self.warnings(), 0)

    def test_one_that_cannot_be_read_starts_afresh(self) -> None:
        """It is left where it is."""
        self.path.mkdir(parents=True)
        self.assertEqual(self.file().read(), {})
        self.assertEqual(self.warnings(), 1)
        self.assertTrue(self.path.is_dir())

    def test_a_folder_that_cannot_be_written_is_told_once(self) -> None:
        """Until it could be written in between."""
        self.folder.parent.mkdir(parents=True)
        self.folder.write_text("no folder")
        file = self.file()
        for _ in range(3):
            file.changed()
            self.clock.advance(GATHER)
        self.assertEqual(self.warnings(), 1)
        self.folder.unlink()
        file.changed()
        self.clock.advance(GATHER)
        self.assertEqual(self.file().read(), self.values)
        self.assertEqual(self.warnings(), 0)
        self.path.unlink()
        self.folder.rmdir()
        self.folder.write_text("no folder")
        file.changed()
        file.close()
        self.assertEqual(self.warnings(), 1)

    def test_a_write_that_fails_leaves_the_last_one(self) -> None:
        """The disk is full: the document that was there is there still, and nothing beside it."""
        file = self.file()
        file.changed()
        self.clock.advance(GATHER)
        written = self.path.read_bytes()
        self.values["learned"] = {"a": 2}
        with patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            file.changed()
            file.close()
        self.assertEqual(self.path.read_bytes(), written)
        self.assertEqual(os.listdir(self.folder), ["state.json"])
        self.assertEqual(self.warnings(), 1)

    def test_a_part_that_is_too_large_is_left_out(self) -> None:
        """It is told once, and the others are kept."""
        self.values["history"] = "x" * LARGEST
        file = self.file()
        for _ in range(2):
            file.changed()
            self.clock.advance(GATHER)
        self.assertEqual(self.file().read(), {"learned": {"a": 1}})
        self.assertEqual(self.warnings(), 1)

    def test_a_part_that_fails_costs_itself(self) -> None:
        """The others are kept, and the end is an ordered one."""
        del self.values["learned"]
        file = self.file()
        file.parts = {"learned": lambda: 1 / 0, **file.parts}
        file.changed()
        file.close()
        self.assertEqual(self.file().read(), {"history": [1, 2]})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate is no text that could be written.
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), JSON, max_size=3))
def test_any_document(document: dict[str, Any]) -> None:
    """What goes in comes out."""
    with tempfile.TemporaryDirectory() as folder:
        parts = {name: (lambda name=name: document[name]) for name in document}
        file = StateFile(Clock(), folder, parts)
        with patch("os.fsync"):
            file.changed()
            file.close()
        assert StateFile(Clock(), folder, {}).read() == document


@given(st.binary(max_size=50))
def test_any_damage(content: bytes) -> None:
    """Reading never fails, whatever stands there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        path.write_bytes(content)
        assert isinstance(StateFile(Clock(), folder, {}).read(), dict)
