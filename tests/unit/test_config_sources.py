"""Where sources meet: references, defaults, prewarming, keys, the demo, and listening without a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock

from llmproxy.config.compose import read_compose
from llmproxy.config.describe import describe
from llmproxy.config.interpolate import compose_text, strict_text
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.listen import loopback
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config
from llmproxy.config.resolve import CommandLine, Sources, read_sources
from llmproxy.errors import ConfigError

KEY = {"VLLM_API_KEY": "k-client"}
DEMO = CommandLine(demo=True, python="/py")


def read(file: str | None = None, environ: Mapping[str, str] = KEY, **more: Any) -> Config:
    return read_sources(Sources(environ, file, **more))


def fault(file: str | None = None, environ: Mapping[str, str] = KEY, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(file, environ, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_reference_stands_for_any_value() -> None:
    """The environment holds only texts; what they write is read as a label would be."""
    file = """
backends:
  a:
    container: x
    port: ${PORT}
    prewarm: ${WARM:-true}
    models: ${MODELS}
    max_in_flight: ${FLIGHT:-3}
    idle: ${IDLE:-90s}
    health: ${PATH_:-/h}
limits: {max_held: "${HELD:-7}"}
stop_backends_on_exit: ${STOP:-yes}
keys: [{name: a, secret: "${S}", streams: "${N:-2}", priority: "${N:-2}", admin: "${A:-true}"}]
"""
    config = read(file, {**KEY, "PORT": "81", "MODELS": "m, n", "S": "12345"})
    spec = config.backends["a"]
    assert (spec.port, spec.prewarm, spec.models, spec.max_in_flight) == (81, True, ("m", "n"), 3)
    assert (spec.idle, spec.health) == (90, "/h")
    assert (config.limits.max_held, config.stop_backends_on_exit) == (7, True)
    key = config.keys[0]
    assert (key.secret, key.streams, key.priority, key.admin) == ("12345", 2, 2, True)
    assert "port is 'x'" in fault("backends: {a: {container: c, port: '${P:-x}'}}")


def test_dollars() -> None:
    """Two are one; ${port} of a process is left for its start."""
    environ = {"A": "1", "EMPTY": ""}
    assert strict_text("$$ $${A} ${A} $A ${EMPTY:-d} ${NONE:-}", environ) == "$ ${A} 1 $A d "
    assert strict_text("${port} ${A}", environ, frozenset(("port",))) == "${port} 1"
    with pytest.raises(KeyError, match="NONE"):
        strict_text("${NONE}", environ)
    process = "backends: {a: {runtime: process, command: [x, '${port}'], environment: {P: '${port}'}}}"
    assert read(process).backends["a"].command == ("x", "${port}")
    assert "no port" in fault("backends: {a: {image: x, args: ['${port}']}}")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("$A-${A}", "1-1"),
        ("${NONE} $NONE.", " ."),
        ("${NONE:-d} ${EMPTY:-d} ${EMPTY-d} ${NONE-d}", "d d  d"),
        ("${NONE:?say so} ${A?m}", " 1"),
        ("${A:+yes} ${EMPTY:+yes} ${EMPTY+yes}", "yes  yes"),
        ("${NONE:-${EMPTY:-${A}}}/x", "1/x"),
        ("${NONE:-a}b}", "ab}"),
        ("$$A $$$A", "$A $1"),
        ("${NONE:-open", "${NONE:-open"),
        ("100% $ {A} ${}", "100% $ {A} ${}"),
    ],
)
def test_composes_interpolation(written: str, wanted: str) -> None:
    """Every form that Compose knows, nested ones too; what is not set is empty."""
    assert compose_text(written, {"A": "1", "EMPTY": ""}) == wanted


@given(st.text("${}:-?+A_ x"), st.dictionaries(st.sampled_from(["A", "A_", "_"]), st.text()))
def test_any_text_is_interpolated(text: str, environ: dict[str, str]) -> None:
    """Nothing is an error, and a text without a dollar stays as it is."""
    told = compose_text(text, environ)
    assert told == text or "$" in text


def test_compose_follows_yaml_1_2() -> None:
    """Scalars are what is written; only << and null are resolved; tags of Compose are ignored."""
    text = """
