"""``llmproxy seed``: a model's files are in its cache before its first start; from a hub of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmproxy.seeding import running
from tests.integration.engine import BASE_IMAGE, docker, require_docker, unique
from tests.integration.fake_hub import FakeHub, serving_hub
from tests.integration.world import until

MODELS = {
    "org/small": {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"w" * 400_000,
        "pytorch_model.bin": b"old" * 100,
        "original/consolidated.00.pth": b"twice",
        "odd[1].json": b"[]",
    },
    "org/gguf": {"a-Q4_K_M.gguf": b"4" * 1000, "a-Q8_0.gguf": b"8" * 2000, "config.json": b"{}"},
    "org/gated": {"config.json": b"{}", "model.safetensors": b"g" * 10},
}
COMMAND = [str(Path(sys.executable).parent / "llmproxy")]
HUB_IMAGE = "llmproxy-test-hub:1"


def environment(hub: FakeHub, folder: Path, **more: str) -> dict[str, str]:
    """What the command sees: nothing of this machine's own settings, and the fake hub."""
    own = {
        name: os.environ[name]
        for name in ("PATH", "DOCKER_HOST", "COVERAGE_PROCESS_START")
        if name in os.environ
    }
    hub_at = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_HOME": str(folder / "hf")}
    return {**own, **hub_at, "HOME": str(folder), "VLLM_API_KEY": "k", **more}


def write(folder: Path, backends: dict[str, object]) -> None:
    """The configuration."""
    (folder / "llmproxy.yaml").write_text(yaml.safe_dump({"backends": backends}), encoding="utf-8")


def seed(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command there."""
    return subprocess.run(
        [*COMMAND, "seed", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cached(folder: Path, repository: str) -> dict[str, int]:
    """Sizes of the files that a cache has of a model, as a server finds them."""
    snapshots = folder / f"models--{repository.replace('/', '--')}" / "snapshots"
    return {
        str(
            path.relative_to(snapshots).relative_to(path.relative_to(snapshots).parts[0])
        ): path.stat().st_size
        for path in snapshots.rglob("*")
        if path.is_file()
    }


def server(*arguments: str) -> dict[str, object]:
    """A process backend whose command is a Python with these arguments."""
    return {"runtime": "process", "command": [sys.executable, "-m", "llmproxy.demo", *arguments]}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub for this machine."""
    with serving_hub(MODELS) as found:
        found.gated.add("org/gated")
        yield found


# -- by the server's own Python --------------------------------------------------------------------------


def test_a_process(hub: FakeHub, tmp_path: Path) -> None:
    """What vLLM reads is downloaded, weights once; the next time nothing is."""
    write(tmp_path, {"small": server("--model", "org/small", "--port", "${port}")})
    env = environment(hub, tmp_path)
    done = seed(tmp_path, env, "small")
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path / "hf" / "hub", "org/small") == {
        "config.json": 2,
        "tokenizer.json": 2,
        "model.safetensors": 400_000,
        "odd[1].json": 2,
    }
    assert "small: org/small: 4 files, 390.6 KiB, in " in done.stdout
    assert "downloaded in" in done.stdout
    asked = len(hub.fetched)
    again = seed(tmp_path, env, "small", "--json")
    (told,) = json.loads(again.stdout)["backends"]
    assert told["ok"]
    assert told["repositories"][0]["downloaded"] == 0
    assert len(hub.fetched) == asked


def test_where_and_what_its_flags_say(hub: FakeHub, tmp_path: Path) -> None:
    """--download-dir, a quantisation of GGUF files, and the other models that a server loads."""
    draft = json.dumps({"model": "org/small", "num_speculative_tokens": 3})
    arguments = ["--model", "org/gguf:q4_k_m", "--download-dir", str(tmp_path / "there")]
    write(tmp_path, {"a": server(*arguments, "--speculative-config", draft)})
    done = seed(tmp_path, environment(hub, tmp_path), "--all")
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path / "there", "org/gguf") == {"a-Q4_K_M.gguf": 1000, "config.json": 2}
    assert "model.safetensors" in cached(tmp_path / "there", "org/small")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "org/gated"], ("org/gated", "accept its licence", "HF_TOKEN")),
        (["--model", "org/none"], ("org/none", "There is no such model", "private")),
        (["--model", "org/small", "--revision", "v9"], ("org/small",)),
        (["--model", "/models/mine"], ("is a path",)),
        (["--port", "1"], ("names no model",)),
    ],
)
def test_what_cannot_be_had(
    hub: FakeHub, tmp_path: Path, arguments: list[str], said: tuple[str, ...]
) -> None:
    """A gated model, one that is not there, and none at all: status 1, the cause, and what helps."""
    write(tmp_path, {"a": server(*arguments)})
    done = seed(tmp_path, environment(hub, tmp_path), "a")
    assert done.returncode == 1
    for words in said:
        assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token(hub: FakeHub, tmp_path: Path) -> None:
    """HF_TOKEN is taken from .env, where the proxy would have it from."""
    write(tmp_path, {"a": server("--model", "org/gated")})
    (tmp_path / ".env").write_text(f"HF_TOKEN={hub.token}\n", encoding="utf-8")
    done = seed(tmp_path, environment(hub, tmp_path), "a")
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr


