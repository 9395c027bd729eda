"""The scripts beside the package: the scan for secrets, and the making of .env."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def secret_scan() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("secret_scan", ROOT / "scripts" / "secret_scan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_secrets_are_found(secret_scan: ModuleType) -> None:
    """Keys of known forms and random text assigned to a secret's name are told by line."""
    lines = [
        f"VLLM_API_KEY={secrets.token_hex(32)}",
        "hf_" + secrets.token_hex(18),
        f'token: "{secrets.token_hex(16)}"',
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + secrets.token_hex(20),
        "llmp_" + secrets.token_urlsafe(32),
        "TUNNEL_TOKEN=eyJ" + secrets.token_hex(60),
        "pip install --index-url https://me:" + "swordfish@pypi.example/simple",
    ]
    assert [number for number, *_ in secret_scan.scan("\n".join(lines))] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_ordinary_text_is_no_secret(secret_scan: ModuleType) -> None:
    """Names, placeholders and marked lines are left alone."""
    lines = [
        "VLLM_API_KEY=${VLLM_API_KEY:?put VLLM_API_KEY into .env}",
        "api_key = settings.get_the_key_from_somewhere_2()",
        f"KEY={secrets.token_hex(32)}  # no secret",
        "VLLM_API_KEY=<your hex token>",
        "task-sk-0123456789abcdef0123456789abcdef0123",
        "http://$user:$password@host and http://{user}:{password}@host",
    ]
    assert list(secret_scan.scan("\n".join(lines))) == []


