"""``llmproxy doctor`` as it is typed and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies

from llmproxy.cli import doctor_command
from llmproxy.cli.doctor_command import finding_lines, summary
from llmproxy.cli.main import cli
from llmproxy.doctor.doctor_client import Finding, main

FOUND = [
    Finding("docker.engine", "fail", "There is no engine.", "Install it."),
    Finding("disk.state", "ok", "Enough."),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and an environment without keys."""
    monkeypatch.chdir(tmp_path)
    for name in ("VLLM_API_KEY", "LLMPROXY_ADMIN_KEY", "LLMPROXY_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def doctor(*arguments: str) -> Result:
    """Type it."""
    return CliRunner().invoke(cli, ["doctor", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "m"), "go with --from-client"),
        (("--key-env", "X"), "go with --from-client"),
        (("--timeout", "5"), "go with --from-client"),
        (("--from-client", "http://h", "--demo"), "neither --config nor --demo"),
        (("--from-client", "ftp://h"), "must be an address"),
        (("--from-client", "http://me:sesame@h"), "must not have a user or password"),
        (("--from-client", "http://h", "--key-env", "NOT_SET"), "NOT_SET"),
        (("--from-client", "http://h", "--timeout", "0"), "--timeout"),
        (("extra",), "extra"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    """Status 2, and what is wrong; before anything is looked at."""
    done = doctor(*arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert "sesame" not in done.output


def test_a_wrong_address_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMPROXY_URL has to be one."""
    monkeypatch.setenv("LLMPROXY_URL", "nowhere://")
    done = doctor()
    assert done.exit_code == 2
    assert "must be an address" in done.output


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections, findings, fixes and sums; status 1 with a failure, plain where there is no terminal."""
    monkeypatch.setattr(doctor_command, "_from_here", lambda *_, **__: iter(FOUND))
    done = doctor()
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "Docker",
        "  fail     There is no engine.",
        "           fix: Install it.",
        "",
        "Disk space",
        "  ok       Enough.",
        "",
        "1 failed, 0 warnings, 1 ok, 0 skipped.",
    ]
    monkeypatch.setattr(doctor_command, "_from_here", lambda *_, **__: iter(FOUND[1:]))
    assert doctor().exit_code == 0
    told = json.loads(doctor("--json").output)
    assert told == {
        "ok": True,
        "counts": {"ok": 1, "warn": 0, "fail": 0, "skipped": 0},
        "findings": [{"check": "disk.state", "status": "ok", "finding": "Enough.", "fix": None}],
    }


@given(
    strategies.text(max_size=300),
    strategies.none() | strategies.text(max_size=300),
    strategies.integers(1, 200),
)
def test_findings_of_any_length(text: str, fix: str | None, width: int) -> None:
    """Each begins with its status, and every line after it is below its text."""
    lines = finding_lines(Finding("a.b", "warn", text, fix), width)
    assert lines[0].plain.startswith("  warn")
    assert all(line.plain.startswith(" " * 11) for line in lines[1:])


def test_the_sums() -> None:
    """One of each."""
    every = [Finding("a.b", status, "x") for status in ("ok", "warn", "fail", "skipped")]
    assert summary(every) == "1 failed, 1 warning, 1 ok, 1 skipped."


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ftp://x"],
        ["http://h", "--key-env", "NOT_SET"],
        ["http://h", "--timeout", "0"],
        ["http://me:sesame@h"],
    ],
)
def test_wrong_usage_of_the_file_alone(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, too, with the same status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "sesame" not in capsys.readouterr().err