def test_a_full_disk(hub: FakeHub, tmp_path: Path) -> None:
    """What does not fit is not begun with."""
    hub.sizes["model.safetensors"] = 2**50
    write(tmp_path, {"a": server("--model", "org/small")})
    done = seed(tmp_path, environment(hub, tmp_path), "a")
    assert done.returncode == 1
    assert "Not enough free disk space" in done.stderr
    assert "The disk is full" in done.stderr
    assert "model.safetensors" not in hub.fetched


def test_what_is_not_seeded(hub: FakeHub, tmp_path: Path) -> None:
    """Backends that download nothing here are told by name; an unknown one with those that there are."""
    write(
        tmp_path,
        {
            "far": {"runtime": "url", "url": "http://10.0.0.1:8000"},
            "other": {"runtime": "process", "engine": "generic", "command": ["sleep", "1"]},
            "script": {"runtime": "process", "command": ["/bin/sleep", "--model", "org/small"]},
        },
    )
    env = environment(hub, tmp_path)
    done = seed(tmp_path, env, "far", "other", "script")
    assert done.returncode == 1
    for words in ("far: it runs elsewhere", "other: it is no vLLM", "script: /bin/sleep is no Python script"):
        assert words in done.stderr
    wrong = seed(tmp_path, env, "nobody")
    assert wrong.returncode == 1
    assert "backends: far, other, script" in wrong.stderr
    assert seed(tmp_path, env).returncode == 2


def test_ctrl_c(hub: FakeHub, tmp_path: Path) -> None:
    """Ctrl-C ends the download with the command, and the next one goes on from there."""
    hub.held.add("model.safetensors")
    write(tmp_path, {"a": server("--model", "org/small")})
    env = environment(hub, tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "seed", "a"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    until(lambda: "model.safetensors" in hub.fetched, 30)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode in (1, 130)
    assert "Traceback" not in told
    until(lambda: not _running("org/small"))
    hub.go_on.set()
    done = seed(tmp_path, env, "a")
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path / "hf" / "hub", "org/small")["model.safetensors"] == 400_000


def _running(word: str) -> list[int]:
    """Processes with a word in their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes()
        except OSError:
            continue
        if word.encode() in line and b"snapshot_download" in line:
            found.append(int(place.parent.name))
    return found


# -- in a container --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stand-in for vLLM's image: Python with huggingface_hub, as its own entrypoint."""
    require_docker("base")
    if docker("images", "-q", HUB_IMAGE):
        return HUB_IMAGE
    folder = tmp_path_factory.mktemp("hub-image")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
    ]
    machine = os.uname().machine
    platforms = [
        word for tag in ("2014", "_2_17", "_2_28") for word in ("--platform", f"manylinux{tag}_{machine}")
    ]
    target = ["--implementation", "cp", "--python-version", "3.11", "--target", str(folder / "site")]
    subprocess.run([*pip, *platforms, *target, "huggingface_hub>=1.0"], check=True, timeout=300)
    (folder / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nCOPY site /usr/local/lib/python3.11/dist-packages\nLABEL llmproxy.test=1\n"
        'ENTRYPOINT ["vllm", "serve"]\n',
        encoding="utf-8",
    )
    docker("build", "--quiet", "--network", "none", "-t", HUB_IMAGE, str(folder), timeout=300)
    return HUB_IMAGE


@pytest.fixture
def inner_hub(hub_image: str) -> Iterator[FakeHub]:
    """A hub that containers reach: at the address that this machine has on Docker's bridge."""
    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    with serving_hub(MODELS, gateway) as found:
        found.gated.add("org/gated")
        yield found


def inner(hub: FakeHub) -> dict[str, str]:
    """What a container is told of the hub."""
    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    return {"HF_ENDPOINT": f"http://{gateway}:{hub.port}"}


def left() -> list[str]:
    """Containers of downloads."""
    return docker("ps", "-aq", "--filter", "label=com.llmproxy.seed").split()


