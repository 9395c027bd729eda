"""Every backend field: how it is written in YAML and as text, what is allowed, and what it means.

One table serves ``llmproxy.yaml``, container labels, ``MAP__`` variables, the JSON schema and the
documentation.  Pure.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from llmproxy.config import units
from llmproxy.config.model import Replicas
from llmproxy.errors import ConfigError

__all__ = [
    "FIELDS",
    "HEALTH_COMPLETIONS",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "METRICS_ACCESS",
    "Field",
    "health_completions",
    "log_format",
    "log_level",
    "metrics_access",
    "read_field",
    "unknown_key",
    "whole",
]

Schema = dict[str, Any]


@frozen
class Field:
    """One backend field.

    :ivar read: the value of what YAML gives; raises ``ValueError`` saying what is allowed.
    :ivar from_text: the value of a label or a variable.
    :ivar schema: JSON schema of what YAML gives.
    :ivar doc: what it means, in one line.
    """

    name: str
    read: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    schema: Schema
    doc: str


def _fail(allowed: str) -> Any:
    raise ValueError(allowed)


def whole(value: Any) -> Any:
    """``value``, as an integer where it is a float without a fraction: JSON Schema holds 3.0 for one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        _fail("a text that is not empty")
    return str(value)


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else bool(_fail("true or false"))


def _boolean_text(value: str) -> bool:
    word = value.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    return bool(_fail("true or false"))


def _whole(least: int, most: int) -> Callable[[Any], int]:
    allowed = f"a whole number from {least} to {most}"

    def read(value: Any) -> int:
        value = whole(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _fail(allowed)
        return int(value)

    return read


def _whole_text(read: Callable[[Any], int]) -> Callable[[str], int]:
    def from_text(value: str) -> int:
        try:
            number: Any = int(value.strip())
        except ValueError:
            number = None
        return read(number)

    return from_text


def _texts(value: Any) -> tuple[str, ...]:
    allowed = "a list of texts"
    if not isinstance(value, list):
        _fail(allowed)
    words = []
    for word in value:
        # A bare number in a command line is meant as it is written.
        if isinstance(word, bool) or not isinstance(word, str | int | float):
            _fail(allowed)
        words.append(str(word))
    return tuple(words)


def _commas(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _words(value: str) -> tuple[str, ...]:
    if value.lstrip().startswith("["):
        try:
            return _texts(json.loads(value))
        except ValueError:
            _fail("a JSON list of texts, or words as in a shell")
    try:
        return tuple(shlex.split(value))
    except ValueError:
        return tuple(_fail("a JSON list of texts, or words as in a shell"))


def _command(value: Any) -> tuple[str, ...]:
    words = _texts(value)
    return words or tuple(_fail("a list of texts that is not empty"))


def _mapping_of_texts(value: Any) -> dict[str, str]:
    allowed = "a mapping of names to texts"
    if not isinstance(value, dict):
        _fail(allowed)
    read = {}
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or isinstance(text, list | dict):
            _fail(allowed)
        read[name] = "" if text is None else str(text).lower() if isinstance(text, bool) else str(text)
    return read


def _pairs(value: str) -> dict[str, str]:
    if value.lstrip().startswith("{"):
        return _mapping_of_texts(_json(value))
    read = {}
    for pair in _commas(value):
        name, equals, text = pair.partition("=")
        if not equals or not name:
            _fail("NAME=value pairs with commas between them, or a JSON object")
        read[name] = text
    return read


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return _fail("a JSON object")


REQUEST_PATH = r"^(?!model(\.|$))[^.]+(\.[^.]+)*$"
"""What may be put into requests: a field, or one within others (``chat_template_kwargs.enable_thinking``).
The model is what a request is routed by."""


def _request_fields(value: Any) -> dict[str, Any]:
    allowed = "a mapping of request fields, or dotted paths to them, to JSON values; model cannot be one"
    if not isinstance(value, dict):
        _fail(allowed)
    if not all(isinstance(name, str) and re.search(REQUEST_PATH, name) for name in value):
        _fail(allowed)
    try:
        # What YAML has and JSON has not: dates, sets, numbers that are none.
        return dict(json.loads(json.dumps(value, allow_nan=False)))
    except (TypeError, ValueError):
        return dict(_fail(allowed))


_LEAST_REPLICAS = {"min": 0, "max": 1, "target_in_flight": 1}


def _replicas(value: Any) -> Replicas:
    allowed = (
        "a mapping with min (from 0), max and target_in_flight (from 1), out_after and in_after (durations),"
        " and min no more than max"
    )
    if not isinstance(value, dict):
        _fail(allowed)
    read: dict[str, Any] = {}
    try:
        for name, item in value.items():
            if name in _LEAST_REPLICAS:
                read[name] = _whole(_LEAST_REPLICAS[name], 10_000)(item)
            elif name in ("out_after", "in_after"):
                read[name] = units.duration(item)
            else:
                _fail(allowed)
    except ValueError:
        _fail(allowed)
    # Whoever says how many there are at least does not mean fewer.
    read.setdefault("max", max(1, read.get("min", 0)))
    if read.get("min", 0) > read["max"]:
        _fail(allowed)
    return Replicas(**read)


def _replicas_text(value: str) -> Replicas:
    read: dict[str, Any] = {}
    for name, text in _pairs(value).items():
        try:
            read[name] = int(text)
        except ValueError:
            read[name] = text
    return _replicas(read)


_RESOURCE = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def _reservations(value: Any) -> dict[str, int]:
    allowed = "a mapping of resources that nodes advertise (NVIDIA-GPU, vram-gib) to whole numbers from 1"
    if not isinstance(value, dict):
        _fail(allowed)
    if not all(isinstance(name, str) and re.search(_RESOURCE, name) for name in value):
        _fail(allowed)
    try:
        return {name: _COUNT(amount) for name, amount in value.items()}
    except ValueError:
        return dict(_fail(allowed))


def _reservations_text(value: str) -> dict[str, int]:
    try:
        return _reservations({name: int(amount) for name, amount in _pairs(value).items()})
    except ValueError:
        return dict(_fail("NAME=NUMBER pairs with commas between them"))


def _routes(value: Any) -> tuple[str, ...]:
    return tuple(route.lower() for route in _texts(value))


def _choice(*allowed: str) -> Callable[[Any], str]:
    words = f"one of {', '.join(allowed)}"

    def read(value: Any) -> str:
        # YAML reads a bare off as false and a bare 1 as a number.
        word = "off" if value is False else str(whole(value))
        return word if word in allowed else str(_fail(words))

    return read


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or any(c.isspace() for c in value):
        _fail("a path that begins with /")
    return str(value)


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


METRICS_ACCESS = ("open", "admin")
"""Who may read ``/metrics``."""

metrics_access = _choice(*METRICS_ACCESS)
"""Reads one of :data:`METRICS_ACCESS`, from YAML as from text."""

HEALTH_COMPLETIONS = ("serve", "refuse")
"""What becomes of completions that are health checks."""

health_completions = _choice(*HEALTH_COMPLETIONS)
"""Reads one of :data:`HEALTH_COMPLETIONS`."""

LOG_FORMATS = ("text", "json")
"""How the log is written."""

log_format = _choice(*LOG_FORMATS)
"""Reads one of :data:`LOG_FORMATS`."""

LOG_LEVELS = ("debug", "info", "warn", "error")
"""How important something must be to be told, the least important first."""

log_level = _choice(*LOG_LEVELS)
"""Reads one of :data:`LOG_LEVELS`."""

_PORT = _whole(1, 65535)
_COUNT = _whole(1, 1_000_000)
_PRIORITY = _whole(-1000, 1000)

_TEXT: Schema = {"type": "string", "pattern": r"\S"}
_LIST: Schema = {"type": "array", "items": {"type": ["string", "number"]}}
_DURATION: Schema = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": units.LONGEST},
        {"type": "string", "pattern": units.DURATION_PATTERN},
    ]
}