@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    """Whatever stands there, places are lines of it."""
    spec = importlib.util.spec_from_file_location("secret_scan", ROOT / "scripts" / "secret_scan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(1 <= number <= text.count("\n") + 1 for number, *_ in module.scan(text))


class Repository:
    """A checkout of its own with the script in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "secret_scan.py", folder / "scripts")
        self.git("init", "-q")

    def git(self, *arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(
            ["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True, timeout=20
        )

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x")

    def scan(self, *arguments: str) -> tuple[int, list[str]]:
        """Exit status, and the lines."""
        done = subprocess.run(
            [sys.executable, "scripts/secret_scan.py", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()


def test_a_secret_is_told_by_its_place_and_not_shown(tmp_path: Path) -> None:
    """File, line and kind, and exit status 1; nothing but its first letters."""
    repository = Repository(tmp_path)
    secret = "hf_" + secrets.token_hex(18)
    repository.write("a.txt", f"one\ntwo {secret}\n")
    status, lines = repository.scan()
    assert status == 1
    assert lines == [
        "a.txt:2: Hugging Face token: hf_*** (39 characters)".replace("hf_*", secret[:4] + "*"),
        "1 suspicious place",
    ]
    assert secret not in str(lines)


def test_the_history_keeps_what_was_taken_away(tmp_path: Path) -> None:
    """What was committed once is found in its commit; --no-history leaves it out."""
    repository = Repository(tmp_path)
    repository.write("a.txt", "hf_" + secrets.token_hex(18) + "\n")
    repository.write(".env", "A=1\n")
    repository.commit()
    repository.git("rm", "-q", "a.txt", ".env")
    repository.commit()
    status, lines = repository.scan()
    assert status == 1
    assert [line.split(":")[1:4] for line in lines[:-1]] == [
        [".env", "1", " a file that holds secrets"],
        ["a.txt", "1", " Hugging Face token"],
    ]
    assert repository.scan("--no-history") == (0, ["0 suspicious places"])


def test_what_is_about_to_be_committed(tmp_path: Path) -> None:
    """--staged looks at the next commit alone."""
    repository = Repository(tmp_path)
    repository.write("old.txt", "hf_" + secrets.token_hex(18) + "\n")
    repository.commit()
    repository.write("new.txt", "a\nb\n")
    repository.git("add", "new.txt")
    assert repository.scan("--staged")[0] == 0
    repository.write("new.txt", "a\nkey=" + secrets.token_hex(20) + "\n")
    repository.git("add", "new.txt")
    status, lines = repository.scan("--staged")
    assert (status, lines[0].split(": ")[0]) == (1, "new.txt:2")


def test_what_is_known_to_be_none(tmp_path: Path) -> None:
    """The list says where which text may stand; a rule without a text is refused."""
    repository = Repository(tmp_path)
    made_up = "hf_" + "abc123" * 6
    repository.write("test_a.py", made_up)
    repository.write(".secretscan-allow", "# made up\ntest_*.py  hf_(?:abc123){6}\n")
    assert repository.scan()[0] == 0
    repository.write("other.py", made_up)
    assert repository.scan()[0] == 1
    repository.write(".secretscan-allow", "test_*\n")
    done = subprocess.run(
        [sys.executable, "scripts/secret_scan.py"], cwd=tmp_path, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert b".secretscan-allow:1: write a path" in done.stderr


def test_no_secret_is_in_this_repository() -> None:
    """Neither in the tree nor in the history, and that is quickly known."""
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode != 0:
        pytest.skip("this is no checkout of Git")
    done = subprocess.run(
        [sys.executable, "scripts/secret_scan.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_hooks_and_the_other_scanner_are_set_up() -> None:
    """The hooks name what there is, and the list for gitleaks is one that it can read."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    each = {hook["id"]: hook for repo in hooks["repos"] for hook in repo["hooks"]}
    assert {"gitleaks", "ruff-check", "ruff-format", "secret-scan"} <= each.keys()
    assert (ROOT / each["secret-scan"]["entry"].split()[1]).is_file()
    gitleaks = tomllib.loads((ROOT / ".gitleaks.toml").read_text(encoding="utf-8"))
    assert gitleaks["extend"]["useDefault"] is True
    forms = [
        form
        for allowed in gitleaks["allowlists"]
        for form in allowed.get("regexes", allowed.get("paths", []))
    ]
    assert all(re.compile(form) for form in forms)
    (rule,) = gitleaks["rules"]
    assert re.search(rule["regex"], f"HF_TOKEN={secrets.token_hex(16)}")


def make_env(folder: Path) -> str:
    """Run the script as it stands in a checkout, and give what .env holds then."""
    (folder / "scripts").mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts" / "make_env.sh", folder / "scripts")
    shutil.copy(ROOT / ".env.example", folder)
    ran = subprocess.run(
        ["sh", "scripts/make_env.sh"], cwd=folder, check=True, capture_output=True, text=True, timeout=20
    )
    text = (folder / ".env").read_text()
    key = next(line for line in text.splitlines() if line.startswith("VLLM_API_KEY=")).partition("=")[2]
    assert key not in ran.stdout + ran.stderr
    return text


def key_of(text: str) -> str:
    """The key in an .env file."""
    (line,) = (line for line in text.splitlines() if line.startswith("VLLM_API_KEY="))
    return line.partition("=")[2]


def test_env_is_made_once(tmp_path: Path) -> None:
    """A missing .env is made with a key of 64 hexadecimal digits, for its owner only, and then kept."""
    text = make_env(tmp_path)
    assert len(bytes.fromhex(key_of(text))) == 32
    assert stat.S_IMODE(os.stat(tmp_path / ".env").st_mode) == 0o600
    assert make_env(tmp_path) == text


def test_env_without_a_key_gets_one(tmp_path: Path) -> None:
    """An .env without a key, or with an empty one, gets one; the rest of it stays."""
    for before in ("A=1\n", "A=1\nVLLM_API_KEY=\nB=2\n"):
        (tmp_path / ".env").write_text(before)
        text = make_env(tmp_path)
        assert len(key_of(text)) == 64
        assert [line for line in text.splitlines() if not line.startswith("VLLM")] == [
            line for line in before.splitlines() if not line.startswith("VLLM")
        ]


def test_an_env_with_a_key_is_kept(tmp_path: Path) -> None:
    """An .env with a key is never changed."""
    (tmp_path / ".env").write_text("VLLM_API_KEY=mine-and-long-enough\n")
    assert make_env(tmp_path) == "VLLM_API_KEY=mine-and-long-enough\n"
