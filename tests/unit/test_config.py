"""The five sources, alone and together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.config.compose import read_compose
from llmproxy.config.describe import describe
from llmproxy.config.fields import FIELDS
from llmproxy.config.file import read_file
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, Replicas
from llmproxy.config.resolve import CommandLine, Sources, read_sources
from llmproxy.config.schema import schema
from llmproxy.errors import ConfigError

CONTRACT = """
listen: ["tcp:8000"]
docker: {host: "unix:///var/run/docker.sock", compose_file: docker-compose.yml}
gpus: {"0": {memory: 24GiB, reserve: 1GiB}}
host_memory_for_sleep: 32GiB
scheduler: {max_wait_before_drain: 30s}
limits: {max_body: 64MiB, max_connections: 4096, max_held: 10000}
drain: 30s
stop_backends_on_exit: false
state_dir: /var/lib/llmproxy
defaults: {idle: 10m, start_timeout: 5m}
backends:
  coder:
    container: coder3b
    port: 8001
  chat:
    image: vllm/vllm-openai:latest
    args: [--model, microsoft/Phi-3.5-mini-instruct, --served-model-name, sitechat]
    environment: {HF_TOKEN: "${HF_TOKEN:-}"}
    volumes: ["/srv/llm/.cache:/root/.cache/huggingface"]
    port: 8002
  local:
    runtime: process
    command: [llama-server, --port, "${port}", -m, model.gguf]
    cwd: /srv/llm
  far:
    runtime: url
    url: http://192.168.1.20:8000
keys:
  - {name: me, secret_env: VLLM_API_KEY, admin: true}
  - {name: site, secret_env: SITE_KEY, routes: [chat], may_evict: false, requests_per_minute: 60}
