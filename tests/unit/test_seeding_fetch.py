"""The script that downloads in the model's own image, with a hub that is made for it."""

from __future__ import annotations

import builtins
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmproxy.seeding import fetch

GIB = 2**30


class Hub:
    """Has one model; what was asked of it is remembered.

    :ivar sizes: its files; None: the hub does not say.
    :ivar there: those that the cache has.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.sizes: dict[str, int | None] = {"config.json": 2, "a.safetensors": 100, "a.bin": 90, "odd": None}
        self.there: set[str] = set()
        self.loaded: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def model_info(self, repository: str, **how: Any) -> Any:
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in self.sizes.items()]
        return SimpleNamespace(siblings=files, sha=f"{how['revision'] or 'main'}-1")

    def in_cache(self, repository: str, name: str, *, cache_dir: str, revision: str) -> Any:
        assert (cache_dir, revision) == (str(self.cache), "main-1")
        return str(self.cache / name) if name in self.there else None

    def load(self, repository: str, **how: Any) -> str:
        if self.error is not None:
            raise self.error
        self.loaded.append({"repository": repository, **how})
        return "/snapshot"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub, and the machine's own cache."""
    found = Hub(tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.load)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", found.in_cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(found.cache))
    return found


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


WANTED = {"repository": "org/m"}


def test_what_is_missing_is_downloaded(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told first how much that is; weights come in one form alone."""
    hub.there = {"config.json"}
    fetch.fetch({}, WANTED)
    plan, *_, done = told(capsys)
    assert (plan["files"], plan["bytes"], plan["had"]) == (3, 102, 2)
    assert plan["cache"] == str(hub.cache)
    assert done == {"event": "done", "repository": "org/m", "bytes": 102, "path": "/snapshot"}
    (loaded,) = hub.loaded
    assert loaded["allow_patterns"] == ["config.json", "a.safetensors", "odd"]
    assert (loaded["revision"], loaded["cache_dir"]) == (None, str(hub.cache))


def test_names_are_no_patterns(hub: Hub) -> None:
    """A file whose name has a bracket or a star in it is that file."""
    hub.sizes = {"a[1]*.json": 1}
    fetch.fetch({}, WANTED)
    assert hub.loaded[0]["allow_patterns"] == ["a[[]1][*].json"]


def test_a_disk_that_is_too_small(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is downloaded; what an earlier try has left of a file counts."""
    hub.sizes = {"a.safetensors": 5 * GIB}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * GIB))
    with pytest.raises(SystemExit, match=r"^Not enough free disk space: 5368709120 bytes are missing"):
        fetch.fetch({}, WANTED)
    assert hub.loaded == []
    blobs = hub.cache / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    with open(blobs / "x.incomplete", "wb") as partial:
        partial.truncate(3 * GIB)
    fetch.fetch({}, WANTED)
    assert len(hub.loaded) == 1


def test_a_cache_that_is_lost_with_its_container(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded into a container where a volume was wanted."""
    real: Callable[..., Any] = builtins.open

    def mounts(path: Any, *words: Any, **how: Any) -> Any:
        if path != "/proc/self/mountinfo":
            return real(path, *words, **how)
        file = hub.cache / "mounts"
        file.write_text(f"1 0 0:1 / {where} rw - ext4 x rw\n")
        return real(file, *words, **how)

    monkeypatch.setattr(builtins, "open", mounts)
    where = "/"
    with pytest.raises(SystemExit, match=r"^No volume: "):
        fetch.fetch({"volume": True}, WANTED)
    assert hub.loaded == []
    where = str(hub.cache)
    fetch.fetch({"volume": True}, WANTED)
    assert len(hub.loaded) == 1


def test_a_download_that_fails(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not told as done, and nobody goes on telling how far it is."""
    hub.error = OSError("the hub is away")
    before = threading.active_count()
    with pytest.raises(OSError, match="the hub is away"):
        fetch.fetch({"cache": str(hub.cache)}, WANTED)
    assert [each["event"] for each in told(capsys)] == ["plan"]
    assert threading.active_count() == before


def test_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has grown since the beginning, never more than all of it."""
    (tmp_path / "old").write_bytes(b"x" * 10)

    class Looks(threading.Event):
        sizes = iter((5, 500))

        def wait(self, timeout: float | None = None) -> bool:
            size = next(self.sizes, None)
            if size is not None:
                (tmp_path / "new").write_bytes(b"x" * size)
            return size is None

    fetch.watch(Looks(), str(tmp_path), 100, 20)
    assert [each["bytes"] for each in told(capsys)] == [25, 100]


def test_the_size_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all files, or of those with an ending; one that has just been given another name is left out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.incomplete").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"1234")
    assert (fetch.size_of(str(tmp_path)), fetch.size_of(str(tmp_path), ".incomplete")) == (7, 3)
    real = os.lstat

    def moved(path: str) -> os.stat_result:
        if path.endswith("/y"):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "lstat", moved)
    assert fetch.size_of(str(tmp_path)) == 3


def test_nobody_listens_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with its input: whoever has started it has gone."""
    left = [b"a", b"b", b""]
    ended: list[int] = []
    monkeypatch.setattr(os, "read", lambda *_: left.pop(0))
    monkeypatch.setattr(os, "_exit", ended.append)
    fetch.end_with_input()
    assert (left, ended) == ([], [130])


def test_all_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, online, and with no other output than ours."""
    fetched: list[Any] = []
    order = {"wanted": [{"repository": "a"}, {"repository": "b"}]}
    monkeypatch.setattr(os, "environ", {"HF_HUB_OFFLINE": "1"})
    monkeypatch.setattr(fetch, "end_with_input", lambda: None)
    monkeypatch.setattr(fetch, "fetch", lambda whole, one: fetched.append(one["repository"]))
    monkeypatch.setattr(sys, "argv", ["fetch", json.dumps(order)])
    fetch.main()
    assert fetched == ["a", "b"]
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_a_python_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which Python that is."""
    monkeypatch.setattr(fetch, "end_with_input", lambda: None)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "argv", ["fetch", json.dumps({"wanted": []})])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match=r"^There is no huggingface_hub for "):
        fetch.main()
