"""``llmproxy import llama-swap``: where the new file goes, what is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from llmproxy.cli.main import cli

SOURCE = "logTimeFormat: ansic\nmodels: {a: {cmd: 'server --port ${PORT} --key ${env.LLAMA_KEY}'}}\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of llama-swap's, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA_KEY", raising=False)
    (tmp_path / "config.yaml").write_text(SOURCE, encoding="utf-8")
    return tmp_path / "config.yaml"


def run(*arguments: str, stdin: str | None = None) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli, ["import", "llama-swap", *arguments], input=stdin)


def test_to_standard_output(source: Path) -> None:
    """The new file is on standard output, and what is not as it was on standard error."""
    done = run("config.yaml")
    assert done.exit_code == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    assert made["backends"]["a"]["command"] == ["server", "--port", "${port}", "--key", "${LLAMA_KEY}"]
    assert "left out: line 1, logTimeFormat: " in done.stderr
    assert "the environment has no LLAMA_KEY yet" in done.stderr
    # In the file, too.
    assert "# - left out: line 1, logTimeFormat: " in done.stdout


def test_to_a_file(source: Path) -> None:
    """-o writes a file that `llmproxy config --check` takes, and none that is there is lost."""
    done = run("config.yaml", "-o", "llmproxy.yaml")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    assert "llmproxy config --check llmproxy.yaml" in done.stderr
    check = ["config", "--check", "--no-docker", "llmproxy.yaml"]
    assert CliRunner().invoke(cli, check, env={"LLAMA_KEY": "k"}).exit_code == 0
    Path("llmproxy.yaml").write_text("mine", encoding="utf-8")
    again = run("config.yaml", "-o", "llmproxy.yaml")
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert Path("llmproxy.yaml").read_text(encoding="utf-8") == "mine"
    assert run("config.yaml", "-o", "llmproxy.yaml", "--force").exit_code == 0
    assert "backends:" in Path("llmproxy.yaml").read_text(encoding="utf-8")


def test_in_json(source: Path) -> None:
    """--json has the settings, the remarks with their lines, and the variables that are wanted."""
    done = run("-", "--json", stdin=SOURCE)
    told = json.loads(done.stdout)
    assert told["config"]["defaults"] == {"idle": 0}
    assert [(one["kind"], one["where"], one["line"]) for one in told["remarks"]] == [
        ("left out", "logTimeFormat", 1)
    ]
    assert told["variables"] == told["missing_variables"] == ["LLAMA_KEY"]


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("a: [", "line 1"), ("x: 1", "llama-swap")]
)
def test_what_cannot_be_converted(source: Path, text: str | None, said: str) -> None:
    """It is told in one line, with status 2."""
    source.unlink() if text is None else source.write_text(text, encoding="utf-8")
    done = run("config.yaml")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_the_proxy_would_refuse(source: Path) -> None:
    """A file that the proxy would not take is not written: here, a host that no URL can have."""
    source.write_text("models: {a: {proxy: 'ftp://x'}}", encoding="utf-8")
    done = run("config.yaml", "-o", "llmproxy.yaml")
    assert done.exit_code == 2
    assert "url must be http" in done.stderr
    assert not Path("llmproxy.yaml").exists()
