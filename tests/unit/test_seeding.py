"""What is to be downloaded for a backend, where that runs, and what is made of what it tells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec
from llmproxy.seeding.fetch import choose, is_inside
from llmproxy.seeding.hearing import Hearing, reason
from llmproxy.seeding.order import Nothing, Order, Wanted, read_order
from llmproxy.seeding.places import Place, container_body, of_compose, of_container, of_image, shebang


@pytest.mark.parametrize(
    ("args", "wanted", "cache"),
    [
        (["vllm", "serve", "org/m", "--port=1"], [Wanted("org/m")], None),
        (["org/m", "--revision", "v2", "--download-dir=/d"], [Wanted("org/m", "v2")], "/d"),
        (["--model", "org/m", "--tokenizer", "org/t"], [Wanted("org/m"), Wanted("org/t")], None),
        (["--model", "org/m", "--tokenizer", "org/m"], [Wanted("org/m")], None),
        (["--model", "org/g:Q4_K_M"], [Wanted("org/g", None, "Q4_K_M")], None),
        (["--model", "gpt2"], [Wanted("gpt2")], None),
        (
            ["--model", "/weights/m", "--lora-modules", "a=org/a", '{"name": "b", "path": "org/b"}', "c=/c"],
            [Wanted("org/a"), Wanted("org/b")],
            None,
        ),
        (
            ["--model=org/m", "--speculative_config", '{"model": "org/draft"}'],
            [Wanted("org/m"), Wanted("org/draft")],
            None,
        ),
        (["sh", "-c", "exec vllm serve org/m --download-dir /d"], [Wanted("org/m")], "/d"),
    ],
)
def test_what_a_server_downloads(args: list[str], wanted: list[Wanted], cache: str | None) -> None:
    """Its model, and what else its flags name, each once."""
    assert read_order(args, {}) == Order(tuple(wanted), cache)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--model", "/weights/m"], "is a path"),
        (["--model", "./m"], "is a path"),
        (["--model", "s3://bucket/m"], "is a path"),
        (["--port", "8000"], "names no model"),
        (["serve", "--config", "c.yaml"], "stands in c.yaml"),
    ],
)
def test_nothing_to_download(args: list[str], why: str) -> None:
    """What names no model of the hub says why."""
    with pytest.raises(Nothing, match=why):
        read_order(args, {})


def test_weights_are_taken_once() -> None:
    """Of several forms of the same weights the one that vLLM takes, and everything that is no weights."""
    names = ["config.json", "a.bin", "b.safetensors", "tf.h5", "original/x.pth", "onnx/m.onnx", "README.md"]
    assert choose(names) == ["config.json", "b.safetensors", "README.md"]
    assert choose(["config.json", "a.bin", "b.pt"]) == ["config.json", "a.bin"]
    assert choose(["config.json"]) == ["config.json"]


def test_one_quantisation_of_several() -> None:
    """Of GGUF files those that were named, whatever the case, in a folder or in parts."""
    names = ["m-Q4_K_M.gguf", "m-Q4_K.gguf", "q4_k_m/m-00001-of-00002.gguf", "config.json", "m.safetensors"]
    assert choose(names, "Q4_K_M") == ["m-Q4_K_M.gguf", "q4_k_m/m-00001-of-00002.gguf", "config.json"]


def test_where_a_folder_is_lost() -> None:
    """A folder that no volume covers goes with the container."""
    mounts = "1 0 0:1 / / rw - overlay overlay rw\n2 1 8:1 /x /data/cache rw - ext4 /dev/vda rw\n"
    assert is_inside("/root/.cache", mounts)
    assert is_inside("/data/cached", mounts)
    assert not is_inside("/data/cache", mounts)
    assert not is_inside("/data/cache/hub", mounts)


def test_a_container_that_is_there() -> None:
    """It lends its volumes; what Docker sets of its environment is not handed on."""
    info = {
        "Id": "abc",
        "Image": "sha256:1",
        "Config": {
            "Entrypoint": ["vllm", "serve"],
            "Cmd": ["org/m"],
            "Env": ["A=b=c", "PATH=/x"],
            "User": "1000",
        },
        "HostConfig": {"NetworkMode": "container:gone"},
    }
    place = of_container(info)
    assert place == Place("sha256:1", ("vllm", "serve", "org/m"), {"A": "b=c"}, (), "abc", "1000", None)
    assert of_container({**info, "HostConfig": {"NetworkMode": "host"}}).network == "host"


def test_a_service() -> None:
    """Paths of a compose file lead from its folder, and volumes are called after the project."""
    volumes = ("./cache:/a", "~/w:/b:ro", "models:/c", "/srv:/d", "/anonymous")
    service = ComposeService("s", "c", "image", {}, ("org/m",), {"X": "1"}, volumes=volumes)
    place = of_compose(service, "/stack", "proj", "/home/me")
    assert place.volumes == ("/stack/cache:/a", "/home/me/w:/b:ro", "proj_models:/c", "/srv:/d", "/anonymous")
    assert (place.image, place.args, place.environment) == ("image", ("org/m",), {"X": "1"})


def test_what_is_made() -> None:
    """It removes itself, ends with its input, and has no GPU, no port and no labels of a server."""
    spec = BackendSpec("a", image="vllm", args=("org/m",), environment={"A": "1"}, volumes=("/a:/b",))
    body = container_body(of_image(spec, ["vllm", "serve"]), "script", "{}", {"HF_TOKEN": "t"})
    assert body["Entrypoint"] == ["python3", "-c", "script"]
    assert body["Env"] == ["A=1", "HF_TOKEN=t"]
    assert body["HostConfig"] == {
        "AutoRemove": True,
        "Init": True,
        "Binds": ["/a:/b"],
        "SecurityOpt": ["no-new-privileges:true"],
    }
    assert body["StdinOnce"]
    assert not any(label.startswith("llmproxy.") for label in body["Labels"])


@pytest.mark.parametrize(
    ("head", "python"),
    [
        (b"#!/venv/bin/python3.12\nimport sys", "/venv/bin/python3.12"),
        (b"#!/usr/bin/env -S python3\n", "python3"),
        (b"#!/bin/sh\n'''exec' \"/a long/python\" \"$0\" \"$@\"\n' '''\n", None),
        (b"#!/bin/sh\n'''exec' /long/bin/python \"$0\" \"$@\"\n' '''\n", "/long/bin/python"),
        (b"#!/bin/bash\nexec llama", None),
        (b"\x7fELF", None),
        (b"", None),
        (b"#!", None),
    ],
)
def test_a_scripts_python(head: bytes, python: str | None) -> None:
    """It is read from the script's first lines, in the ways of pip and uv."""
    assert shebang(head) == python


