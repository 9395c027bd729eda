"""llama-swap's configuration as llmproxy.yaml: what is taken over, what is not; and the proxy reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import Config
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError
from llmproxy.importing.docker_run import read_docker_run
from llmproxy.importing.llama_swap import Conversion, convert_llama_swap
from llmproxy.importing.macros import marked, written
from llmproxy.importing.writing import config_text

FILES = Path(__file__).parent / "llama_swap"
ENVIRON = {"HOME": "/root", "MODELS": "/m", "API_KEY_2": "another", "HF_TOKEN": "t", "LD": "x"}


def convert(text: str) -> Conversion:
    """As the command does."""
    return convert_llama_swap(text, "config.yaml")


def read(found: Conversion) -> Config:
    """What the proxy makes of the file that is written."""
    text = config_text(found.document, "config.yaml", found.remarks)
    return read_sources(Sources(ENVIRON, text))


def of_file(name: str) -> tuple[Conversion, Config]:
    """One of the realistic files, converted and read."""
    found = convert((FILES / f"{name}.yaml").read_text(encoding="utf-8"))
    return found, read(found)


def told(found: Conversion, where: str) -> list[str]:
    """The kinds of remarks on a setting."""
    return [remark.kind for remark in found.remarks if remark.where == where]


def model(command: str, **more: Any) -> str:
    """A file with one model."""
    return yaml.safe_dump({"models": {"m": {"cmd": command, **more}}})


def test_a_server_becomes_a_process() -> None:
    """Macros are filled in as llama-swap does, comments left out, and the port is given by llmproxy."""
    _, config = of_file("example")
    spec = config.backends["gpt-oss-120b"]
    assert (spec.runtime, spec.engine, spec.health, spec.idle) == ("process", "generic", "/v1/models", 60)
    assert spec.command == (
        *("/opt/llama.cpp/llama-server", "--port", "${port}", "--flash-attn", "on"),
        *("--model", "/m/gguf/gpt oss.gguf", "--ctx-size", "16384", "--temp", "0.7"),
    )
    assert spec.environment == {"CUDA_VISIBLE_DEVICES": "0,1", "PRICE": "$$5 16384"}
    assert spec.start_timeout == 500
    assert spec.stop_grace == 20
    assert spec.max_in_flight == 4
    assert spec.prewarm
    assert config.log.level == "debug"


def test_names() -> None:
    """The engine gets the name that it serves; the id and the aliases go on being good for requests."""
    found, config = of_file("example")
    spec = config.backends["gpt-oss-120b"]
    assert spec.models == ("openai/gpt-oss-120B",)
    assert spec.aliases == ("gpt-oss-120b", "gpt-4o-mini", "o3", "gpt-oss-120b:high")
    # What cannot be a path is changed, and said; the model's name is not.
    assert config.backends["qwen-qwen2.5-7b"].models == ("Qwen/Qwen2.5 7B",)
    assert told(found, "models.Qwen/Qwen2.5 7B") == ["changed"]
    assert config.backends["api-model"].models == ("api",)
    # A name belongs to one.
    assert config.backends["other"].models == ("model_a",)
    assert told(found, "peers.other.models") == ["left out"]


def test_filters() -> None:
    """Parameters that are set become overrides with their types; those that are stripped become null."""
    found, config = of_file("example")
    assert config.backends["gpt-oss-120b"].request_overrides == {
        "top_k": None,
        "temperature": 0.7,
        "chat_template_kwargs": {"a": 1},
        "max_tokens": 100,
    }
    assert told(found, "models.gpt-oss-120b.filters.stripParams") == ["changed"]
    assert told(found, "models.gpt-oss-120b.filters.setParamsByID") == ["changed", "left out"]


@pytest.mark.parametrize(
    ("filters", "overrides", "remarks"),
    [
        # It is the model's own name that llama-swap leaves alone.
        ({"stripParams": "model, "}, {}, {}),
        ({"setParams": {"model": "x", "top_k": 1}}, {"top_k": 1}, {}),
        ({"setParams": {"a..b": 1}}, {}, {"setParams": ["left out"]}),
        ({"setParamsByID": {"m": {"top_k": 1}}}, {"top_k": 1}, {}),
        ({"setParamsByID": {"n": {"top_k": 1}}}, {}, {"setParamsByID": ["left out"]}),
        ({"setParamsByID": {"m": {"n": 1}, "n": {}}}, {"n": 1}, {"setParamsByID": ["changed", "left out"]}),
        ({"setParamsByID": {"m": 3}}, {}, {}),
        ({"setParams": "temperature"}, {}, {"setParams": ["left out"]}),
        ({"setParams": None}, {}, {}),
        ({"dropHeaders": "a"}, {}, {"dropHeaders": ["left out"]}),
        ("strip", {}, {}),
    ],
)
def test_filters_that_say_little(
    filters: Any, overrides: dict[str, Any], remarks: dict[str, list[str]]
) -> None:
    """What has no counterpart is told where it stands; what says nothing changes nothing."""
    found = convert(model("s --port ${PORT}", filters=filters))
    assert read(found).backends["m"].request_overrides == overrides
    places = {key: told(found, f"models.m.filters.{key}") for key in remarks}
    assert places == remarks
    assert len([one for one in found.remarks if "filters" in one.where]) == sum(map(len, remarks.values()))


def test_no_secret_is_written() -> None:
    """A key becomes its digest, one of the environment stays there, and a peer's key goes nowhere."""
    found, config = of_file("example")
    text = config_text(found.document, "config.yaml", found.remarks)
    assert "not-a-real-key-1" not in text
    assert [key.name for key in config.keys] == ["key-1", "key-2"]
    assert read_sources(Sources(ENVIRON, "keys: [{name: a, secret: not-a-real-key-1}]")).keys[0].digest in [
        key.digest for key in config.keys
    ]
    assert set(found.variables) == {"MODELS", "API_KEY_2"}
    assert "cloud" not in config.backends
    assert told(found, "peers.cloud") == ["left out"]