x-base: &base {environment: {A: "a"}, labels: {llmproxy.sleep: off, llmproxy.idle: 012}}
services:
  one:
    <<: *base
    container_name: one
    labels: {llmproxy.route: one, llmproxy.sleep: off, llmproxy.pinned: yes}
    environment: {NO: no, TIME: 22:22, N: 0.90, FROM: null, NOT: ~}
    ports: !override ["22:22", {target: 80, published: 81, host_ip: 127.0.0.1, protocol: tcp}, {target: 9}]
    command: vllm serve x --name "it's
    entrypoint: !reset null
"""
    (one,) = read_compose(text, "c.yml", {"FROM": "env"})
    assert one.environment == {"NO": "no", "TIME": "22:22", "N": "0.90", "FROM": "env", "NOT": ""}
    assert one.ports == ("22:22", "127.0.0.1:81:80/tcp", "9")
    assert one.args[:3] == ("vllm", "serve", "x")
    spec = read(compose=(one,)).backends["one"]
    assert (spec.sleep, spec.pinned) == ("off", True)


def test_defaults_reach_only_who_understands_them() -> None:
    """A default that the runtime does not know is left out; the same written for the backend is an error."""
    file = "defaults: {image: i, idle: 5}\nbackends: {a: {runtime: url, url: 'http://x'}, b: {}}"
    config = read(file)
    assert config.backends["a"].image is None
    assert (config.backends["b"].image, config.backends["b"].container) == ("i", "llmproxy-b")
    for field in ("port: 1", "environment: {A: b}", "gpu_memory: 0.5", "cwd: /", "service: s"):
        told = fault(f"backends: {{a: {{runtime: url, url: 'http://x', {field}}}}}")
        assert f"{field.partition(':')[0]} is for runtime" in told
    assert "cannot sleep" in fault("backends: {a: {container: c, engine: generic, sleep: 1}}")


def test_prewarming() -> None:
    """PREWARM_ROUTES is above the file and below what the environment says of the route itself."""
    file = "backends: {a: {container: a, prewarm: false}, b: {container: b}}"
    environ = {**KEY, "PREWARM_ROUTES": "A b", "MAP__b__prewarm": "false"}
    config = read(file, environ)
    assert (config.backends["a"].prewarm, config.backends["b"].prewarm) == (True, False)
    assert config.sources["backends.a.prewarm"] == "environment PREWARM_ROUTES"


def test_the_demo_starts_whatever_is_configured() -> None:
    """Defaults and routes to prewarm that are meant for real models do not keep it from starting."""
    file = "defaults: {image: i, runtime: docker, port: 80, models: [x], idle: 7}"
    config = read(file, {**KEY, "PREWARM_ROUTES": "coder,vision"}, options=DEMO)
    coder = config.backends["coder"]
    assert (coder.runtime, coder.image, coder.models, coder.idle) == ("process", None, ("coder3b",), 7)
    assert (coder.prewarm, config.backends["chat"].prewarm) == (True, False)


def test_a_label_cannot_name_the_container() -> None:
    """It is the one that the label stands on."""
    labels = {"llmproxy.route": "a", "llmproxy.container": "other"}
    assert "llmproxy.container" in fault(containers=[LabelledContainer("c", labels)])


def test_keys_do_not_contradict_each_other() -> None:
    """One secret is one key, one name is one key, and no error tells a secret."""
    told = [
        fault("keys: [{name: a, secret: s3cr3t}, {name: b, secret: s3cr3t}]"),
        fault("keys: [{name: default, secret: s3cr3t}]"),
        fault("keys: [{name: admin, secret: s3cr3t}]", {"LLMPROXY_ADMIN_KEY": "other-s3cr3t"}),
    ]
    assert "a and b" in told[0]
    assert "VLLM_API_KEY" in told[1]
    assert "LLMPROXY_ADMIN_KEY" in told[2]
    assert "s3cr3t" not in str(told)
    same = read("keys: [{name: default, secret: k-client}]")
    assert [(key.name, key.admin) for key in same.keys] == [("default", False)]
    assert "no key is an admin key" in str(same.notes)
    both = read("keys: [{name: a, secret: s}]", {"VLLM_API_KEY": "s", "LLMPROXY_ADMIN_KEY": "s"})
    assert [(key.name, key.admin) for key in both.keys] == [("a", True)]


def test_remarks() -> None:
    """A key that everybody knows is told without the key."""
    assert read("keys: [{name: a, secret: s-one, streams: 2, admin: true}]", {}).notes == ()
    assert "everybody tries" in str(read(None, {"VLLM_API_KEY": "changeme"}).notes)
    assert "changeme" not in str(read(None, {"VLLM_API_KEY": "changeme"}).notes)


def test_describe_tells_sources_and_no_secrets() -> None:
    """Keys have a source as all settings have; a command line is shown without its secrets."""
    file = """