def _duration(name: str, doc: str) -> Field:
    return Field(name, units.duration, units.duration, _DURATION, doc)


def _count(name: str, read: Callable[[Any], int], least: int, most: int, doc: str) -> Field:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Field(name, read, _whole_text(read), schema, doc)


def _or_nothing(field: Field) -> Field:
    return Field(
        field.name,
        _optional(field.read),
        field.from_text,
        {"anyOf": [field.schema, {"type": "null"}]},
        field.doc,
    )


def _request(name: str, doc: str) -> Field:
    schema = {"type": "object", "propertyNames": {"pattern": REQUEST_PATH}}
    return Field(name, _request_fields, lambda text: _request_fields(_json(text)), schema, doc)


def _enum(name: str, doc: str, *allowed: str) -> Field:
    read = _choice(*allowed)
    return Field(name, read, read, {"enum": list(allowed)}, doc)


_ALL: tuple[Field, ...] = (
    _enum("runtime", "where it runs", "docker", "process", "swarm", "url"),
    _enum("engine", "what it is", "vllm", "generic"),
    Field("container", _text, _text, _TEXT, "name of the container"),
    Field(
        "host", _text, _text, _TEXT, "one of hosts, or local: where its container is; else any that has it"
    ),
    Field("image", _text, _text, _TEXT, "image of a container that llmproxy creates when it is missing"),
    Field("args", _texts, _words, _LIST, "arguments of the created container"),
    Field(
        "environment",
        _mapping_of_texts,
        _pairs,
        {
            "type": "object",
            "propertyNames": {"pattern": "^[^=]+$"},
            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        },
        "environment of the created container or the process",
    ),
    Field("volumes", _texts, _commas, _LIST, "volumes of the created container, host:container[:ro]"),
    Field("command", _command, _words, {**_LIST, "minItems": 1}, "command line of a process backend"),
    Field("cwd", _text, _text, _TEXT, "working directory of a process backend"),
    Field("url", _text, _text, _TEXT, "address of a url backend, http or https"),
    Field("service", _text, _text, _TEXT, "name of the service of a swarm backend"),
    _count("port", _PORT, 1, 65535, "port that the server listens on; read from the container"),
    Field(
        "health", _path, _path, {"type": "string", "pattern": r"^/\S*$"}, "path that answers 200 when ready"
    ),
    _enum("auth", "whose key the backend gets: its own, or the client's", "key", "passthrough"),
    Field("models", _texts, _commas, _LIST, "names that it serves; read from the container"),
    Field("aliases", _texts, _commas, _LIST, "other names for its first model"),
    _duration("idle", "time without a request after which it is reaped; 0 means never"),
    _duration("start_timeout", "time from its start to its health"),
    _duration("stop_grace", "time from TERM to KILL"),
    _count("max_waiting", _COUNT, 1, 1_000_000, "requests held at most"),
    _or_nothing(_duration("max_wait", "time that one request is held at most")),
    _or_nothing(_count("max_in_flight", _COUNT, 1, 1_000_000, "requests handed over at once at most")),
    _duration("heartbeat_after", "time after which a held stream gets its head and a comment"),
    _duration("heartbeat_every", "time between the comments to a held stream"),
    _duration("abandon_idle", "time after which it is reaped when every waiter left during its start"),
    Field(
        "gpu_memory",
        units.fraction_or_size,
        units.fraction_or_size,
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "integer", "minimum": units.LEAST_BARE_BYTES, "maximum": units.LARGEST},
                {"type": "string", "pattern": units.FRACTION_PATTERN},
                {"type": "string", "pattern": units.UNIT_SIZE_PATTERN},
            ]
        },
        "fraction of a GPU, or a size; read from the container",
    ),
    Field("gpus", _texts, _commas, _LIST, "GPUs that it uses; read from the container, else 0"),
    Field("pinned", _boolean, _boolean_text, {"type": "boolean"}, "never evicted"),
    _count("priority", _PRIORITY, -1000, 1000, "more stays longer"),
    _duration("min_residency", "time that it stays after a swap"),
    Field("prewarm", _boolean, _boolean_text, {"type": "boolean"}, "started with the proxy"),
    Field(
        "sleep",
        _choice("auto", "off", "1", "2"),
        _choice("auto", "off", "1", "2"),
        {"enum": ["auto", "off", "1", "2", 1, 2, False]},
        "whether it is put to sleep rather than stopped, and how deeply",
    ),
    _duration("sleep_idle", "time asleep after which it is stopped"),
    _request("request_defaults", "fields that requests get which lack them, by dotted path"),
    _request("request_overrides", "fields that requests get in any case, by dotted path"),
    Field("hidden", _boolean, _boolean_text, {"type": "boolean"}, "not listed in /v1/models"),
    Field(
        "fallback",
        _routes,
        lambda text: _routes(list(_commas(text))),
        _LIST,
        "routes of which one that is ready answers while it is not",
    ),
    _duration("max_keep_alive", "time for which a client may have it kept after a request"),
    Field(
        "rewrite_model",
        _boolean,
        _boolean_text,
        {"type": "boolean"},
        "answers name the model as the client asked for it",
    ),
    Field(
        "replicas",
        _replicas,
        _replicas_text,
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "min": {"type": "integer", "minimum": 0, "maximum": 10_000},
                "max": {"type": "integer", "minimum": 1, "maximum": 10_000},
                "target_in_flight": {"type": "integer", "minimum": 1, "maximum": 10_000},
                "out_after": _DURATION,
                "in_after": _DURATION,
            },
        },
        "how many tasks of a swarm backend there are: min, max, target_in_flight, out_after, in_after",
    ),
    Field(
        "reservations",
        _reservations,
        _reservations_text,
        {
            "type": "object",
            "propertyNames": {"pattern": _RESOURCE},
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        },
        "generic resources that each task of the created service takes of its node",
    ),
    Field("constraints", _texts, _commas, _LIST, "where tasks of the created service may be placed"),
    Field("networks", _texts, _commas, _LIST, "overlay networks of the created service"),
)

