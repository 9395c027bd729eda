"""``llmproxy.yaml`` -> :class:`~llmproxy.config.layers.Layer`.  Pure: text in, settings out."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from llmproxy.config import units
from llmproxy.config.fields import (
    FIELDS,
    health_completions,
    log_format,
    log_level,
    metrics_access,
    read_field,
    unknown_key,
    whole,
)
from llmproxy.config.interpolate import strict_text
from llmproxy.config.layers import Layer, Setting, route_name
from llmproxy.config.model import Gpu, Key
from llmproxy.errors import ConfigError

__all__ = [
    "EXPIRES_PATTERN",
    "KEY_FIELDS",
    "ORIGIN_PATTERN",
    "PROBE_PATH_PATTERN",
    "SECTIONS",
    "TOP",
    "read_file",
]

_PORT = frozenset(("port",))


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


def _fail(allowed: str) -> Any:
    raise ValueError(allowed)


class _Filled(str):
    """A text that came of ``${NAME}``.  The environment holds only texts, and so ``port: ${PORT}`` gives one
    where ``port: "80"`` would be a mistake: it is read as a label would be."""


def _plain(value: Any) -> Any:
    """The number or truth that a filled-in text writes."""
    if not isinstance(value, _Filled):
        return value
    word = value.strip().lower()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        return int(word)
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(word, value)


def _boolean(value: Any) -> bool:
    value = _plain(value)
    return value if isinstance(value, bool) else bool(_fail("true or false"))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) and value.strip() else str(_fail("a text that is not empty"))


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
        return tuple(map(str, value))
    return tuple(_fail("a list of texts that is not empty"))


def _count(value: Any) -> int:
    value = whole(_plain(value))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
        _fail("a whole number from 1")
    return int(value)


def _many(value: Any) -> int:
    value = whole(_plain(value))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000_000:
        _fail("a whole number from 0")
    return int(value)


ORIGIN_PATTERN = r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+)$"
"""As browsers send it (RFC 6454 section 6.2), or ``*``."""

PROBE_PATH_PATTERN = r"^/[^\s?#]*$"


def _origins(value: Any) -> tuple[str, ...]:
    words = _texts(value)
    if not all(re.search(ORIGIN_PATTERN, word) for word in words):
        _fail("a list of origins such as https://chat.example:8443, or *")
    return tuple(word.lower() for word in words)


def _probe_paths(value: Any) -> tuple[str, ...]:
    words = _texts(value)
    return (
        words
        if all(re.search(PROBE_PATH_PATTERN, word) for word in words)
        else tuple(_fail("a list of paths"))
    )


def _route(value: Any) -> str:
    return _text(value).lower()


Readers = Mapping[str, Callable[[Any], Any]]

TOP: Readers = {
    "listen": _texts,
    "host_memory_for_sleep": units.size,
    "drain": units.duration,
    "stop_backends_on_exit": _boolean,
    "metrics_access": metrics_access,
    "default_route": _route,
    "state_dir": _text,
}
"""Settings of the proxy as a whole that stand at the top."""

SECTIONS: Mapping[str, Readers] = {
    "docker": {"host": _text, "compose_file": _text},
    "scheduler": {"max_wait_before_drain": units.duration, "drain_limit": units.duration},
    "limits": {"max_body": units.size, "max_connections": _count, "max_held": _count},
    "cors": {"origins": _origins},
    "probes": {
        "user_agents": _texts,
        "paths": _probe_paths,
        "health_completions": health_completions,
    },
    "usage": {"history": _many, "retention": units.duration},
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
        known = (*TOP, *SECTIONS, "gpus", "defaults", "backends", "keys")
        for key, value in document.items():
            if key not in known:
                raise unknown_key(self._name, key, known)
            if value is None:
                continue
            if key in TOP:
                self._top(key, TOP[key], self._fill(key, value))
            elif key in SECTIONS:
                self._section(key, value)
            elif key == "gpus":
                self._gpus(value)
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
                return filled if filled == value else _Filled(filled)
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

    def _gpus(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{self._name}: gpus must be a mapping")
        gpus = {}
        for index, gpu in self._fill("gpus", value).items():
            place = f"gpus.{index}"
            settings = self._mapping(place, gpu if gpu is not None else {})
            for key in settings:
                if key not in ("memory", "reserve"):
                    raise unknown_key(f"{self._name} {place}", key, ("memory", "reserve"))
            try:
                sizes = {key: units.size(item) for key, item in settings.items() if item is not None}
            except ValueError as allowed:
                raise ConfigError(
                    f"{self._name}: {place} has a size that is not allowed; use {allowed}"
                ) from None
            gpus[str(index)] = Gpu(**sizes)
        self._layer.top["gpus"] = Setting(gpus, self._source("gpus"))

    def _fields(self, path: str, value: Any) -> dict[str, Setting]:
        settings = {}
        mapping = self._mapping(path, value)
        keep = _PORT if mapping.get("runtime") == "process" else frozenset()
        for key, item in mapping.items():
            if item is None and key in FIELDS and key not in ("max_wait", "max_in_flight"):
                continue
            filled = self._fill(f"{path}.{key}", item, keep)
            source = self._source(f"{path}.{key}")
            text = isinstance(filled, _Filled)
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
        secrets: dict[str, str] = {}
        for index, item in enumerate(value):
            key = self._key(f"keys[{index}]", item)
            if key.name in names:
                raise ConfigError(
                    f"{self._name}: keys[{index}] has the name {key.name!r}, which another one has"
                )
            names.add(key.name)
            twin = secrets.setdefault(key.secret, key.name)
            if twin != key.name:
                raise ConfigError(f"{self._name}: the keys {twin} and {key.name} have the same secret")
            self._layer.keys.append(key)
            self._layer.key_sources[key.name] = self._source(f"keys[{index}]")

    def _key(self, path: str, value: Any) -> Key:
        place = f"{self._name} {path}"
        settings = self._mapping(path, self._fill(path, value))
        for key in settings:
            if key not in KEY_FIELDS:
                raise unknown_key(place, key, KEY_FIELDS)
        read: dict[str, Any] = {}
        for key, item in settings.items():
            if item is None:
                continue
            try:
                read[key] = KEY_FIELDS[key](item)
            except ValueError as allowed:
                # Never the value: it may be the secret.
                raise ConfigError(f"{place}: {key} is not allowed; use {allowed}") from None
        if "name" not in read:
            raise ConfigError(f"{place}: it needs a name")
        variable = read.pop("secret_env", None)
        if (variable is None) == ("secret" not in read):
            raise ConfigError(f"{place}: it needs either secret or secret_env")
        if variable is not None:
            read["secret"] = self._environ.get(variable, "")
            if not read["secret"]:
                raise ConfigError(
                    f"{place}: secret_env names {variable}, which is not set in the environment"
                )
        return Key(**read)


EXPIRES_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?)?$"
)
"""A date, or a date and time; UTC where it does not say otherwise."""


def _expires(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value) if re.search(EXPIRES_PATTERN, value) else None
        except ValueError:  # a date that no calendar has
            value = None
    if isinstance(value, datetime.datetime):
        moment = value
    elif isinstance(value, datetime.date):
        moment = datetime.datetime(value.year, value.month, value.day)
    else:
        return float(_fail("a date, as in 2027-01-31"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _priority(value: Any) -> int:
    value = whole(_plain(value))
    if isinstance(value, bool) or not isinstance(value, int):
        _fail("a whole number")
    return int(value)


def _routes(value: Any) -> tuple[str, ...]:
    return tuple(route.lower() for route in _texts(value))


KEY_FIELDS: Readers = {
    "name": _text,
    "secret": _text,
    "secret_env": _text,
    "admin": _boolean,
    "client": _boolean,
    "routes": _routes,
    "may_start": _boolean,
    "may_evict": _boolean,
    "priority": _priority,
    "requests_per_minute": _count,
    "tokens_per_minute": _count,
    "streams": _count,
    "expires": _expires,
}
"""What a key may have."""