backends: {a: {image: i, args: [--api-key, SECRETX, --hf, "${T}", --port, 80], environment: {T: "${T}"}}}
keys: [{name: site, secret: SECRETY, routes: [a]}]
"""
    rows = {name: (value, source) for name, value, source in describe(read(file, {**KEY, "T": "SECRETZZ"}))}
    assert rows["backends.a.args"][0] == "--api-key *** --hf *** --port 80"
    assert rows["keys.site"] == ("client; routes a; secret ***", "llmproxy.yaml keys[0]")
    assert rows["keys.default"] == ("admin; secret ***", "environment VLLM_API_KEY")
    assert "SECRET" not in str(rows)


@pytest.mark.parametrize(
    ("written", "bound"),
    [
        ("tcp:8000", "tcp:8000:interface=127.0.0.1"),
        ("tcp:port=8000:interface=0.0.0.0:backlog=9", "tcp:port=8000:backlog=9:interface=127.0.0.1"),
        ("tcp:8000:0.0.0.0", "tcp:8000:interface=127.0.0.1"),
        ("tcp:8000:0.0.0.0:50", "tcp:8000:interface=127.0.0.1"),
        (r"tcp:8000:interface=\:\:", "tcp:8000:interface=127.0.0.1"),
        (r"tcp6:8000:9:\:\:", r"tcp6:8000:9:interface=\:\:1"),
        (r"tcp6:8000:interface=\:\:", r"tcp6:8000:interface=\:\:1"),
        ("haproxy:tcp:8000", "haproxy:tcp:8000:interface=127.0.0.1"),
        (r"ssl:443:privateKey=C\:\\k.pem", r"ssl:443:privateKey=C\:\\k.pem:interface=127.0.0.1"),
        ("unix:/run/x", "unix:/run/x"),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
    ],
)
def test_without_a_key_every_endpoint_is_local(written: str, bound: str) -> None:
    """However the interface is written, it becomes loopback; sockets of others stay as they are."""
    assert loopback([written])[0] == (bound,)


@pytest.mark.parametrize(
    "written",
    ["tcp:8000", "tcp:8000:0.0.0.0:9", r"tcp:8000:interface=\:\:", r"tcp6:8000:9:\:\:", "haproxy:tcp:8000"],
)
def test_twisted_understands_what_is_bound(written: str) -> None:
    """What comes out is an endpoint, and it listens on loopback."""
    reactor = MemoryReactorClock()
    endpoint = serverFromString(reactor, loopback([written])[0][0])
    endpoint = getattr(endpoint, "_wrappedEndpoint", endpoint)
    assert endpoint._interface in ("127.0.0.1", "::1")


def test_what_cannot_be_kept_local_needs_a_key() -> None:
    """An endpoint of an unknown kind may listen anywhere."""
    assert "set VLLM_API_KEY" in fault('listen: ["onion:80"]', {})
    assert read('listen: ["onion:80"]').listen == ("onion:80",)


def test_the_state_folder() -> None:
    """The setting, then systemd's, then the user's; the loader knows the home where HOME does not say it."""
    assert read("state_dir: /f", {"LLMPROXY_STATE_DIR": "/e"}).state_dir == "/e"
    assert read("state_dir: /f", {"STATE_DIRECTORY": "/s"}).state_dir == "/f"
    assert read(None, {"STATE_DIRECTORY": "/s:/t", "HOME": "/h"}).state_dir == "/s"
    assert read(None, {"XDG_STATE_HOME": "/x", "HOME": "/h"}).state_dir == "/x/llmproxy"
    assert read(None, {}).state_dir == "~/.local/state/llmproxy"
    assert not Loader({}, CommandLine()).load([]).state_dir.startswith("~")
