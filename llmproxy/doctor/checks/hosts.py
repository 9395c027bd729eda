"""Hosts beside this one.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llmproxy.doctor.facts import Engine, Facts
from llmproxy.doctor.findings import Finding, fail, ok, warn
from llmproxy.doctor.numbers import version_of

__all__ = ["check_hosts"]


def check_hosts(facts: Facts) -> Iterator[Finding]:
    """Whether the engine of each answers, and what is to be done if not."""
    config = facts.settings.config
    bound = {spec.host for spec in config.backends.values()} if config is not None else set()
    for name, engine in facts.hosts.items():
        check = f"docker.host.{name}"
        api = version_of(engine.api_version)
        if engine.answers and api and api < (1, 41):
            text = f"Docker {engine.version} of host {name} is too old: it speaks API {engine.api_version}."
            yield fail(check, text, "Install Docker 20.10 (API 1.41) or newer there.")
        elif engine.answers:
            yield ok(check, f"Docker {engine.version or '?'} of host {name} answers at {engine.host}.")
        else:
            text = f"Host {name} is away: {engine.host}: {engine.detail or engine.state}."
            # Without it the others serve what is not bound to it.
            yield (fail if name in bound else warn)(check, text, _fix(engine))


def _fix(engine: Engine) -> str:
    parts = urlsplit(engine.host)
    if parts.scheme == "ssh":
        port = f" -p {parts.port}" if parts.port else ""
        user = f"{parts.username}@" if parts.username else ""
        return (
            f"Try it as the user that the proxy runs as: ssh -o BatchMode=yes{port} {user}{parts.hostname}"
            " docker version. It takes a key, the other machine in known_hosts, and the docker command there."
        )
    if parts.scheme == "tcp":
        return (
            "Try it with the files of tls: docker --tlsverify --tlscacert CA --tlscert CERT --tlskey KEY"
            f" -H {engine.host} version. The name in its certificate has to be the one in that address."
        )
    return f"Try it: docker -H {engine.host} version."
