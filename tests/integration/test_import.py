"""A llama-swap configuration, imported by the command and served by a real proxy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.docker_world import DockerWorld
from tests.integration.engine import DEMO_IMAGE, docker, require_docker, unique
from tests.integration.proxy import Proxy
from tests.integration.world import ROOT, ProcessWorld, World, until

SECRET = "sk-" + "s" * 40
"""A client's key, which the old file has in plain text."""


def imported(folder: Path, world: World, source: str) -> Proxy:
    """A proxy with what the command makes of a file; it is not started yet."""
    (folder / "config.yaml").write_text(source, encoding="utf-8")
    proxy = Proxy(folder, world, environment={"DEMO": "llmproxy.demo"})
    command = [sys.executable, "-m", "llmproxy"]
    for arguments in (
        ["import", "llama-swap", "config.yaml", "-o", "llmproxy.yaml"],
        ["config", "--check", "--no-docker", "llmproxy.yaml"],
    ):
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env=proxy.environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    # The proxy's own folder, and an administrator to look at it.
    made = yaml.safe_load(proxy.file.read_text(encoding="utf-8"))
    made |= {"state_dir": str(folder / "state")}
    proxy.file.write_text(yaml.safe_dump(made), encoding="utf-8")
    return proxy


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """Two models that are commands, of which one runs at a time."""
    world = ProcessWorld(tmp_path)
    source = f"""
healthCheckTimeout: 30
macros:
  "server": "{sys.executable} -m ${{env.DEMO}} --host 127.0.0.1 --port ${{PORT}}"
apiKeys: ["{SECRET}"]
models:
  "Big/Model:Q4":
    cmd: |
      # the demo stands for llama-server
      ${{server}} \\
      --served-model-name upstream
    env: ["PYTHONPATH={ROOT}", "LLMPROXY_DEMO_STARTS={tmp_path}/starts-big"]
    useModelName: upstream
    aliases: [gpt-4o]
    ttl: 300
    filters: {{setParams: {{max_tokens: 3}}}}
  small:
    cmd: ${{server}} --served-model-name ${{MODEL_ID}}
    env: ["PYTHONPATH={ROOT}", "LLMPROXY_DEMO_STARTS={tmp_path}/starts-small"]
"""
    found = imported(tmp_path, world, source)
    try:
        found.start()
        yield found
    finally:
        found.close()


def test_commands(proxy: Proxy) -> None:
    """Clients go on as they are, with their keys and names; one model makes room for the other."""
    body = {"messages": [{"role": "user", "content": "Tell me a long story"}]}
    for name in ("gpt-4o", "Big/Model:Q4"):
        answer = proxy.ask("POST", "/v1/chat/completions", {"model": name, **body}, key=SECRET)
        assert answer.status == 200, answer.body
        assert answer.json["model"] == "upstream"
        assert answer.json["usage"]["completion_tokens"] <= 3
    assert proxy.ask("POST", "/v1/chat/completions", {"model": "small", **body}, key=SECRET).status == 200
    assert proxy.ask("POST", "/v1/chat/completions", {"model": "small", **body}, key="sk-wrong").status == 401
    world = proxy.world
    until(lambda: not world.is_running("big"))
    assert (world.starts("big"), world.starts("small")) == (1, 1)
    assert SECRET not in proxy.file.read_text(encoding="utf-8")


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_a_container(tmp_path: Path) -> None:
    """What was ``docker run`` is a container of llmproxy's own: arguments, environment, volumes."""
    require_docker("demo")
    name = unique("imported")
    (tmp_path / "seen").mkdir()
    source = f"""
models:
  demo:
    proxy: http://127.0.0.1:${{PORT}}
    cmd: >
      docker run --rm --init --name {name} -p ${{PORT}}:8080
      -e LLMPROXY_DEMO_STARTS=/seen/starts -v {tmp_path}/seen:/seen
      {DEMO_IMAGE} python3 -m llmproxy.demo --host 0.0.0.0 --port 8080 --served-model-name demo
    cmdStop: docker stop {name}
"""
    proxy = imported(tmp_path, DockerWorld(tmp_path), source)
    try:
        proxy.start()
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        # The file has no keys: the environment's is the only one.
        answer = proxy.ask("POST", "/v1/chat/completions", body, key=proxy.environ()["VLLM_API_KEY"])
        assert answer.status == 200, answer.body
        assert docker("inspect", "--format", "{{.State.Running}}", name) == "true"
        assert len((tmp_path / "seen" / "starts").read_text().splitlines()) == 1
    finally:
        proxy.close()
        docker("rm", "-f", "-v", name, check=False)
