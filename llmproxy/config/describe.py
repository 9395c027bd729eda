"""What ``llmproxy config`` shows: every setting in force, and where it came from.  Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from attrs import fields

from llmproxy.config.model import BackendSpec, Config, Host, Replicas
from llmproxy.engines.redaction import redact

__all__ = ["describe"]

_TOP = (
    "listen",
    "drain",
    "stop_backends_on_exit",
    "metrics_access",
    "trusted_proxies",
    "allowed_hosts",
    "state_dir",
    "default_route",
    "host_memory_for_sleep",
)

_SECTIONS = ("docker", "log", "cors", "probes", "scheduler", "usage", "limits")

_INNER = ("name", "tls", "address")
"""Of an engine's settings, what only those under ``hosts`` have."""

_UNSET = {"docker.host": "docker's own default", "docker.compose_file": "none"}
"""What it means that a setting has no value, where that is known."""


def describe(config: Config) -> list[tuple[str, str, str]]:
    """Every effective setting as name, value and source; secrets are not shown."""
    # A key may stand anywhere: in a path, a URL, a body that is put into requests.
    return [
        (name, redact(value, config.secrets), config.sources.get(source, "default"))
        for name, value, source in _rows(config)
    ]


def _rows(config: Config) -> Iterator[tuple[str, str, str]]:
    """Name, value, and the name by which the source of it is known."""
    settings = [(name, getattr(config, name)) for name in _TOP]
    for section in _SECTIONS:
        value = getattr(config, section)
        settings += [
            (f"{section}.{one.name}", getattr(value, one.name))
            for one in fields(type(value))
            if one.name not in _INNER
        ]
    for name, value in settings:
        yield name, _UNSET[name] if value is None and name in _UNSET else _shown(value), name
    for name, host in config.hosts.items():
        yield f"hosts.{name}", _host_shown(host), "hosts"
    for index, gpu in config.all_gpus.items():
        source = "hosts" if "/" in index else "gpus"
        yield f"gpus.{index}", f"memory {_shown(gpu.memory)}, reserve {gpu.reserve}", source
    for key in config.keys:
        rights = ["admin" if key.admin else "client"]
        rights += [f"routes {', '.join(key.routes)}"] if key.routes is not None else []
        yield f"keys.{key.name}", "; ".join((*rights, "secret ***")), f"keys.{key.name}"
    for route, spec in config.backends.items():
        for attribute in fields(BackendSpec):
            if attribute.name != "route":
                name = f"backends.{route}.{attribute.name}"
                yield name, _field_shown(spec, attribute.name), name


def _host_shown(host: Host) -> str:
    parts = [host.docker]
    if host.tls is not None:
        parts.append(f"tls {host.tls.cert}")
    if host.address is not None:
        parts.append(f"address {host.address}")
    if host.gpus == {}:
        parts.append("no GPU")
    return ", ".join(parts)


def _field_shown(spec: BackendSpec, name: str) -> str:
    value = getattr(spec, name)
    if name == "environment":
        return ", ".join(f"{key}=***" for key in value) or "none"
    if name in ("args", "command"):
        # What the environment holds may stand in the command line too; short values are no secrets.
        secrets = [text for text in spec.environment.values() if len(text) >= 8]
        return redact(shlex.join(value), secrets) or "none"
    if isinstance(value, Replicas):
        return ", ".join(f"{one.name} {_shown(getattr(value, one.name))}" for one in fields(Replicas))
    if name == "reservations":
        return ", ".join(f"{resource} {amount}" for resource, amount in value.items()) or "none"
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)
