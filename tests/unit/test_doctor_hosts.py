"""What the doctor says of other hosts, and does not say of what is on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from llmproxy.config.model import BackendSpec
from llmproxy.config.resolve import CommandLine
from llmproxy.doctor.checks.backends import known_backends, wants_docker
from llmproxy.doctor.facts import Engine, Facts
from llmproxy.doctor.gather.settings import Reading
from llmproxy.doctor.judge import judge
from tests.unit.test_doctor_checks import SPEC, facts, one

TOWER = Engine("ssh://me@tower:2222", "answers", version="28.2.2", api_version="1.50")
RACK = Engine("tcp://10.0.0.5:2376", "refused", "[Errno 111] Connection refused")
OTHER = BackendSpec("chat", container="chat3b", host="rack")


def hosts(*specs: BackendSpec, **engines: Engine) -> Facts:
    return facts(*(specs or (SPEC,)), hosts=engines)


def test_a_host_that_answers() -> None:
    """With its version."""
    one(judge(hosts(tower=TOWER)), "docker.host.tower", "ok", "28.2.2", "ssh://me@tower:2222")


def test_a_host_that_is_away() -> None:
    """A warning, as the others serve; a failure where something is bound to it."""
    one(judge(hosts(rack=RACK)), "docker.host.rack", "warn", "Connection refused", "--tlsverify")
    one(judge(hosts(SPEC, OTHER, rack=RACK)), "docker.host.rack", "fail")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ssh://me@tower:2222", "ssh -o BatchMode=yes -p 2222 me@tower docker version"),
        ("ssh://tower", "ssh -o BatchMode=yes tower docker version"),
        ("unix:///run/other.sock", "docker -H unix:///run/other.sock version"),
    ],
)
def test_how_to_try_it(host: str, words: str) -> None:
    """The command to begin with is told."""
    one(judge(hosts(x=Engine(host, "error", "it does not answer"))), "docker.host.x", "warn", words)


def test_an_engine_that_is_too_old() -> None:
    """It is spoken to from 20.10 on."""
    old = evolve(TOWER, version="19.03", api_version="1.40")
    one(judge(hosts(tower=old)), "docker.host.tower", "fail", "19.03")


def test_nothing_is_said_of_containers_elsewhere() -> None:
    """That this machine lacks them is no fault; those that it has are looked at."""
    anywhere = BackendSpec("any", container="any3b", image="demo:1")
    found = hosts(SPEC, OTHER, anywhere, rack=RACK)
    assert [known.route for known in known_backends(found)] == ["coder"]
    assert [known.route for known in known_backends(facts(SPEC, anywhere))] == ["coder", "any"]


def test_a_local_engine_that_nothing_needs() -> None:
    """Where all models are on other hosts, it may be absent."""
    found = evolve(hosts(OTHER, rack=TOWER), engine=Engine("unix:///x", "absent", "No such file"))
    found = evolve(found, compose=evolve(found.compose, file=None))
    assert not wants_docker(found)
    one(judge(found), "docker.engine", "skipped")
    assert wants_docker(evolve(found, hosts={}))


def test_hosts_are_read(tmp_path: Path) -> None:
    """From the settings; the demo has none."""
    file = tmp_path / "llmproxy.yaml"
    file.write_text("hosts: {tower: {docker: 'ssh://me@tower'}}\n")
    reading = Reading({}, {}, CommandLine(), str(file))
    reading.begin()
    assert {name: each.host for name, each in reading.hosts.items()} == {"tower": "ssh://me@tower"}
    demo = Reading({}, {}, CommandLine(demo=True), str(file))
    demo.begin()
    assert demo.hosts == {}