def test_what_runs_together() -> None:
    """Without groups a GPU has one model at a time; a persistent group is pinned beside the others."""
    _, config = of_file("example")
    shares = {route: spec.gpu_memory for route, spec in config.backends.items() if spec.runtime == "process"}
    # vLLM's own command line says what it needs.
    assert shares == {"gpt-oss-120b": 0.9, "qwen-qwen2.5-7b": 0.9, "api-model": None}
    assert config.backends["api-model"].pinned
    assert not config.backends["gpt-oss-120b"].pinned


def test_groups() -> None:
    """Members that run together share a GPU; those that leave others alone need nothing of it."""
    models = {name: {"cmd": "server --port ${PORT}"} for name in "abcd"}
    groups = {
        "pair": {"swap": False, "members": ["a", "b"]},
        "beside": {"swap": False, "exclusive": False, "members": ["c"]},
    }
    for document in (
        {"models": models, "groups": groups},
        {"models": models, "routing": {"router": {"use": "group", "settings": {"groups": groups}}}},
    ):
        found = convert(yaml.safe_dump(document))
        shares = {route: spec.gpu_memory for route, spec in read(found).backends.items()}
        assert shares == {"a": 0.45, "b": 0.45, "c": 0, "d": 0.9}
        assert {remark.kind for remark in found.remarks} == {"check"}


def test_groups_that_llmproxy_keeps_in_other_ways() -> None:
    """Pinned models are not idle, and members that may not run at once are not kept apart: that is told."""
    models = {name: {"cmd": "server --port ${PORT}", "ttl": 60} for name in "ab"}
    kept = {"persistent": True, "exclusive": False, "members": ["a", "b"]}
    found = convert(yaml.safe_dump({"models": models, "groups": {"kept": kept}}))
    config = read(found)
    assert all(config.backends[name].pinned for name in "ab")
    assert {name: spec.gpu_memory for name, spec in config.backends.items()} == {"a": 0, "b": 0}
    assert told(found, "groups.kept.persistent") == ["changed"]
    assert told(found, "groups.kept.swap") == ["left out"]


def test_costs_of_a_matrix_that_are_no_numbers() -> None:
    """They, and costs of models that there are not, set no priority."""
    text = yaml.safe_dump(
        {
            "models": {name: {"cmd": "server --port ${PORT}"} for name in "ab"},
            "matrix": {"vars": {"x": "a"}, "evict_costs": {"x": 7.4, "b": "much", "away": 3}},
        }
    )
    found = read(convert(text)).backends
    assert (found["a"].priority, found["b"].priority) == (7, 0)


