"""``llmproxy doctor`` as it is run: beside a real proxy, with a real Docker engine, without it or rights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llmproxy.config.model import DockerSettings
from llmproxy.doctor.gather.engine import gather_engine
from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, docker, require_docker, unique
from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY, Proxy, demo, running
from tests.integration.world import ROOT

NOWHERE = "unix:///nonexistent/docker.sock"
NOBODY = 65534


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with a backend that works and one that does not."""
    backends = {"a": demo(), "broken": demo("--exit-after", "0.1", "--exit-code", "3", "--start-delay", "60")}
    folder = tmp_path_factory.mktemp("doctor")
    with running(kind, folder, backends, environment={"DOCKER_HOST": NOWHERE}) as proxy:
        yield proxy


Found = dict[str, list[dict[str, Any]]]


def by_check(output: str) -> Found:
    """Findings by the name of their check."""
    found: Found = {}
    for each in json.loads(output)["findings"]:
        found.setdefault(each["check"], []).append(each)
    return found


def failing(found: Found) -> set[str]:
    """The checks that fail."""
    return {name for name, each in found.items() if any(one["status"] == "fail" for one in each)}


def doctor(
    folder: Path, environment: dict[str, str], *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command there."""
    return subprocess.run(
        [sys.executable, "-m", "llmproxy", "doctor", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def beside(proxy: Proxy, **more: str) -> dict[str, str]:
    """An environment that finds that proxy."""
    url = f"http://127.0.0.1:{proxy.port}"
    return {**proxy.environ(), "LLMPROXY_URL": url, "LLMPROXY_ADMIN_KEY": ADMIN, **more}


def bare(folder: Path, **more: str) -> dict[str, str]:
    """An environment with nothing of this machine's, and a proxy's address where nobody is."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "LLMPROXY_URL": url,
        **more,
    }


# -- the proxy -----------------------------------------------------------------------------------------


def test_a_proxy_that_is_well(proxy: Proxy) -> None:
    """Nothing fails; what needs no Docker does not miss it; no secret is told."""
    proxy.act("broken", "reset")
    done = doctor(proxy.folder, beside(proxy), "--json")
    found = by_check(done.stdout)
    assert failing(found) == set()
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["ok"] is True
    for check in (
        "settings.config",
        "backends.programs",
        "proxy.answers",
        "proxy.ready",
        "proxy.key",
        "proxy.version",
    ):
        assert [each["status"] for each in found[check]] == ["ok"], found[check]
    assert found["docker.engine"][0]["status"] == "skipped"
    assert not any(secret in done.stdout for secret in (KEY, ADMIN, BACKEND_KEY))


def test_a_backend_that_has_failed(proxy: Proxy) -> None:
    """It is told with its diagnosis, for a person as well, and the status is 1."""
    proxy.act("broken", "start")
    done = doctor(proxy.folder, beside(proxy))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    line = next(number for number, each in enumerate(lines) if "Backend broken has failed" in each)
    assert lines[line].startswith("  fail     ")
    assert "llmproxy restart broken" in lines[line + 1]
    assert lines[-1].startswith("1 failed, ")
    assert "\x1b" not in done.stdout


def test_another_key(proxy: Proxy) -> None:
    """The proxy's key is another one, or none is known here, or it is no administrator's; none is shown."""
    done = doctor(proxy.folder, beside(proxy, LLMPROXY_ADMIN_KEY="not-the-key-at-all"), "--json")
    assert failing(by_check(done.stdout)) == {"proxy.key"}
    assert "not-the-key-at-all" not in done.stdout
    url = f"http://127.0.0.1:{proxy.port}"
    done = doctor(proxy.folder, bare(proxy.folder, LLMPROXY_URL=url, DOCKER_HOST=NOWHERE), "--json")
    assert by_check(done.stdout)["proxy.key"][0]["status"] == "warn"
    done = doctor(proxy.folder, beside(proxy, LLMPROXY_ADMIN_KEY=KEY), "--json")
    assert "administrator" in by_check(done.stdout)["proxy.key"][0]["finding"]


def test_no_proxy_and_no_docker(tmp_path: Path) -> None:
    """Everything else is still looked at."""
    (tmp_path / "docker-compose.yml").write_text(compose("doctor-none", 18601, "/srv"))
    done = doctor(
        tmp_path, bare(tmp_path, DOCKER_HOST="unix:///nonexistent", VLLM_API_KEY="changeme"), "--json"
    )
    found = by_check(done.stdout)
    assert done.returncode == 1
    assert {"docker.engine", "proxy.answers", "settings.key"} <= failing(found)
    assert "unix:///nonexistent" in found["docker.engine"][0]["finding"]
    assert found["docker.compose_file"][0]["status"] == "ok"
    assert found["backends.containers"][0]["status"] == "skipped"
    assert "changeme" not in done.stdout


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    """They are one finding among others."""
    (tmp_path / "llmproxy.yaml").write_text("backends: {a: {prot: 8000}}\n")
    done = doctor(tmp_path, bare(tmp_path, DOCKER_HOST=NOWHERE), "--json")
    assert "prot" in by_check(done.stdout)["settings.config"][0]["finding"]
    assert done.returncode == 1


class Stranger(BaseHTTPRequestHandler):
    """A server that is not llmproxy."""

    def do_GET(self) -> None:
        """Say hello."""
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """That server, in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


def test_something_else_on_its_port(tmp_path: Path) -> None:
    """It is not taken for the proxy."""
    with serving(Stranger) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        done = doctor(tmp_path, bare(tmp_path, LLMPROXY_URL=url, DOCKER_HOST=NOWHERE), "--json")
    assert "Something else answers" in by_check(done.stdout)["proxy.answers"][0]["finding"]


# -- Docker --------------------------------------------------------------------------------------------


def compose(name: str, port: int, folder: str, image: str = DEMO_IMAGE) -> str:
    """A compose file with one model."""
    return f"""