"""

SECRETS = {"VLLM_API_KEY": "k-one-very-secret", "SITE_KEY": "k-two-very-secret"}


def read(file: str | None = None, environ: Mapping[str, str] | None = None, **more: Any) -> Config:
    return read_sources(Sources(environ or {"VLLM_API_KEY": "k"}, file, **more))


def fault(file: str | None = None, environ: Mapping[str, str] | None = None, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(file, environ, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_contracts_file() -> None:
    """The example of the contract is read as it says."""
    config = read(CONTRACT, SECRETS)
    assert list(config.backends) == ["coder", "chat", "local", "far"]
    coder, chat, local, far = config.backends.values()
    assert (coder.container, coder.port, coder.idle, coder.start_timeout) == ("coder3b", 8001, 600, 300)
    assert (chat.container, chat.environment) == ("llmproxy-chat", {"HF_TOKEN": ""})
    assert local.command == ("llama-server", "--port", "${port}", "-m", "model.gguf")
    assert (far.url, far.idle) == ("http://192.168.1.20:8000", 0)
    assert config.gpus["0"].memory == 24 * 2**30
    assert config.limits.max_body == 64 * 2**20
    assert [(key.name, key.admin, key.routes) for key in config.keys] == [
        ("me", True, None),
        ("site", False, ("chat",)),
    ]
    assert config.backend_key == "k-one-very-secret"


def test_precedence_field_by_field() -> None:
    """Defaults, file, labels, environment: the later wins, and where it came from is kept."""
    labels = LabelledContainer(
        "coder3b", {"llmproxy.route": "coder", "llmproxy.idle": "3m", "llmproxy.port": "81"}
    )
    file = (
        "defaults: {idle: 1m, max_waiting: 7}\nbackends: {coder: {idle: 2m, container: coder3b, health: /h}}"
    )
    config = read(file, {"VLLM_API_KEY": "k", "MAP__CODER__port": "82"}, containers=[labels])
    coder = config.backends["coder"]
    assert (coder.idle, coder.port, coder.max_waiting, coder.health) == (180, 82, 7, "/h")
    assert config.sources["backends.coder.idle"] == "label llmproxy.idle on container coder3b"
    assert config.sources["backends.coder.port"] == "environment MAP__CODER__port"
    assert config.sources["backends.coder.max_waiting"] == "llmproxy.yaml defaults.max_waiting"
    assert "backends.coder.pinned" not in config.sources
    config = read(file, {"VLLM_API_KEY": "k", "IDLE_SECONDS": "4"}, containers=[labels])
    assert config.backends["coder"].idle == 4
    environ = {"VLLM_API_KEY": "k", "IDLE_SECONDS": "4", "MAP__coder__idle": "5"}
    assert read(file, environ, containers=[labels]).backends["coder"].idle == 5


def test_the_command_line_wins() -> None:
    """--listen takes the place of what file and environment say."""
    environ = {"VLLM_API_KEY": "k", "LLMPROXY_LISTEN": "tcp:2"}
    assert read('listen: ["tcp:1"]', environ).listen == ("tcp:2",)
    assert read('listen: ["tcp:1"]', environ, options=CommandLine(("tcp:3", "unix:/x"))).listen == (
        "tcp:3",
        "unix:/x",
    )


def test_the_launchers_environment() -> None:
    """The stack that llmproxy replaces is configured by its variables alone."""
    environ = {
        "VLLM_API_KEY": "k",
        "IDLE_SECONDS": "900",
        "START_TIMEOUT_SECONDS": "400",
        "PREWARM_ROUTES": "coder, chat",
        "MAP__coder__container": "coder3b",
        "MAP__coder__port": "8001",
        "MAP__chat__container": "sitechat",
        "MAP__vision__container": "vision",
        "MAP__vision__health": "/healthz",
        "MAP__vision__auth": "passthrough",
        "MAP__vision__models": "a,b",
    }
    config = read(None, environ)
    coder, chat, vision = (config.backends[name] for name in ("coder", "chat", "vision"))
    assert (coder.container, coder.port, coder.idle, coder.start_timeout) == ("coder3b", 8001, 900, 400)
    assert (coder.prewarm, chat.prewarm, vision.prewarm) == (True, True, False)
    assert (vision.health, vision.auth, vision.models) == ("/healthz", "passthrough", ("a", "b"))


@pytest.mark.parametrize(
    ("file", "environ", "words"),
    [
        ("bakends: {}", {}, "unknown key 'bakends'; did you mean 'backends'"),
        ("backends: {coder: {contaner: x}}", {}, "llmproxy.yaml backends.coder: unknown key 'contaner'"),
        ("backends: {coder: {container: x, port: 70000}}", {}, "port is 70000"),
        ("backends: {coder: {container: x, port: '80'}}", {}, "a whole number from 1 to 65535"),
        ("backends: {coder: {container: x, idle: -1}}", {}, "idle is -1"),
        ("backends: {coder: {container: x, idle: soon}}", {}, "as in 90s"),
        ("backends: {v1: {container: x}}", {}, "cannot be a route"),
        ("backends: {API: {container: x}}", {}, "cannot be a route"),
        ("backends: {a b: {container: x}}", {}, "no route name"),
        ("backends: {a: {container: x}, A: {container: y}}", {}, "twice"),
        ("backends: {a: {container: x}, a: {container: y}}", {}, "twice"),
        ("backends: {a: {container: x}, b: {container: x}}", {}, "the same container"),
        ("backends: {a: {container: x, models: [m]}, b: {container: y, models: [m]}}", {}, "named 'm'"),
        ("backends: {a: {}}", {}, "needs container or image"),
        ("backends: {a: {runtime: process}}", {}, "needs command"),
        ("backends: {a: {runtime: url}}", {}, "needs url"),
        ("backends: {a: {runtime: url, url: ftp://x}}", {}, "http://host"),
        ("backends: {a: {runtime: url, url: 'http://x/a b'}}", {}, "without spaces"),
        ('backends: {a: {runtime: url, url: "http://x/a\\r\\nX-Evil: 1"}}', {}, "without spaces"),
        ('backends: {a: {runtime: url, url: "http://x/\\u00e4"}}', {}, "without spaces"),
        ("backends: {a: {runtime: url, url: 'http://x\\y/'}}", {}, "without spaces"),
        ("", {"VLLM_API_KEY": "one\r\nX-Evil: 1"}, "control character"),
        (
            "backends: {a: {runtime: url, url: 'http://x', container: y}}",
            {},
            "container is for runtime docker",
        ),
        ("backends: {a: {url: 'http://x'}}", {}, "its runtime is docker; say runtime: url"),
        ("backends: {a: {runtime: swarm}}", {}, "needs service or image"),
        ("backends: {a: {runtime: swarm, service: x, sleep: 1}}", {}, "never put to sleep"),
        (
            "backends: {a: {runtime: swarm, service: x, replicas: {min: 3, max: 2}}}",
            {},
            "min no more than max",
        ),
        ("backends: {a: {runtime: swarm, service: x, replicas: {most: 2}}}", {}, "min no more than max"),
        ("backends: {a: {runtime: swarm, image: x, reservations: {gpu: 0}}}", {}, "whole numbers from 1"),
        ("backends: {a: {container: x, replicas: {max: 2}}}", {}, "replicas is for runtime swarm"),
        ("backends: [a]", {}, "must be a mapping"),
        ("- a", {}, "must be a mapping"),
        ("a: [", {}, "line"),
        ("listen: tcp:8000", {}, "a list of texts"),
        ("limits: {max_bdy: 1}", {}, "did you mean 'max_body'"),
        ("drain: {}", {}, "drain is {}"),
        ("backends: {a: {image: '${NOPE}'}}", {}, "the environment has no NOPE"),
        ("keys: [{name: a}]", {}, "one of secret_env, secret and hash"),
        ("keys: [{name: a, secret: s1-x, secret_env: V}]", {}, "one of secret_env, secret and hash"),
        ("keys: [{name: a, secret_env: NOPE}]", {}, "NOPE, which is not set"),
        ("keys: [{name: a, secret: x}, {name: a, secret: y}]", {}, "another one has"),
        ("keys: [{secret: x}]", {}, "needs a name"),
        (None, {"IDLE_SECONDS": "ten"}, "environment IDLE_SECONDS is 'ten'"),
        (None, {"MAP__coder__port": "x", "MAP__coder__container": "c"}, "environment MAP__coder__port"),
        (None, {"MAP__coder__prot": "1"}, "unknown key 'prot'; did you mean 'port'"),
        (None, {"MAP__coder": "1"}, "MAP__<route>__<field>"),
        (None, {"PREWARM_ROUTES": "nope"}, "there is no route 'nope'"),
    ],
)
def test_every_bad_setting_is_one_line(file: str | None, environ: dict[str, str], words: str) -> None:
    """It names where it stands, and what is allowed."""
    assert words in fault(file, {"VLLM_API_KEY": "k", **environ})


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"llmproxy.route": "v1"}, "container c label llmproxy.route"),
        ({"llmproxy.route": "a", "llmproxy.idel": "1"}, "did you mean 'idle'"),
        ({"llmproxy.route": "a", "llmproxy.port": "x"}, "container c label llmproxy.port"),
        ({"llmproxy.port": "1"}, "no llmproxy.route"),
    ],
)
def test_every_bad_label_is_one_line(labels: dict[str, str], words: str) -> None:
    """It names the container and the label."""
    assert words in fault(containers=[LabelledContainer("c", labels)])


def test_labels_make_a_route() -> None:
    """Lists are comma-separated, booleans are words, and llmproxy's own marks say nothing."""
    labels = {
        "llmproxy.route": "Coder",
        "llmproxy.models": "a, b",
        "llmproxy.pinned": "yes",
        "llmproxy.gpu_memory": "0.5",
        "llmproxy.args": '["--x", "1"]',
        "com.example": "z",
        "llmproxy.managed": "true",
    }
    coder = read(containers=[LabelledContainer("c", labels)]).backends["coder"]
    assert (coder.container, coder.models, coder.pinned) == ("c", ("a", "b"), True)
    assert (coder.gpu_memory, coder.args) == (0.5, ("--x", "1"))
    assert read(containers=[LabelledContainer("d", {"llmproxy.managed": "true"})]).backends == {}