def test_a_matrix() -> None:
    """Its costs become priorities, and its sets are told as left out; selectors become names."""
    found, config = of_file("matrix")
    assert {route: spec.priority for route, spec in config.backends.items()} == {
        "gemma": 0,
        "voice": 50,
        "sd": 1000,
    }
    assert {spec.gpu_memory for spec in config.backends.values()} == {0.9}
    assert config.backends["gemma"].aliases == ("best",)
    assert config.backends["voice"].aliases == ("fixed",)
    assert told(found, "routing.router.settings.matrix.sets") == ["left out"]
    assert told(found, "selectors.best") == ["changed"]
    assert told(found, "selectors.fixed") == []
    assert told(found, "selectors.away") == ["left out"]


def test_docker_run_becomes_a_container() -> None:
    """``docker run`` becomes an image backend: image, arguments, environment, volumes, port and GPUs."""
    found, config = of_file("docker")
    spec = config.backends["vllm-qwen"]
    assert (spec.runtime, spec.engine, spec.container) == ("docker", "vllm", "vllm-qwen")
    assert spec.image == "vllm/vllm-openai:v0.11.0"
    assert spec.args[:2] == ("--model", "Qwen/Qwen2.5-7B-Instruct")
    assert spec.environment == {"HF_TOKEN": "t", "VLLM_LOGGING_LEVEL": "DEBUG", "LD": "x"}
    assert spec.volumes == ("/srv/hub:/root/.cache/huggingface:ro",)
    assert (spec.port, spec.gpus, spec.gpu_memory) == (8000, ("0", "1"), None)
    assert (spec.models, spec.aliases, spec.start_timeout) == (("qwen",), ("vllm-qwen",), 600)
    llama = config.backends["docker-llama"]
    assert (llama.engine, llama.port, llama.container) == ("generic", 8080, "docker-llama")
    assert llama.args == ("--model", "/models/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf")
    assert config.backends["llama-cuda"].gpus == ("0",)
    # The command to stop it is not needed, and that is said.
    assert told(found, "models.docker-llama.cmdStop") == ["left out"]


def test_docker_run_with_more_stays_a_command() -> None:
    """With options that llmproxy's containers do not have, it stays what a process runs, and that is said."""
    found, config = of_file("docker")
    spec = config.backends["rocm"]
    assert spec.runtime == "process"
    assert spec.command[:3] == ("docker", "run", "--rm")
    assert "${port}:8080" in spec.command
    (remark, *_) = (one for one in found.remarks if one.where == "models.rocm.cmd")
    assert remark.kind == "changed"
    for option in ("--device", "--group-add", "--entrypoint"):
        assert option in remark.why
    assert config.backends["podman"].runtime == "process"


@pytest.mark.parametrize(
    ("more", "kind", "port", "where"),
    [
        ({"proxy": "http://127.0.0.1:9001"}, None, 9001, "proxy"),
        ({"proxy": "http://127.0.0.1:9001/v1"}, "left out", 9001, "proxy"),
        ({"proxy": "http://elsewhere:9001"}, "changed", 9001, "proxy"),
        ({}, "check", None, "cmd"),
        ({"proxy": "http://[::1"}, "check", None, "proxy"),
        ({"proxy": "http://127.0.0.1:many"}, None, 80, "proxy"),
        ({"proxy": "https://127.0.0.1"}, None, 443, "proxy"),
    ],
)
def test_where_a_process_is_asked(
    more: dict[str, Any], kind: str | None, port: int | None, where: str
) -> None:
    """At the port of its proxy, on this machine; what else the proxy says is told."""
    found = convert(model("server -m x", **more))
    assert read(found).backends["m"].port == port
    assert told(found, f"models.m.{where}") == ([kind] if kind else [])


def test_a_port_that_the_command_is_given_and_another_one_that_is_asked() -> None:
    """That its proxy says another port than its command gets is to be looked at."""
    found = convert(model("server --port ${PORT}", proxy="http://127.0.0.1:9001"))
    assert read(found).backends["m"].port == 9001
    assert told(found, "models.m.proxy") == ["check"]


