"""docker-compose.yml as its owner relies on it: read by YAML and by the real Compose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
MODELS = {
    # service: profile, route, port
    "coder3b": ("coder3b", "coder", "8001"),
    "sitechat": ("chat", "chat", "8002"),
    "qwen7b-bnb4": ("qwen7b", "qwen7b", "8003"),
}
PROFILES = ["launcher", "coder3b", "chat", "qwen7b"]


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The file, anchors resolved, variables not."""
    found = yaml.safe_load(TEXT)
    assert isinstance(found, dict)
    return found


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run whichever Compose there is, with nothing from this machine's own settings."""
    command = ["docker-compose"]
    if shutil.which("docker-compose") is None:
        plugin = subprocess.run(
            ["docker", "compose", "version"], capture_output=True, timeout=30, check=False
        )
        if plugin.returncode != 0:
            pytest.skip("neither docker-compose nor docker compose is installed")
        command = ["docker", "compose"]
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        # The folder's name is the project's, where COMPOSE_PROJECT_NAME does not say otherwise.
        [*command, "--env-file", os.devnull if command[0] == "docker" else _empty(), *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _empty() -> str:
    """docker-compose 1.29 wants a file, not a device."""
    return str(ROOT / "llmproxy" / "py.typed")


def test_models(stack: dict[str, Any]) -> None:
    """Each model has its name, profile, loopback port, labels, cache and GPU, and no restart policy."""
    for service, (profile, route, port) in MODELS.items():
        model = stack["services"][service]
        assert model["container_name"] == service
        assert model["profiles"] == [profile]
        assert model["ports"] == [f"${{MODEL_BIND:-127.0.0.1}}:{port}:{port}"]
        assert model["labels"] == {"llmproxy.route": route, "llmproxy.port": port}
        assert f"--port={port}" in model["command"]
        assert f"--served-model-name={service}" in model["command"]
        assert model["restart"] == "no"
        assert model["init"] is True
        assert model["ipc"] == "host"
        assert "${LLM_ROOT:-/srv/llm}/.cache:/root/.cache/huggingface" in model["volumes"]
        (device,) = model["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_launcher_knows_the_models(stack: dict[str, Any]) -> None:
    """The launcher's MAP__ variables name every model's container and port."""
    environment = stack["services"]["launcher"]["environment"]
    for service, (_, route, port) in MODELS.items():
        assert environment[f"MAP__{route}__container"] == service
        assert environment[f"MAP__{route}__port"] == port


def test_launcher_can_read_the_file_for_itself(stack: dict[str, Any]) -> None:
    """Whatever variable the file reads for a model is in the launcher's environment too."""
    wanted = set()
    for service in MODELS:
        wanted |= set(re.findall(r"\$\{(\w+)", yaml.safe_dump(stack["services"][service])))
    assert wanted
    assert wanted <= set(stack["services"]["launcher"]["environment"])


def test_launcher_is_confined(stack: dict[str, Any]) -> None:
    """The launcher has no capabilities, cannot gain any, and is not told to be root."""
    launcher = stack["services"]["launcher"]
    assert launcher["cap_drop"] == ["ALL"]
    assert launcher["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in launcher
    assert "privileged" not in launcher


def test_compose_reads_it() -> None:
    """The real Compose accepts the file with every profile, and fills the variables in."""
    flags = [part for profile in PROFILES for part in ("--profile", profile)]
    ran = compose(*flags, "config", VLLM_API_KEY="k", IDLE_SECONDS="7", DOCKER_GID="0", MODEL_BIND="10.0.0.1")
    assert ran.returncode == 0, ran.stderr
    services = yaml.safe_load(ran.stdout)["services"]
    assert set(services) == {*MODELS, "launcher"}
    assert services["launcher"]["environment"]["IDLE_SECONDS"] == "7"
    assert services["coder3b"]["environment"]["VLLM_API_KEY"] == "k"
    assert "10.0.0.1" in str(services["coder3b"]["ports"])


def test_compose_wants_a_key() -> None:
    """Without VLLM_API_KEY nothing starts, and Compose says where to put it."""
    ran = compose("--profile", "launcher", "config")
    assert ran.returncode != 0
    assert "put VLLM_API_KEY into .env" in ran.stderr


def test_env_example_has_the_names() -> None:
    """.env.example has what the README tells to fill in, and no secret."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    for line in ("VLLM_API_KEY=", "COMPOSE_PROJECT_NAME=llmproxy", "HF_TOKEN="):
        assert line in lines