services:
  model:
    image: {image}
    container_name: {name}
    command: [vllm, serve, m, --port=8001]
    environment: {{HF_TOKEN: hf_secretsecretsecret}}
    ports: ["127.0.0.1:{port}:8001"]
    volumes: ["{folder}:/root/.cache/huggingface"]
    labels: {{llmproxy.route: model, llmproxy.port: "8001"}}
    deploy: {{resources: {{reservations: {{devices: [{{driver: nvidia, count: 1, capabilities: [gpu]}}]}}}}}}
"""


@pytest.fixture
def name() -> Iterator[str]:
    """A container of the test's own."""
    found = unique("doctor")
    yield found
    docker("rm", "-f", "-v", found, check=False)


def free_port() -> int:
    """One that nobody has."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.docker
def test_a_real_engine(tmp_path: Path, name: str) -> None:
    """It answers; the container is to be made, then it is there, with its policy, its folder and its port."""
    require_docker("demo")
    environment = bare(tmp_path, VLLM_API_KEY="0123456789abcdef" * 2)
    if "DOCKER_HOST" in os.environ:
        environment["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    port, cache = free_port(), tmp_path / "cache"
    (tmp_path / "docker-compose.yml").write_text(compose(name, port, str(cache)))
    found = by_check(doctor(tmp_path, environment, "--json").stdout)
    assert found["docker.engine"][0]["status"] == "ok"
    assert f"model ({name}, to be made)" in found["backends.containers"][0]["finding"]
    assert found["backends.ports"][0]["status"] == "ok"
    assert "not there" in found["folders.mounts"][0]["finding"]
    assert found["disk.docker"][0]["finding"]
    assert found["clock.plausible"][0]["status"] == "ok"
    gpus = {each["status"] for each in found["gpu.runtime"]}
    assert gpus <= {"ok", "fail"}

    cache.mkdir()
    arguments = (
        "--label",
        TEST_LABEL,
        "--restart",
        "always",
        "-v",
        f"{cache}:/x",
        "-p",
        f"127.0.0.1:{port}:8001",
    )
    docker("create", "--name", name, *arguments, DEMO_IMAGE, "vllm", "serve", "m", "--port=8002")
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", port))
        other.listen(1)
        done = doctor(tmp_path, environment, "--json")
    found = by_check(done.stdout)
    assert [each["status"] for each in found["folders.mounts"]] == ["ok"]
    assert "'always'" in found["backends.restart"][0]["finding"]
    told = " ".join(each["finding"] for each in found["backends.ports"])
    assert f"Port {port} of route model is taken by another program" in told
    assert "looks for port 8001, and its server listens on 8002" in told
    assert done.returncode == 1
    assert "hf_secret" not in done.stdout
    assert "0123456789abcdef" not in done.stdout


@pytest.mark.docker
def test_a_name_that_is_nearly_right(tmp_path: Path, name: str) -> None:
    """The container that may be meant is named."""
    require_docker("demo")
    docker("create", "--name", name, "--label", TEST_LABEL, DEMO_IMAGE, "true")
    environment = bare(tmp_path, MAP__coder__container=f"{name}x")
    found = by_check(doctor(tmp_path, environment, "--json").stdout)
    (told,) = [each for each in found["backends.containers"] if each["status"] == "fail"]
    assert repr(name) in told["fix"]


def _python_for_nobody() -> str | None:
    """A Python of this version that another user may run."""
    places = [sys.executable, *(f"{folder}/python3" for folder in ("/usr/bin", "/usr/local/bin"))]
    version = "import sys; print(sys.version_info[:2])"
    for place in places:
        try:
            done = subprocess.run(
                [place, "-c", version],
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.stdout.decode().strip() == str(sys.version_info[:2]):
            return place
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_socket_that_may_not_be_used() -> None:
    """Another user's socket with no rights for others: whose it is, who we are, and what to do."""
    python = _python_for_nobody()
    if python is None:
        pytest.skip(f"no Python {sys.version_info[:2]} that another user may run")
    # pytest's own folders are closed to others.
    folder = Path(tempfile.mkdtemp(prefix="llmproxy-doctor-"))
    try:
        folder.chmod(0o755)
        place = folder / "docker.sock"
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(place))
            listener.listen(1)
            place.chmod(0o000)
            (folder / "docker-compose.yml").write_text(compose("doctor-forbidden", 18602, "/srv"))
            environment = bare(folder, DOCKER_HOST=f"unix://{place}")
            packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
            environment["PYTHONPATH"] = f"{ROOT}:{packages}"
            done = subprocess.run(
                [python, "-B", "-m", "llmproxy", "doctor", "--json"],
                cwd=folder,
                env=environment,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1, done
            (told,) = by_check(done.stdout)["docker.engine"]
            assert f"User {NOBODY} (groups {NOBODY}) may not use" in told["finding"]
            assert "belongs to group 0" in told["finding"]
            assert "usermod" in told["fix"]
    finally:
        shutil.rmtree(folder)


def test_an_engine_that_hangs(tmp_path: Path) -> None:
    """It accepts and never answers: that takes no longer than the limit."""
    # A socket's path may have 107 bytes; pytest's folders may be deeper.
    folder = Path(tempfile.mkdtemp(prefix="llmproxy-doctor-"))
    try:
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(folder / "s"))
            listener.listen(5)
            found = gather_engine(DockerSettings(f"unix://{folder}/s"), timeout=1)
        assert found.state == "silent"
    finally:
        shutil.rmtree(folder)