def test_labels_of_a_service_make_a_route() -> None:
    """It is a Swarm's, and what proxies note there for each other says nothing."""
    labels = {
        "llmproxy.route": "coder",
        "llmproxy.replicas": "min=1,max=3",
        "llmproxy.run": "0123",
        "llmproxy.used.0a1b": "1@1700000000",
        "llmproxy.managed.spec": "x",
    }
    service = LabelledContainer("stack_coder", labels, kind="service")
    coder = read(containers=[service]).backends["coder"]
    assert (coder.runtime, coder.service, coder.container) == ("swarm", "stack_coder", None)
    assert coder.replicas == Replicas(1, 3)
    words = fault(containers=[LabelledContainer("c", {"llmproxy.route": "coder"}), service])
    assert "stands on container c too" in words
    for name in ("service", "runtime", "container"):
        labels = {"llmproxy.route": "a", f"llmproxy.{name}": "x"}
        assert "not a label" in fault(containers=[LabelledContainer("s", labels, kind="service")])


def test_two_containers_cannot_have_one_route() -> None:
    """The second one is an error that names both."""
    words = fault(containers=[LabelledContainer(name, {"llmproxy.route": "a"}) for name in ("c", "d")])
    assert "c" in words
    assert "d" in words


COMPOSE = """
x-env: &env {A: "1", VLLM_API_KEY: "${VLLM_API_KEY:?set it}"}
x-base: &base
  image: ${IMAGE:-vllm}
  environment: {<<: *env, B: "$$x"}
services:
  one:
    <<: *base
    container_name: one-c
    command: vllm serve x/y --port 8001
    labels: {llmproxy.route: one, llmproxy.port: 8001, llmproxy.pinned: true}
  two:
    image: z
    container_name: two-c
    entrypoint: [a]
    command: ["b", 3]
    environment: [C=1, D]
    labels: ["llmproxy.route=two"]
    profiles: [p]
"""


