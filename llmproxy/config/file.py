"""``llmproxy.yaml`` -> :class:`~llmproxy.config.layers.Layer`.  Pure: text in, settings out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from llmproxy.config import units, values
from llmproxy.config.fields import (
    FIELDS,
    health_completions,
    log_format,
    log_level,
    metrics_access,
    read_field,
    unknown_key,
)
from llmproxy.config.hosts import read_gpus, read_hosts
from llmproxy.config.interpolate import strict_text
from llmproxy.config.keys import read_key
from llmproxy.config.layers import Layer, Setting, route_name
from llmproxy.config.model import Key
from llmproxy.config.mounts import mount_folders, unsafe_names
from llmproxy.config.network import allowed_hosts, trusted_proxies
from llmproxy.errors import ConfigError

__all__ = [
    "ORIGIN_PATTERN",
    "PROBE_PATH_PATTERN",
    "SECTIONS",
    "TOP",
    "read_file",
]

_PORT = frozenset(("port",))


# PyYAML has no annotations for what it is built without, nor for classes that are chosen at run time.
class _WithLibyaml(yaml.composer.Composer, getattr(yaml, "CSafeLoader", object)):  # type: ignore[misc]
    """libyaml's parser: a file of 1,000 backends takes 0.1 s, not 0.4 s.

    Nodes are composed in Python all the same; libyaml's own way overflows the stack where they are nested too
    deeply, which is a crash and no error.
    """

    def __init__(self, text: str) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.CSafeLoader.__init__(self, text)


# PyYAML's wheels have libyaml; what a distribution or a compiler made may not.
_Base: Any = _WithLibyaml if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):  # type: ignore[misc]
    """Refuses a mapping that names a key twice: the second would win in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        written = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if written is None:
            raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
        if written in seen and written != "<<":
            problem = f"the key {written!r} stands here twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(written)
    loader.flatten_mapping(node)
    # Merged keys come first, so that the mapping's own win.
    return {
        loader.construct_object(key, deep=True): loader.construct_object(v, deep=True)
        for key, v in node.value
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


ORIGIN_PATTERN = r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+)$"
"""As browsers send it (RFC 6454 section 6.2), or ``*``."""

PROBE_PATH_PATTERN = r"^/[^\s?#]*$"


def _origins(value: Any) -> tuple[str, ...]:
    words = values.texts(value)
    if not all(re.search(ORIGIN_PATTERN, word) for word in words):
        values.fail("a list of origins such as https://chat.example:8443, or *")
    return tuple(word.lower() for word in words)


def _probe_paths(value: Any) -> tuple[str, ...]:
    words = values.texts(value)
    return (
        words
        if all(re.search(PROBE_PATH_PATTERN, word) for word in words)
        else tuple(values.fail("a list of paths"))
    )


def _route(value: Any) -> str:
    return values.text(value).lower()


TOP: values.Readers = {
    "listen": values.texts,
    "host_memory_for_sleep": units.size,
    "drain": units.duration,
    "stop_backends_on_exit": values.boolean,
    "metrics_access": metrics_access,
    "trusted_proxies": trusted_proxies,
    "allowed_hosts": allowed_hosts,
    "default_route": _route,
    "state_dir": values.text,
}
"""Settings of the proxy as a whole that stand at the top."""

SECTIONS: Mapping[str, values.Readers] = {
    "docker": {
        "host": values.text,
        "compose_file": values.text,
        "allowed_mounts": mount_folders,
        "allow_unsafe": unsafe_names,
    },
    "scheduler": {"max_wait_before_drain": units.duration, "drain_limit": units.duration},
    "limits": {
        "max_body": units.size,
        "max_head": units.size,
        "max_fields": values.count,
        "max_target": units.size,
        "max_connections": values.count,
        "max_connections_per_address": values.many,
        "max_held": values.count,
        "head_timeout": units.duration,
        "body_timeout": units.duration,
        "min_body_rate": units.size,
        "idle_timeout": units.duration,
        "write_timeout": units.duration,
        "tunnel_idle": units.duration,
        "body_memory": units.size,
        "body_disk": units.size,
    },
    "cors": {"origins": _origins},
    "probes": {
        "user_agents": values.texts,
        "paths": _probe_paths,
        "health_completions": health_completions,
    },
    "usage": {"history": values.many, "retention": units.duration},
    "log": {"format": log_format, "level": log_level},
}
"""Settings that stand in a section."""


def read_file(text: str, name: str, environ: Mapping[str, str]) -> Layer:
    """Read the text of a configuration file.

    :param name: what errors call it.
    :param environ: what ``${NAME}`` is read from.
    :raises llmproxy.errors.ConfigError: it is no YAML, or has a setting that is not allowed.
    """
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as cause:
        raise ConfigError(f"{name}: {_yaml_problem(cause)}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{name}: it is not valid YAML") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: it must be a mapping of settings")
    return _Reader(name, environ).read(document)