def events() -> tuple[Hearing, list[Any]]:
    """One that hears, and what it has told."""
    told: list[Any] = []
    return Hearing(told.append), told


@given(st.integers(1, 40))
def test_events_in_any_pieces(size: int) -> None:
    """Lines come in pieces; what is no event belongs to the log."""
    hearing, told = events()
    lines = [
        json.dumps({"event": "plan", "files": 2, "bytes": 10, "had": 4, "cache": "/c"}),
        "warning: something",
        json.dumps([1]),
        json.dumps({"event": "done", "repository": "org/m", "bytes": 10}),
    ]
    data = ("\n".join(lines) + "\n").encode()
    for start in range(0, len(data), size):
        hearing.out(data[start : start + size])
    assert [event["event"] for event in told] == ["plan", "done"]
    assert (hearing.done[0].repository, hearing.done[0].files, hearing.done[0].had) == ("org/m", 2, 4)
    assert hearing.log == "warning: something\n[1]"


def test_the_log_is_bounded() -> None:
    """Only its end is kept."""
    hearing, _ = events()
    for number in range(1000):
        hearing.err(f"line {number}\n".encode())
    assert hearing.log.endswith("line 999")
    assert len(hearing.log.splitlines()) <= 200


GATED = """huggingface_hub.errors.GatedRepoError: 403 Client Error.

Cannot access gated repo for url https://huggingface.co/org/m/resolve/main/config.json.
Access to model org/m is restricted and you are not in the authorized list."""
MISSING = """huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error.

Repository Not Found for url: https://huggingface.co/api/models/org/none?blobs=true.
Please make sure you specified the correct `repo_id` and `repo_type`.
If you are trying to access a private or gated repo, make sure you are authenticated.
For more details, see https://huggingface.co/docs/huggingface_hub/authentication"""


@pytest.mark.parametrize(
    ("log", "cause", "hint"),
    [
        (GATED, "Access to model org/m is restricted", "accept its licence"),
        (MISSING, "Repository Not Found", "There is no such model"),
        ("No volume: /root is inside the container, and is lost with it.", "No volume", "a volume there"),
        ("There is no huggingface_hub for /usr/bin/python3.", "There is no huggingface_hub", "its own way"),
        (
            "Not enough free disk space: 5 bytes are missing, and 3 are free at /c.",
            "Not enough",
            "disk is full",
        ),
        ("OSError: [Errno 28] No space left on device", "No space left", "disk is full"),
    ],
)
def test_why_it_failed(log: str, cause: str, hint: str) -> None:
    """The line that tells why, and what helps; of the hub's words for a wrong name those that matter."""
    told, helps = reason(log)
    assert cause in told
    assert hint in (helps or "")
