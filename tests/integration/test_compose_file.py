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
OPTIONAL = {"open-webui": "webui", "prometheus": "monitoring", "grafana": "monitoring"}


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
    assert launcher["read_only"] is True
    assert [mount.partition(":")[0] for mount in launcher["tmpfs"]] == ["/tmp"]
    assert "user" not in launcher
    assert "privileged" not in launcher


def test_compose_reads_it() -> None:
    """The real Compose accepts the file with every profile, and fills the variables in."""
    flags = [part for profile in PROFILES for part in ("--profile", profile)]
    ran = compose(*flags, "config", VLLM_API_KEY="k", IDLE_SECONDS="7", DOCKER_GID="0", MODEL_BIND="10.0.0.1")
    assert ran.returncode == 0, ran.stderr
    services = yaml.safe_load(ran.stdout)["services"]
    # Version 1.29 lists those of other profiles, too.
    assert {*MODELS, "launcher"} <= set(services) <= {*MODELS, "launcher", *OPTIONAL}
    assert services["launcher"]["environment"]["IDLE_SECONDS"] == "7"
    assert services["coder3b"]["environment"]["VLLM_API_KEY"] == "k"
    assert "10.0.0.1" in str(services["coder3b"]["ports"])


def test_compose_wants_a_key() -> None:
    """Without VLLM_API_KEY nothing starts, and Compose says where to put it."""
    ran = compose("--profile", "launcher", "config")
    assert ran.returncode != 0
    assert "put VLLM_API_KEY into .env" in ran.stderr


def test_what_stands_beside_it(stack: dict[str, Any]) -> None:
    """Open WebUI, Prometheus and Grafana have profiles and volumes of their own, pinned versions, a restart
    policy, and loopback addresses."""
    beside = {name: each for name, each in stack["services"].items() if name not in (*MODELS, "launcher")}
    assert beside.keys() == OPTIONAL.keys()
    for name, service in beside.items():
        assert service["profiles"] == [OPTIONAL[name]]
        assert re.search(r":v?\d+\.\d+\.\d+\}$", service["image"]), service["image"]
        assert service["restart"] == "unless-stopped"
        (port,) = service["ports"]
        assert re.fullmatch(r"\$\{\w+_BIND:-127\.0\.0\.1\}:\d+:\d+", port)
        named = [each.partition(":")[0] for each in service["volumes"] if not each.startswith(".")]
        assert named
        assert set(named) <= stack["volumes"].keys()
        for volume in service["volumes"]:
            if volume.startswith("."):
                assert (ROOT / volume.partition(":")[0]).exists(), volume
    ran = compose("--profile", "webui", "--profile", "monitoring", "config", VLLM_API_KEY="k")
    assert ran.returncode == 0, ran.stderr


def test_prometheus_beside_it_is_as_the_one_that_is_shipped() -> None:
    """It differs in where llmproxy and the key are, and in nothing else."""
    folder = ROOT / "deploy" / "prometheus"
    shipped, beside = (
        yaml.safe_load((folder / f"{name}.yml").read_text()) for name in ("prometheus", "compose")
    )
    written = yaml.safe_dump(shipped).replace("127.0.0.1:8000", "launcher:8000")
    assert yaml.safe_load(written.replace("llmproxy.key", "/tmp/llmproxy.key")) == beside


def test_grafana_finds_what_it_is_given(stack: dict[str, Any]) -> None:
    """Its dashboard lies where its provider looks, and its source of data is the Prometheus beside it."""
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "llmproxy.yml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    grafana = stack["services"]["grafana"]
    assert any(f":{provider['options']['path']}/llmproxy.json:ro" in each for each in grafana["volumes"])
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/llmproxy.json"
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in stack["services"]


def test_env_example_has_the_names() -> None:
    """.env.example has what the README tells to fill in, and no secret."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    for line in ("VLLM_API_KEY=", "COMPOSE_PROJECT_NAME=llmproxy", "HF_TOKEN="):
        assert line in lines


def test_env_example_is_complete(stack: dict[str, Any]) -> None:
    """Every variable that the compose file or the proxy reads is in .env.example, and nothing else."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    told = re.findall(r"^#?([A-Z][A-Z_]+)=", text, re.MULTILINE)
    assert len(told) == len(set(told))
    read = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT)) | set(_DOCUMENTED.findall(_environment_table()))
    assert set(told) == read - {"OTEL_"}  # a family
    # What is commented out shows the default that the compose file has.
    defaults = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]+)\}", TEXT))
    shown = dict(re.findall(r"^#([A-Z][A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert {name: shown[name] for name in defaults if name in shown} == {
        name: value for name, value in defaults.items() if name in shown
    }


_DOCUMENTED = re.compile(r"`([A-Z][A-Z_]+)`")


def _environment_table() -> str:
    """The table of variables in docs/configuration.md, names only."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = text.partition("## Environment")[2].partition("\n## ")[0]
    return "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