def image_backend(hub: FakeHub, folder: Path, *args: str, **more: object) -> dict[str, object]:
    """A backend that llmproxy creates itself, with the cache on a folder of the test's."""
    (folder / "cache").mkdir(exist_ok=True)
    return {
        "image": HUB_IMAGE,
        "container": unique("seeded"),
        "args": list(args),
        "volumes": [f"{folder}/cache:/root/.cache/huggingface"],
        "environment": inner(hub),
        **more,
    }


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_an_image(inner_hub: FakeHub, tmp_path: Path) -> None:
    """It is downloaded in the backend's own image into its own volume, and no container is left."""
    write(tmp_path, {"a": image_backend(inner_hub, tmp_path, "--model", "org/small")})
    done = seed(tmp_path, environment(inner_hub, tmp_path), "a")
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path / "cache" / "hub", "org/small")["model.safetensors"] == 400_000
    assert left() == []


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_a_container_that_is_there(inner_hub: FakeHub, tmp_path: Path) -> None:
    """A container that is there tells image, command and environment, and lends its volumes of every kind."""
    name, volume = unique("there"), unique("volume")
    env = [part for pair in inner(inner_hub).items() for part in ("-e", "=".join(pair))]
    try:
        docker(
            *("create", "--name", name, "-v", f"{volume}:/data", *env, "-e", f"HF_TOKEN={inner_hub.token}"),
            *("-e", "HF_HUB_OFFLINE=1", HUB_IMAGE, "org/gated", "--download-dir", "/data/models"),
        )
        write(tmp_path, {"a": {"container": name, "port": 8000}})
        done = seed(tmp_path, environment(inner_hub, tmp_path), "a")
        assert done.returncode == 0, done.stderr
        listed = docker(
            "run", "--rm", "-v", f"{volume}:/data", "--entrypoint", "ls", HUB_IMAGE, "/data/models"
        )
        assert "models--org--gated" in listed
        assert left() == []
        # It has not been started for that.
        assert docker("inspect", "--format", "{{.State.Status}}", name) == "created"
    finally:
        docker("rm", "-f", "-v", name, check=False)
        docker("volume", "rm", volume, check=False)


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_a_service_of_the_compose_file(inner_hub: FakeHub, tmp_path: Path) -> None:
    """Before Compose has made its container, the compose file tells the same."""
    (tmp_path / "cache").mkdir()
    service = {
        "image": HUB_IMAGE,
        "container_name": unique("composed"),
        "command": ["org/small", "--port=8001"],
        "environment": inner(inner_hub),
        "volumes": ["./cache:/root/.cache/huggingface"],
        "labels": {"llmproxy.route": "coder", "llmproxy.port": "8001"},
    }
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump({"services": {"coder3b": service}}))
    done = seed(tmp_path, environment(inner_hub, tmp_path, COMPOSE_FILE="docker-compose.yml"), "coder")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in cached(tmp_path / "cache" / "hub", "org/small")
    assert left() == []
    assert docker("ps", "-aq", "--filter", f"name={service['container_name']}") == ""


@pytest.mark.docker
@pytest.mark.timeout(400)
def test_what_a_container_cannot_have(inner_hub: FakeHub, tmp_path: Path) -> None:
    """No volume, no hub in the image, no token, no container: the cause, what helps, and nothing left."""
    bare = {**image_backend(inner_hub, tmp_path, "--model", "org/small"), "image": BASE_IMAGE}
    write(
        tmp_path,
        {
            "lost": image_backend(inner_hub, tmp_path, "--model", "org/small", volumes=[]),
            "gated": image_backend(inner_hub, tmp_path, "--model", "org/gated"),
            "bare": bare,
            "none": {"container": unique("none"), "port": 8000},
        },
    )
    done = seed(tmp_path, environment(inner_hub, tmp_path), "lost", "gated", "bare", "none", "--json")
    assert done.returncode == 1, done.stderr
    told = {each["name"]: each for each in json.loads(done.stdout)["backends"]}
    assert not any(each["ok"] for each in told.values())
    assert "is inside the container" in told["lost"]["error"]
    assert "/srv/llm/.cache:/root/.cache/huggingface" in told["lost"]["hint"]
    assert "HF_TOKEN" in told["gated"]["hint"]
    assert "no huggingface_hub" in told["bare"]["error"]
    assert "no compose file" in told["none"]["error"]
    assert left() == []
    assert inner_hub.fetched == []


@pytest.mark.docker
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_broken_off_download(inner_hub: FakeHub, tmp_path: Path, number: signal.Signals) -> None:
    """However the command ends, the container goes, and what was there is kept."""
    inner_hub.held.add("model.safetensors")
    write(tmp_path, {"a": image_backend(inner_hub, tmp_path, "--model", "org/small")})
    env = environment(inner_hub, tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "seed", "a"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    until(lambda: "model.safetensors" in inner_hub.fetched, 60)
    until(lambda: "config.json" in cached(tmp_path / "cache" / "hub", "org/small"))
    assert len(left()) == 1
    process.send_signal(number)
    began = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in told
    assert time.monotonic() - began < 20
    # Killed, it could remove nothing: the container ends with its input, and the engine removes it.
    until(lambda: left() == [], 20)
    assert "config.json" in cached(tmp_path / "cache" / "hub", "org/small")


def test_a_download_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to, and killed when it does not."""
    monkeypatch.setattr(running, "_GRACE", 0.2)
    script = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}\nwhile True: signal.pause()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    running._end(process)
    assert process.returncode == -signal.SIGKILL
