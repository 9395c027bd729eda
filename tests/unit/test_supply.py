"""What is installed: locked, with hashes, and from nowhere in particular."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("post")[0]))


WANTED: dict[str, list[str]] = script("lock").wanted()


def test_there_is_a_lock_for_each_purpose() -> None:
    """For what always is needed, what an image is built with, and every extra."""
    assert {path.stem for path in LOCKS} == WANTED.keys()
    assert {"runtime", "build", "test", "otel"} <= WANTED.keys()


@pytest.mark.parametrize("name", WANTED)
def test_locks_hold_what_is_wanted(name: str) -> None:
    """Each requirement is there in a version that will do: else run `make lock`."""
    pins = script("lock").pins((ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8"))
    for requirement in WANTED[name]:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?", requirement)
        assert match is not None, requirement
        assert normal(match[1]) in pins, f"{requirement} is in no lock: run `make lock`"
        if match[2]:
            assert number(pins[normal(match[1])]) >= number(match[2]), f"{requirement}: run `make lock`"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_its_hashes(path: Path) -> None:
    """SHA-256, and nothing that says where it is to be had."""
    text = path.read_text(encoding="utf-8")
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==\S+( ; [^\n]+)? \\\n", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_locks_agree() -> None:
    """A package has one version wherever it stands."""
    versions: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in script("lock").pins(path.read_text(encoding="utf-8")).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_nothing_is_installed_without_its_hash() -> None:
    """In the image, in its test images, in the wheelhouse, and in continuous integration."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip[^&|;\n]* (?:install|wheel|download) [^&|;\n]*", dockerfile)
    assert len(installs) == 4
    assert all("--require-hashes" in each or "--no-index" in each for each in installs), installs
    for name in (".ci/images", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        downloads = re.findall(
            r"pip (?:download|install) [^\n]*--dest[^\n]*|pip install [^\n]*--target[^\n]*", text
        )
        assert downloads
        assert all("--require-hashes" in each for each in downloads), downloads
    assert "make LOCKED=1 test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_a_report_of_vulnerabilities_is_read() -> None:
    """Each with the version that mends it; what the database does not know is told apart."""
    report = {
        "dependencies": [
            {
                "name": "a",
                "version": "1",
                "vulns": [{"id": "X-1", "fix_versions": ["2", "3"]}, {"id": "X-2"}],
            },
            {"name": "b", "version": "1", "vulns": []},
            {"name": "c", "skip_reason": "not found"},
        ]
    }
    lines, looked, missed = script("audit").judge(report)
    assert lines == ["a 1: X-1, mended in 2, 3", "a 1: X-2, mended in no version yet"]
    assert (looked, missed) == (2, ["c"])


def test_an_audit_without_a_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says why and is content, unless it was required; a known vulnerability is a failure."""
    audit = script("audit")
    monkeypatch.setattr(audit, "ask", lambda *_: (None, "no such host"))
    assert (audit.main([]), audit.main(["--require"])) == (0, 2)
    assert "not to be had here (no such host)" in capsys.readouterr().out
    bad = {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1"}]}]}
    monkeypatch.setattr(audit, "ask", lambda *_: (bad, ""))
    assert audit.main([]) == 1
    assert capsys.readouterr().out == "a 1: X-1, mended in no version yet\n"