def test_an_environment_without_a_value() -> None:
    """It is left out and told; the others are set."""
    found = convert(model("server --port ${PORT}", env=["A=1", "B", "=2"]))
    assert read(found).backends["m"].environment == {"A": "1"}
    assert told(found, "models.m.env") == ["left out", "left out"]


def test_a_name_that_another_model_has() -> None:
    """It stays with the first one; the other one's requests keep their own name."""
    models = {
        "first": {"cmd": "server --port ${PORT}", "aliases": ["small"], "useModelName": "org/m"},
        "second": {"cmd": "server --port ${PORT}", "aliases": ["small"], "useModelName": "org/m"},
    }
    found = convert(yaml.safe_dump({"models": models}))
    specs = read(found).backends
    assert (specs["first"].models, specs["first"].aliases) == (("org/m",), ("first", "small"))
    assert (specs["second"].models, specs["second"].aliases) == (("second",), ())
    assert told(found, "models.second.aliases") == ["left out"]
    assert told(found, "models.second.useModelName") == ["changed"]


def test_what_is_not_checked_when_it_starts() -> None:
    """A limit of 0 is that of llmproxy's own; that a health path is needed is told."""
    found = convert(model("s --port ${PORT}", healthCheckTimeout=0, ttl=0, checkEndpoint="none"))
    spec, default = read(found).backends["m"], read(convert(model("s --port ${PORT}"))).backends["m"]
    assert (spec.idle, spec.start_timeout, spec.health) == (0, default.start_timeout, default.health)
    assert told(found, "models.m.checkEndpoint") == ["check"]


def test_without_a_command() -> None:
    """A model that has only a proxy is a server that always runs."""
    config = read(convert("models: {m: {proxy: 'http://10.0.0.2:8000', ttl: 60}}"))
    assert (config.backends["m"].runtime, config.backends["m"].url) == ("url", "http://10.0.0.2:8000")


def test_remarks_have_lines() -> None:
    """Each remark names the line of what it is about, and they come in the order of the file."""
    found = convert("models:\n  m:\n    cmd: s --port ${PORT}\n    colour: red\nlogTimeFormat: ansic\n")
    assert [(remark.line, remark.where) for remark in found.remarks] == [
        (4, "models.m.colour"),
        (5, "logTimeFormat"),
    ]
    assert str(found.remarks[0]).startswith("left out: line 4, models.m.colour: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: 1",
        "a: 2000-13-45",
        "[" * 2000,
        "&a {models: *a}",
        "models: &a [*a]",
        "models: 3",
        "models: [x]",
        "{",
        "models: {m: {cmd: 'x",
        "backends: {}",
        "\x00",
    ],
)
def test_what_is_no_configuration_of_it(text: str) -> None:
    """It is refused in one line that names the file."""
    with pytest.raises(ConfigError, match=r"^config\.yaml: "):
        convert(text)


def test_an_odd_command() -> None:
    """A quotation mark that is not closed and a macro that there is not are told, and stop nothing."""
    found = convert(model("server --port ${PORT} 'a ${nothing}"))
    assert told(found, "models.m.cmd") == ["check", "check"]
    assert read(found).backends["m"].command[-1] == "${nothing}"


@pytest.mark.parametrize(
    ("words", "args", "unknown"),
    [
        ("docker run -p8080:80 -eA=1 -v/a:/b image x", ("x",), []),
        ("sudo docker container run --publish=8080:80/tcp --env=A=1 --volume=/a:/b image x", ("x",), []),
        (
            "docker run -itd --rm -p 8080:80 -e A=1 -v /a:/b --network host image x",
            ("x",),
            ["--network host"],
        ),
        (
            "docker run -p 8080:80 -e A=1 -v /a:/b --privileged --cap-add ALL -- image x",
            ("x",),
            ["--privileged", "--cap-add"],
        ),
        (
            "docker run -p 8080:80 -e A=1 -v /a:/b --privileged=false --network bridge"
            " --ulimit memlock=-1 image x",
            ("x",),
            [],
        ),
        (
            "docker run -p 8080:80 -e A=1 -v /a:/b --ipc container:y --ulimit nofile=9"
            " --security-opt seccomp=unconfined --security-opt no-new-privileges --runtime kata image x",
            ("x",),
            ["--ipc container:y", "--ulimit nofile=9", "--security-opt seccomp=unconfined", "--runtime kata"],
        ),
    ],
)
def test_docker_options(words: str, args: tuple[str, ...], unknown: list[str]) -> None:
    """Short and long options, in one word and in two."""
    run = read_docker_run(words.split())
    assert run is not None
    assert (run.image, run.args, run.unknown) == ("image", args, unknown)
    assert (run.ports, run.environment, run.volumes) == ({"8080": "80"}, {"A": "1"}, ["/a:/b"])


