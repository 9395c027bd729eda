"""The scripts beside the package: the scan for secrets, and the making of .env."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
    ]
    assert [number for number, _ in secret_scan.scan("\n".join(lines))] == [1, 2, 3, 4]


def test_ordinary_text_is_no_secret(secret_scan: ModuleType) -> None:
    """Names, placeholders and marked lines are left alone."""
    lines = [
        "VLLM_API_KEY=${VLLM_API_KEY:?put VLLM_API_KEY into .env}",
        "api_key = settings.get_the_key_from_somewhere_2()",
        f"KEY={secrets.token_hex(32)}  # no secret",
        "VLLM_API_KEY=<your hex token>",
    ]
    assert list(secret_scan.scan("\n".join(lines))) == []


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
    for given in ("A=1\n", "A=1\nVLLM_API_KEY=\nB=2\n"):
        (tmp_path / ".env").write_text(given)
        text = make_env(tmp_path)
        assert len(key_of(text)) == 64
        assert [line for line in text.splitlines() if not line.startswith("VLLM")] == [
            line for line in given.splitlines() if not line.startswith("VLLM")
        ]


def test_an_env_with_a_key_is_kept(tmp_path: Path) -> None:
    """An .env with a key is never changed."""
    (tmp_path / ".env").write_text("VLLM_API_KEY=mine-and-long-enough\n")
    assert make_env(tmp_path) == "VLLM_API_KEY=mine-and-long-enough\n"


def test_what_an_image_needs_is_told() -> None:
    """What always is needed, and beside it the extras that are named."""

    def needed(*extras: str) -> list[str]:
        script = [sys.executable, str(ROOT / "scripts" / "requirements.py"), *extras]
        told = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout
        return [line.partition(">")[0] for line in told.splitlines()]

    always = needed()
    assert "Twisted[tls]" in always
    assert needed("otel", "nvml") == [
        *always,
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-sdk",
        "nvidia-ml-py",
    ]