def test_compose_services_are_routes_before_their_containers_exist() -> None:
    """Labels of the compose file count until a container of that name has its own."""
    services = read_compose(COMPOSE, "docker-compose.yml", {"D": "d", "VLLM_API_KEY": "k"})
    one, two = services
    assert (one.container_name, one.image, one.args[:3]) == ("one-c", "vllm", ("vllm", "serve", "x/y"))
    assert one.environment == {"A": "1", "VLLM_API_KEY": "k", "B": "$x"}
    assert (two.args, two.environment, two.profiles) == (("a", "b", "3"), {"C": "1", "D": "d"}, ("p",))
    config = read(compose=services)
    assert config.backends["one"].port == 8001
    assert config.backends["two"].container == "two-c"
    real = LabelledContainer("one-c", {"llmproxy.route": "one", "llmproxy.port": "9"})
    assert read(compose=services, containers=[real]).backends["one"].port == 9


def test_a_labelled_service_needs_a_container_name() -> None:
    """Compose would choose one that nobody knows beforehand."""
    services = read_compose("services: {one: {labels: {llmproxy.route: one}}}", "c.yml", {})
    assert "container_name" in fault(compose=services)


@pytest.mark.parametrize("text", ["a: [", "services: 5", "x: 1", "- a"])
def test_a_file_that_is_no_compose_file(text: str) -> None:
    """It is told by its name."""
    with pytest.raises(ConfigError, match=r"^c\.yml: it is "):
        read_compose(text, "c.yml", {})


def test_without_a_key_it_binds_to_loopback_only() -> None:
    """And says so; other kinds of endpoints stay."""
    config = read('listen: ["tcp:8000", "tcp:1:interface=0.0.0.0", "unix:/x"]', {"HOME": "/h"})
    assert config.listen == ("tcp:8000:interface=127.0.0.1", "tcp:1:interface=127.0.0.1", "unix:/x")
    assert "loopback only" in config.notes[0]
    assert config.state_dir == "/h/.local/state/llmproxy"
    assert read("", {"VLLM_API_KEY": "k"}).listen == ("tcp:8000",)


def test_keys_of_the_environment() -> None:
    """VLLM_API_KEY is client and administrator, unless LLMPROXY_ADMIN_KEY is; the file wins over both."""
    assert [(k.name, k.admin) for k in read(None, {"VLLM_API_KEY": "a"}).keys] == [("default", True)]
    both = read(None, {"VLLM_API_KEY": "a", "LLMPROXY_ADMIN_KEY": "b"})
    assert [(k.name, k.admin) for k in both.keys] == [("default", False), ("admin", True)]
    named = read("keys: [{name: me, secret_env: VLLM_API_KEY, routes: [x]}]", {"VLLM_API_KEY": "a"})
    assert [(k.name, k.routes) for k in named.keys] == [("me", ("x",))]


def test_the_demo_takes_the_place_of_all_routes() -> None:
    """Only the three demo models, whatever else is configured."""
    config = read(
        "backends: {x: {container: y}}",
        {"VLLM_API_KEY": "k", "MAP__coder__container": "coder3b", "IDLE_SECONDS": "9"},
        options=CommandLine(demo=True, python="/py"),
    )
    assert list(config.backends) == ["coder", "chat", "qwen7b"]
    coder = config.backends["coder"]
    assert (coder.runtime, coder.command[0], coder.models, coder.idle) == ("process", "/py", ("coder3b",), 9)


def test_describe_shows_everything_but_secrets() -> None:
    """Each setting with its source; no key and no value of an environment."""
    environ = {**SECRETS, "HF_TOKEN": "hf_very_secret"}
    rows = describe(read(CONTRACT, environ))
    named = {name: (value, source) for name, value, source in rows}
    assert named["backends.coder.idle"] == ("600", "llmproxy.yaml defaults.idle")
    assert named["backends.coder.pinned"] == ("false", "default")
    text = str(rows)
    for secret in (*SECRETS.values(), "hf_very_secret"):
        assert secret not in text


def test_no_secret_in_an_error() -> None:
    """A key or an environment that is wrong is told without its value."""
    assert "s3cr3t" not in fault("keys: [{name: a, secret: [s3cr3t]}]")
    assert "s3cr3t" not in fault("backends: {a: {image: x, environment: [s3cr3t]}}")


