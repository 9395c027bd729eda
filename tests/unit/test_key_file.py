"""The file of keys that the proxy has given out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmproxy.config.keys import read_rights
from llmproxy.config.model import Key, digest_of
from llmproxy.keys.store import KeyFile, mint

RIGHTS = {"routes": ["chat"], "may_start": False, "streams": 2, "expires": "2027-01-31", "priority": -3}


def reread(keys: KeyFile) -> tuple[Key, ...]:
    return KeyFile(keys.folder).read()


def test_a_key_is_there_afterwards(tmp_path: Path) -> None:
    """With its rights, and without its secret, in a file of nobody else's."""
    keys = KeyFile(str(tmp_path / "state"))
    assert keys.read() == ()
    key, secret = keys.add("site", read_rights("it", RIGHTS))
    keys.add("other", {"admin": True})
    assert key.digest == digest_of(secret)
    assert secret.startswith("llmp_")
    assert len(secret) > 40
    assert reread(keys) == keys.keys
    written = Path(keys.path).read_text()
    assert secret not in written
    assert os.stat(keys.path).st_mode & 0o777 == 0o600


def test_a_new_secret(tmp_path: Path) -> None:
    """The old one is good until it is not; ones that have ended are forgotten."""
    keys = KeyFile(str(tmp_path))
    _, first = keys.add("site", {})
    key, second = keys.rotate("site", 100.0, 0.0)
    assert (key.digest, key.former[0].digest, key.former[0].until) == (
        digest_of(second),
        digest_of(first),
        100.0,
    )
    assert reread(keys) == (key,)
    key, _ = keys.rotate("site", 300.0, 200.0)
    assert [one.digest for one in key.former] == [digest_of(second)]
    key, _ = keys.rotate("site", 250.0, 250.0)
    assert [one.digest for one in key.former] == [digest_of(second)]
    key, _ = keys.rotate("site", 0.0, 400.0)
    assert key.former == ()
    with pytest.raises(KeyError):
        keys.rotate("nobody", 0.0, 0.0)


def test_a_key_that_is_revoked(tmp_path: Path) -> None:
    """It is gone, the others stay."""
    keys = KeyFile(str(tmp_path))
    keys.add("a", {})
    keys.add("b", {})
    assert keys.revoke("a").name == "a"
    assert [key.name for key in reread(keys)] == ["b"]
    with pytest.raises(KeyError):
        keys.revoke("a")


def test_what_cannot_be_written_does_not_count(tmp_path: Path) -> None:
    """Nobody is given a key that is gone with the process."""
    (tmp_path / "file").touch()
    keys = KeyFile(str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        keys.add("a", {})
    assert keys.keys == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"keys":[{"name":"a"}]}',
        '{"keys":[{"name":"a","hash":"sha256:00"}]}',
        '{"keys":7}',
        "\0",
    ],
)
def test_a_damaged_file_is_put_aside(tmp_path: Path, content: str) -> None:
    """Its keys are refused, and the operator may look at it."""
    keys = KeyFile(str(tmp_path))
    Path(keys.path).write_text(content)
    assert keys.read() == ()
    assert Path(keys.path + ".damaged").read_text() == content
    keys.add("a", {})
    assert json.loads(Path(keys.path).read_text())["keys"][0]["name"] == "a"


def test_secrets_are_all_different() -> None:
    """And long."""
    assert len({mint() for _ in range(100)}) == 100