@pytest.mark.parametrize(
    ("options", "gpus", "unknown"),
    [
        ("--gpus 2", ("0", "1"), []),
        ("--gpus device=1,3", ("1", "3"), []),
        ("--gpus none", (), []),
        ("--gpus some", (), ["--gpus some"]),
        ("--runtime nvidia", ("all",), []),
        ("--gpus device=1 --runtime nvidia", ("1",), []),
        ("--runtime runc", (), []),
    ],
)
def test_gpus_of_docker(options: str, gpus: tuple[str, ...], unknown: list[str]) -> None:
    """A count is the first so many; NVIDIA's runtime alone gives all of them."""
    run = read_docker_run(f"docker run {options} image".split())
    assert run is not None
    assert (run.gpus, run.unknown) == (gpus, unknown)


@pytest.mark.parametrize("words", ["docker ps", "docker run --rm", "llama-server", "", "podman run x"])
def test_what_is_no_docker_run(words: str) -> None:
    """Other commands are left as they are."""
    assert read_docker_run(words.split()) is None


_WORDS = [
    "-p",
    "-p8080:80",
    "--publish=${PORT}:80",
    "-e",
    "-v",
    "A=1",
    "--gpus",
    "all",
    "device=0",
    "--mount",
]
_WORDS += ["type=bind,source=/a,target=/b", "--rm", "--name", "x", "--", "image", "--model", "", "-", "--x=y"]


@given(
    st.lists(
        st.sampled_from(_WORDS),
        max_size=8,
    )
)
def test_any_docker_run(words: list[str]) -> None:
    """Whatever the options are, it becomes a container, stays a command, or is told; nothing is raised."""
    command = " ".join(["docker", "run", *(word or "''" for word in words)])
    found = convert(yaml.safe_dump({"models": {"m": {"cmd": command, "proxy": "http://localhost:${PORT}"}}}))
    assert read(found).backends["m"].runtime in ("docker", "process")


@given(st.text(st.sampled_from("${}aA_. \\'#é"), max_size=12))
def test_a_dollar_stays_one(text: str) -> None:
    """Whatever stands in an environment reaches the process as it was, variables apart."""
    found = Conversion(
        written({"backends": {"m": {"runtime": "process", "command": ["s"], "environment": {"X": text}}}}), ()
    )
    assert read(found).backends["m"].environment == {"X": text}


def test_a_variable_stays_one() -> None:
    """``${env.NAME}`` is read when llmproxy starts."""
    assert written(marked("a ${env.HOME} $x")) == "a ${HOME} $x"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = [
    *(
        "cmd",
        "cmdStop",
        "proxy",
        "aliases",
        "env",
        "checkEndpoint",
        "ttl",
        "unlisted",
        "useModelName",
        "filters",
    ),
    *("macros", "concurrencyLimit", "unloadTimeout", "healthCheckTimeout", "metadata", "timeouts"),
]
_TOPS = [
    *("macros", "apiKeys", "peers", "hooks", "groups", "matrix", "routing", "selectors", "globalTTL"),
    *("healthCheckTimeout", "logLevel"),
]
_MODELS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=5),
    max_size=4,
)


@given(_MODELS, st.dictionaries(st.sampled_from(_TOPS), _VALUES, max_size=4))
def test_any_file(models: dict[str, Any], top: dict[str, Any]) -> None:
    """Whatever stands in a file, it is converted or refused in words; nothing else is raised."""
    text = yaml.safe_dump({**top, "models": models}, allow_unicode=True)
    try:
        found = convert(text)
    except ConfigError:
        return
    assert "backends" in yaml.safe_load(config_text(found.document, "x", found.remarks))