def _yaml_problem(cause: yaml.YAMLError) -> str:
    mark = getattr(cause, "problem_mark", None) or getattr(cause, "context_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    problem = getattr(cause, "problem", None) or str(cause).partition("\n")[0]
    return f"{where}{problem}"


class _Reader:
    """Reads one file; keeps its name and environment at hand."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self._name = name
        self._environ = environ
        self._layer = Layer()

    def read(self, document: dict[Any, Any]) -> Layer:
        known = (*TOP, *SECTIONS, "hosts", "gpus", "defaults", "backends", "keys")
        for key, value in document.items():
            if key not in known:
                raise unknown_key(self._name, key, known)
            if value is None:
                continue
            if key in TOP:
                self._top(key, TOP[key], self._fill(key, value))
            elif key in SECTIONS:
                self._section(key, value)
            elif key == "hosts":
                self._layer.top["hosts"] = Setting(
                    read_hosts(self._name, self._fill("hosts", value)), self._source("hosts")
                )
            elif key == "gpus":
                found = read_gpus(self._name, "gpus", self._fill("gpus", value))
                self._layer.top["gpus"] = Setting(found, self._source("gpus"))
            elif key == "defaults":
                self._defaults(value)
            elif key == "backends":
                self._backends(value)
            else:
                self._keys(value)
        return self._layer

    def _source(self, path: str) -> str:
        return f"{self._name} {path}"

    def _fill(self, path: str, value: Any, keep: frozenset[str] = frozenset()) -> Any:
        """``value`` with the variables in its texts filled in."""
        if isinstance(value, str):
            try:
                filled = strict_text(value, self._environ, keep)
                return filled if filled == value else values.Filled(filled)
            except KeyError as missing:
                raise ConfigError(
                    f"{self._name} {path}: the environment has no {missing.args[0]};"
                    f" set it, or write ${{{missing.args[0]}:-default}}"
                ) from None
        if isinstance(value, list):
            return [self._fill(f"{path}[{index}]", item, keep) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self._fill(f"{path}.{key}", item, keep) for key, item in value.items()}
        return value

    def _top(self, path: str, read: Callable[[Any], Any], value: Any) -> None:
        try:
            self._layer.top[path] = Setting(read(value), self._source(path))
        except ValueError as allowed:
            raise ConfigError(
                f"{self._name}: {path} is {value!r}, which is not allowed; use {allowed}"
            ) from None

    def _mapping(self, path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{self._name}: {path} must be a mapping")
        return value

    def _section(self, section: str, value: Any) -> None:
        readers = SECTIONS[section]
        for key, item in self._mapping(section, self._fill(section, value)).items():
            if key not in readers:
                raise unknown_key(f"{self._name} {section}", key, readers)
            if item is not None:
                self._top(f"{section}.{key}", readers[key], item)

    def _fields(self, path: str, value: Any) -> dict[str, Setting]:
        settings = {}
        mapping = self._mapping(path, value)
        keep = _PORT if mapping.get("runtime") == "process" else frozenset()
        for key, item in mapping.items():
            if item is None and key in FIELDS and key not in ("max_wait", "max_in_flight"):
                continue
            filled = self._fill(f"{path}.{key}", item, keep)
            source = self._source(f"{path}.{key}")
            text = isinstance(filled, values.Filled)
            settings[key] = Setting(read_field(self._source(path), key, filled, text=text), source)
        return settings

    def _defaults(self, value: Any) -> None:
        self._layer.defaults = self._fields("defaults", value)

    def _backends(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{self._name}: backends must be a mapping of routes")
        for written, settings in value.items():
            route = route_name(
                f"{self._name} backends", str(written) if isinstance(written, int) else written
            )
            if route in self._layer.backends:
                raise ConfigError(f"{self._name} backends: the route {route!r} stands there twice")
            self._layer.put(
                route, self._fields(f"backends.{route}", settings if settings is not None else {})
            )

    def _keys(self, value: Any) -> None:
        if not isinstance(value, list):
            raise ConfigError(f"{self._name}: keys must be a list")
        names: set[str] = set()
        digests: dict[bytes, str] = {}
        for index, item in enumerate(value):
            key = self._key(f"keys[{index}]", item)
            if key.name in names:
                raise ConfigError(
                    f"{self._name}: keys[{index}] has the name {key.name!r}, which another one has"
                )
            names.add(key.name)
            for digest in (key.digest, *(former.digest for former in key.former)):
                twin = digests.setdefault(digest, key.name)
                if twin != key.name:
                    raise ConfigError(f"{self._name}: the keys {twin} and {key.name} have the same secret")
            self._layer.keys.append(key)
            self._layer.key_sources[key.name] = self._source(f"keys[{index}]")

    def _key(self, path: str, value: Any) -> Key:
        place = f"{self._name} {path}"
        settings = self._mapping(path, self._fill(path, value))
        return read_key(place, settings, self._environ)
