"""The settings of the front door, from each source to what is shown."""

from __future__ import annotations

import pytest

from llmproxy.config.describe import describe
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import Config, Cors, Probes
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError

FILE = """
default_route: Coder
cors: {origins: ["https://Chat.example", "*"]}
probes: {user_agents: [kube-probe], paths: ["/v1/models"], health_completions: refuse}
backends:
  coder: {container: c, fallback: [Chat, gone], max_keep_alive: 2h, request_defaults: {a.b: 1}}
"""


def read(file: str = FILE) -> Config:
    labels = {"llmproxy.route": "chat", "llmproxy.fallback": "coder, far", "llmproxy.max_keep_alive": "5m"}
    environ = {"MAP__coder__request_overrides": '{"max_tokens": 5}', "MAP__chat__fallback": "coder"}
    return read_sources(Sources(environ, file=file, containers=[LabelledContainer("d", labels)]))


def test_every_source_is_read() -> None:
    """File, labels and environment; routes and origins have no case."""
    config = read()
    coder, chat = config.backends["coder"], config.backends["chat"]
    assert config.default_route == "coder"
    assert config.cors == Cors(("https://chat.example", "*"))
    assert config.probes == Probes(("kube-probe",), ("/v1/models",), "refuse")
    assert (coder.fallback, coder.max_keep_alive) == (("chat", "gone"), 7200.0)
    assert (chat.fallback, chat.max_keep_alive) == (("coder",), 300.0)
    assert (dict(coder.request_defaults), dict(coder.request_overrides)) == ({"a.b": 1}, {"max_tokens": 5})


def test_they_are_shown() -> None:
    """With where each came from."""
    rows = {name: (value, source) for name, value, source in describe(read())}
    assert rows["default_route"] == ("coder", "llmproxy.yaml default_route")
    assert rows["cors.origins"] == ("https://chat.example, *", "llmproxy.yaml cors.origins")
    assert rows["probes.user_agents"][0] == "kube-probe"
    assert rows["probes.health_completions"][0] == "refuse"
    assert rows["backends.chat.fallback"] == ("coder", "environment MAP__chat__fallback")
    shown = {name: value for name, value, _ in describe(Config())}
    assert shown["default_route"] == "not set"
    assert shown["cors.origins"] == "none"


def test_routes_that_are_not_there_are_remarked_on() -> None:
    """A container that brings the route may come later."""
    assert "backend coder: fallback is 'gone', and there is no such route" in read().notes
    notes = read(FILE.replace("default_route: Coder", "default_route: later")).notes
    assert "default_route is 'later', and there is no such route" in notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cors: {origins: [chat.example]}", "origins such as"),
        ("cors: {origins: ['https://chat.example/']}", "origins such as"),
        ("cors: {origins: []}", "origins such as|list of texts"),
        ("probes: {paths: [v1]}", "a list of paths"),
        ("probes: {health_completions: maybe}", "serve, refuse"),
        ("default_route: 5", "a text"),
        ("backends: {a: {container: c, fallback: chat}}", "a list of texts"),
        ("backends: {a: {container: c, max_keep_alive: long}}", "as in 90s"),
        ("backends: {a: {container: c, request_defaults: [x]}}", "a mapping of request fields"),
    ],
)
def test_what_is_not_allowed(text: str, words: str) -> None:
    """One line says what is."""
    with pytest.raises(ConfigError, match=words):
        read(text)


def test_an_environment_that_is_no_json_object() -> None:
    """Neither are fields of requests, without showing what may be a secret."""
    for value in ("{", "[]", '{"model": "x"}'):
        with pytest.raises(ConfigError, match=r"a JSON object|a mapping of request fields") as caught:
            read_sources(Sources({"MAP__a__container": "c", "MAP__a__request_defaults": value}))
        assert value not in str(caught.value)
