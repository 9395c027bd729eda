"""``hosts``: more Docker engines than the local one, each with its GPUs.  Pure.

The engine of the ``docker`` section is one of them, too, under the name :data:`LOCAL`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmproxy.config import units
from llmproxy.config.fields import unknown_key
from llmproxy.config.model import LOCAL, Gpu, Host, Tls
from llmproxy.errors import ConfigError

__all__ = [
    "ADDRESS_PATTERN",
    "DOCKER_PATTERN",
    "FILE_PATTERN",
    "HOST_NAME_PATTERN",
    "LOCAL",
    "read_gpus",
    "read_hosts",
]

HOST_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
"""It stands before a GPU's index: ``tower/0``."""

_MACHINE = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"

DOCKER_PATTERN = (
    r"^(unix:///\S+"
    rf"|tcp://{_MACHINE}:[0-9]{{1,5}}"
    rf"|ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?{_MACHINE}(:[0-9]{{1,5}})?(/\S*)?)$"
)
"""Where an engine is.  Behind a machine that is reached by ssh may stand the path of the engine's socket."""

ADDRESS_PATTERN = r"^([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|[A-Za-z0-9][A-Za-z0-9._-]*)$"
"""A name or an address, without a port."""

FILE_PATTERN = r"^(~?/\S*)$"
"""The proxy changes its folder when it goes into the background, so that a path has to be whole."""

_SETTINGS = ("docker", "tls", "address", "gpus")
_TLS = ("ca", "cert", "key")


def read_hosts(name: str, value: Any) -> dict[str, Host]:
    """Read the section.

    :param name: what errors call the file.
    :raises llmproxy.errors.ConfigError: something of it is not allowed.
    """
    if isinstance(value, list):
        raise ConfigError(
            f"{name}: hosts is a list; names by which browsers may reach the proxy are allowed_hosts now, and"
            " hosts is a mapping of Docker engines by name"
        )
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: hosts must be a mapping of Docker engines by name")
    hosts: dict[str, Host] = {}
    places: dict[str, str] = {}
    for written, settings in value.items():
        host = str(written)
        if not re.search(HOST_NAME_PATTERN, host):
            raise ConfigError(
                f"{name} hosts: {host!r} is no name of a host; use small letters, digits, '.', '_' and '-'"
            )
        if host == LOCAL:
            raise ConfigError(
                f"{name} hosts: {LOCAL!r} is the engine of the docker section; call this one otherwise"
            )
        hosts[host] = _host(f"{name} hosts.{host}", settings)
        other = places.setdefault(hosts[host].docker, host)
        if other != host:
            raise ConfigError(f"{name} hosts: {other} and {host} are the same engine, {hosts[host].docker}")
    return hosts


def _host(place: str, value: Any) -> Host:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} must be a mapping with docker in it, such as ssh://me@tower")
    settings = {key: item for key, item in value.items() if item is not None}
    for key in value:
        if key not in _SETTINGS:
            raise unknown_key(place, key, _SETTINGS)
    if "docker" not in settings:
        raise ConfigError(f"{place}: docker is missing; say where its engine is, such as ssh://me@tower")
    docker = _text(
        f"{place}: docker",
        settings["docker"],
        DOCKER_PATTERN,
        "unix:///path, tcp://host:port or ssh://[user@]host[:port]",
    )
    address = settings.get("address")
    if address is not None:
        address = _text(f"{place}: address", address, ADDRESS_PATTERN, "a name or an address without a port")
    tls = None
    if "tls" in settings:
        if not docker.startswith("tcp:"):
            raise ConfigError(f"{place}: tls is for tcp://, and its docker is {docker}")
        tls = _tls(f"{place}.tls", settings["tls"])
    gpus = read_gpus(place, "gpus", settings["gpus"]) if "gpus" in settings else None
    return Host(docker, tls, address, gpus)


def _tls(place: str, value: Any) -> Tls:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} must be a mapping with ca, cert and key")
    for key in value:
        if key not in _TLS:
            raise unknown_key(place, key, _TLS)
    missing = [key for key in _TLS if value.get(key) is None]
    if missing:
        raise ConfigError(f"{place}: {' and '.join(missing)} is missing; it needs the files ca, cert and key")
    return Tls(
        **{key: _text(f"{place}: {key}", value[key], FILE_PATTERN, "a path from / or ~ on") for key in _TLS}
    )


def _text(place: str, value: Any, pattern: str, allowed: str) -> str:
    if not isinstance(value, str) or not re.search(pattern, value):
        raise ConfigError(f"{place} is {value!r}, which is not allowed; use {allowed}")
    return str(value)


def read_gpus(place: str, name: str, value: Any) -> Mapping[str, Gpu]:
    """Memory and reserve of GPUs, by index.

    :param place: where the mapping stands.
    :param name: what it is called there.
    :raises llmproxy.errors.ConfigError: something of it is not allowed.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {name} must be a mapping")
    gpus = {}
    for index, gpu in value.items():
        where = f"{name}.{index}"
        settings = {} if gpu is None else gpu
        if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
            raise ConfigError(f"{place}: {where} must be a mapping")
        for key in settings:
            if key not in ("memory", "reserve"):
                raise unknown_key(f"{place} {where}", key, ("memory", "reserve"))
        try:
            sizes = {key: units.size(item) for key, item in settings.items() if item is not None}
        except ValueError as allowed:
            raise ConfigError(f"{place}: {where} has a size that is not allowed; use {allowed}") from None
        gpus[str(index)] = Gpu(**sizes)
    return gpus