def test_the_loader_finds_files(tmp_path: Path) -> None:
    """It reads the named file and the compose file that it names, and tells what it cannot read."""
    (tmp_path / "c.yml").write_text(COMPOSE)
    file = tmp_path / "my.yaml"
    file.write_text(f"docker: {{compose_file: {tmp_path}/c.yml}}")
    loader = Loader({"VLLM_API_KEY": "k", "PREWARM_ROUTES": "one"}, CommandLine(), str(file))
    assert loader.docker_settings().compose_file == f"{tmp_path}/c.yml"
    assert list(loader.load([]).backends) == ["one", "two"]
    assert [service.name for service in loader.compose] == ["one", "two"]
    with pytest.raises(ConfigError, match="No such file"):
        Loader({}, CommandLine(), str(tmp_path / "none.yaml")).load([])
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        Loader({}, CommandLine(), str(file)).load([])


# -- the schema -------------------------------------------------------------------------------------

SCHEMA = schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_published_schema_is_current() -> None:
    """llmproxy.schema.json is what the tables say."""
    published = Path(__file__).parents[2] / "llmproxy" / "config" / "llmproxy.schema.json"
    assert json.loads(published.read_text()) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_takes_the_contracts_file() -> None:
    """The example of the contract is valid."""
    VALIDATOR.validate(yaml.safe_load(CONTRACT))


_odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 100_000_000),
    st.floats(-1, 2, allow_nan=False),
    st.sampled_from(
        ["", " ", "a", "/health", "90s", "10m", "14GiB", "0.5", "auto", "off", "docker", "vllm", "key"]
    ),
    st.lists(st.sampled_from(["a", "b", 1, True, None]), max_size=2),
    st.dictionaries(st.sampled_from(["A", "b=c"]), st.sampled_from(["x", 1, None, []]), max_size=1),
)
_fields = st.dictionaries(st.sampled_from([*FIELDS, "unknown"]), _odd, max_size=2)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["coder", "V1", "a b", "x.y"]), _fields, max_size=1),
    st.dictionaries(
        st.sampled_from(
            ["drain", "listen", "state_dir", "stop_backends_on_exit", "host_memory_for_sleep", "nope"]
        ),
        _odd,
        max_size=1,
    ),
    st.dictionaries(st.sampled_from(["max_body", "max_held", "x"]), _odd, max_size=1),
)
def test_schema_and_parser_agree(
    backends: dict[str, Any], top: dict[str, Any], limits: dict[str, Any]
) -> None:
    """Each takes what the other takes, but for what only looking at fields together can tell."""
    document = {**top, "limits": limits, "backends": backends}
    valid = VALIDATOR.is_valid(document)
    try:
        read(yaml.safe_dump(document))
    except ConfigError as error:
        told = str(error)
    else:
        assert valid, list(VALIDATOR.iter_errors(document))
        return
    together = ("needs container", "needs command", "needs url", "is for runtime", "swarm", "must be")
    assert not valid or any(words in told for words in together), told


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    """It is an error like any other, and no crash of the parser."""
    for text in ("[" * 100_000, "{" * 3000, "- " * 5000):
        with pytest.raises(ConfigError, match=r"not valid YAML|nesting"):
            read_file(text, "llmproxy.yaml", {})


def test_replicas() -> None:
    """``replicas`` is a mapping in the file, and pairs elsewhere; whoever wants some at least keeps them."""
    file = "backends: {a: {runtime: swarm, service: x, replicas: {max: 4, in_after: 1m}}}"
    spec = read_sources(Sources({}, file)).backends["a"]
    assert spec.replicas == Replicas(0, 4, in_after=60.0)
    assert spec.idle == 600.0
    environ = {"MAP__a__replicas": "min=2,target_in_flight=3"}
    spec = read_sources(Sources(environ, file)).backends["a"]
    assert spec.replicas == Replicas(2, 2, 3)
    assert (spec.idle, spec.prewarm, spec.sleep) == (0.0, True, "off")


@pytest.mark.parametrize(("written", "meant"), [("0", 0), ("64", 64), ("10000000", 10_000_000)])
def test_numbers_from_0(written: str, meant: int) -> None:
    """Nought is one of them, and means none or no limit, as the setting says."""
    found = read(f"limits: {{max_connections_per_address: {written}}}")
    assert found.limits.max_connections_per_address == meant


@pytest.mark.parametrize("written", ["-1", "1.5", "true", "many", '"64"', "10000001", "[]"])
def test_what_is_no_number_from_0(written: str) -> None:
    """It is refused by the setting's name."""
    told = fault(f"limits: {{max_connections_per_address: {written}}}")
    assert "limits.max_connections_per_address" in told
