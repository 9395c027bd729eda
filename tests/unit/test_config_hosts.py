"""``hosts``: what may be said of other engines, and which backends may be where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.describe import describe
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import Config, Gpu, Host, Tls
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError

GIB = 2**30

TWO = """
hosts:
  tower: {docker: "ssh://me@tower", gpus: {"0": {memory: 24GiB, reserve: 1GiB}}}
  rack:
    docker: tcp://10.0.0.5:2376
    tls: {ca: /c/ca.pem, cert: ~/cert.pem, key: /c/key.pem}
    address: 10.0.0.5
gpus: {"0": {memory: 16GiB}}
"""


def read(file: str, *containers: LabelledContainer, **environ: str) -> Config:
    return read_sources(Sources({"VLLM_API_KEY": "k", **environ}, file, containers=containers))


def fault(file: str, *containers: LabelledContainer, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(file, *containers, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labelled(host: str, name: str = "chat3b", route: str = "chat", **labels: str) -> LabelledContainer:
    return LabelledContainer(name, {"llmproxy.route": route, **labels}, host)


def test_hosts_are_read() -> None:
    """Each has an engine, and may have TLS, an address, and GPUs, which are named after it."""
    config = read(TWO)
    assert config.hosts["tower"] == Host("ssh://me@tower", gpus={"0": Gpu(24 * GIB, GIB)})
    assert config.hosts["rack"] == Host(
        "tcp://10.0.0.5:2376", Tls("/c/ca.pem", "~/cert.pem", "/c/key.pem"), "10.0.0.5"
    )
    assert config.all_gpus == {"0": Gpu(16 * GIB), "tower/0": Gpu(24 * GIB, GIB)}
    engine = config.engine_of("rack")
    assert (engine.name, engine.host, engine.address) == ("rack", "tcp://10.0.0.5:2376", "10.0.0.5")


def test_what_containers_may_have_is_the_same_everywhere() -> None:
    """docker.allowed_mounts holds for all engines; Compose makes containers on the local one alone."""
    config = read(TWO + "docker: {allowed_mounts: [/models], compose_file: c.yml}\n")
    engine = config.engine_of("tower")
    assert engine.allowed_mounts == ("/models",)
    assert engine.compose_file is None


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("hosts: [llm.example.com]", "allowed_hosts"),
        ("hosts: tower", "mapping of Docker engines"),
        ("hosts: {local: {docker: 'ssh://a'}}", "engine of the docker section"),
        ("hosts: {a/b: {docker: 'ssh://a'}}", "no name of a host"),
        ("hosts: {a: }", "must be a mapping with docker"),
        ("hosts: {a: {}}", "docker is missing"),
        ("hosts: {a: {dokcer: 'ssh://a'}}", "did you mean 'docker'"),
        ("hosts: {a: {docker: 'http://a:1'}}", "unix:///path, tcp://host:port or ssh://"),
        ("hosts: {a: {docker: 'tcp://a'}}", "tcp://host:port"),
        ("hosts: {a: {docker: 'ssh://-oProxyCommand=x'}}", "not allowed"),
        ("hosts: {a: {docker: 'ssh://a', tls: {ca: /a, cert: /b, key: /c}}}", "tls is for tcp://"),
        ("hosts: {a: {docker: 'tcp://a:1', tls: {ca: /a}}}", "cert and key is missing"),
        ("hosts: {a: {docker: 'tcp://a:1', tls: {ca: a, cert: /b, key: /c}}}", "a path from / or ~ on"),
        ("hosts: {a: {docker: 'ssh://a', address: 'http://a'}}", "without a port"),
        ("hosts: {a: {docker: 'ssh://a', gpus: {0: {memory: lots}}}}", "hosts.a: gpus.0 has a size"),
        ("hosts: {a: {docker: 'ssh://a'}, b: {docker: 'ssh://a'}}", "a and b are the same engine"),
        ("hosts: {a: {docker: 'unix:///x'}}\ndocker: {host: 'unix:///x'}", "engine of the docker section"),
        (TWO + "backends: {a: {container: x, host: towr}}", "hosts: local, tower, rack"),
        (TWO + "backends: {a: {runtime: url, url: 'http://x', host: rack}}", "host is for runtime docker"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(file: str, told: str) -> None:
    """With the place, and what is allowed."""
    assert told in fault(file)


def test_the_local_engine_is_not_one_of_them() -> None:
    """Seen twice, its containers would be taken for doubles of each other."""
    assert "is local already" in fault("hosts: {a: {docker: 'tcp://a:1'}}", DOCKER_HOST="tcp://a:1")


def test_an_engine_that_is_open_to_everybody_is_told_of() -> None:
    """Who reaches such a port has the machine."""
    assert any("root" in note for note in read("hosts: {a: {docker: 'tcp://a:1'}}").notes)
    assert not any("root" in note for note in read(TWO).notes)


def test_a_backend_may_be_bound_to_a_host() -> None:
    """By the file or the environment; the engine of the docker section is called local."""
    config = read(
        TWO + "backends: {a: {container: x, host: rack}, b: {image: i}, c: {image: i, host: local}}"
    )
    assert [spec.host for spec in config.backends.values()] == ["rack", None, "local"]
    assert read(TWO + "backends: {a: {container: x}}", MAP__a__host="tower").backends["a"].host == "tower"


def test_a_labelled_container_is_where_it_is() -> None:
    """Its host is no label of its own."""
    assert read(TWO, labelled("rack")).backends["chat"].host == "rack"
    assert "is not a label" in fault(TWO, labelled("rack", **{"llmproxy.host": "tower"}))


def test_the_same_container_on_two_hosts_is_one_backend() -> None:
    """It may run on either; the labels of the first count."""
    config = read(
        TWO, labelled("local", **{"llmproxy.idle": "5"}), labelled("rack", **{"llmproxy.idle": "9"})
    )
    spec = config.backends["chat"]
    assert (spec.host, spec.container, spec.idle) == (None, "chat3b", 5)


def test_containers_of_one_name_on_two_hosts_may_be_two_backends() -> None:
    """Where each is bound to its host."""
    config = read(TWO, labelled("local", "vllm", "a"), labelled("rack", "vllm", "b"))
    assert {name: spec.host for name, spec in config.backends.items()} == {"a": "local", "b": "rack"}
    assert "same container" in fault(TWO + "backends: {a: {container: x}, b: {container: x, host: rack}}")


def test_one_route_on_two_containers_is_refused() -> None:
    """Which one is meant is not known."""
    assert "stands on container" in fault(TWO, labelled("local"), labelled("rack", "other"))


def test_containers_of_a_host_that_was_taken_away_count_no_more() -> None:
    """The runtime knows it until the next start."""
    assert read(TWO, labelled("former")).backends == {}


def test_hosts_are_shown() -> None:
    """`llmproxy config` has a line for each, and for its GPUs."""
    shown = {name: (value, source) for name, value, source in describe(read(TWO))}
    assert shown["hosts.rack"] == (
        "tcp://10.0.0.5:2376, tls ~/cert.pem, address 10.0.0.5",
        "llmproxy.yaml hosts",
    )
    assert shown["gpus.tower/0"][1] == "llmproxy.yaml hosts"
    assert "docker.tls" not in shown


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3))
def test_nothing_but_a_mapping_of_mappings_is_a_host(value: Any) -> None:
    """Whatever else it is, it is refused with one line."""
    from llmproxy.config.hosts import read_hosts

    with pytest.raises(ConfigError):
        read_hosts("f", {"a": value})