FIELDS: Mapping[str, Field] = {field.name: field for field in _ALL}
"""By name, in the order of the documentation."""

_SHOWN = 60

_UNSHOWN = ("environment", "args", "command", "request_defaults", "request_overrides")


def read_field(place: str, name: str, value: Any, *, text: bool = False) -> Any:
    """The value of one backend field.

    :param place: where it stands, for the error (``llmproxy.yaml backends.coder``).
    :param text: it comes from a label or a variable.
    :raises llmproxy.errors.ConfigError: the name is unknown or the value not allowed.
    """
    field = FIELDS.get(name)
    if field is None:
        raise unknown_key(place, name, FIELDS)
    try:
        return field.from_text(value) if text else field.read(value)
    except ValueError as allowed:
        # Values of these may be secrets, or may hold some.
        shown = "" if name in _UNSHOWN else f" is {_short(value)}, which"
        raise ConfigError(f"{place}: {name}{shown} is not allowed; use {allowed}") from None


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _SHOWN else told[:_SHOWN] + "..."


def unknown_key(place: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a key that nothing is known of, with the nearest one that is."""
    # Only a mistake needs it, and it is 0.7 MB of the proxy's memory.
    import difflib

    names = list(known)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(names)}"
    return ConfigError(f"{place}: unknown key {str(name)!r}; {hint}")
