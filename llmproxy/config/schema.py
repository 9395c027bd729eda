"""The JSON schema of llmproxy.yaml, made from the same tables as the parser.

``python -m llmproxy.config.schema`` prints it; the copy that is published is ``llmproxy.schema.json``.
What it cannot say: cross checks between fields and backends (two keys with one name or secret among them),
``${NAME}`` before it is filled in where no text is allowed, a key that stands twice, and dates that no
calendar has.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from llmproxy.config import units
from llmproxy.config.fields import FIELDS, HEALTH_COMPLETIONS, LOG_FORMATS, LOG_LEVELS, METRICS_ACCESS
from llmproxy.config.file import ORIGIN_PATTERN, PROBE_PATH_PATTERN
from llmproxy.config.hosts import ADDRESS_PATTERN, DOCKER_PATTERN, FILE_PATTERN, HOST_NAME_PATTERN
from llmproxy.config.keys import EXPIRES_PATTERN, HASH_PATTERN, NAME_PATTERN
from llmproxy.config.layers import RESERVED
from llmproxy.config.model import LOCAL
from llmproxy.config.mounts import UNSAFE
from llmproxy.config.network import HOST_PATTERN, PROXY_PATTERN

__all__ = ["schema"]

_TEXT = {"type": "string", "pattern": r"\S"}
_TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000_000}
_DURATION = FIELDS["idle"].schema
_SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": units.LARGEST},
        {"type": "string", "pattern": units.SIZE_PATTERN},
    ]
}


def _texts(pattern: str) -> dict[str, Any]:
    return {**_TEXTS, "items": {"type": "string", "pattern": pattern}}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _or_null(value) for name, value in properties.items()},
        "additionalProperties": False,
        **more,
    }


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    """A key without a value is as if it were not there."""
    return {"anyOf": [value, {"type": "null"}]}


def schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12)."""
    backend = _object({name: {"description": field.doc, **field.schema} for name, field in FIELDS.items()})
    # Route names have no case, and JSON Schema's patterns have no flag for that.
    reserved = "|".join(
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in name)
        for name in sorted(RESERVED)
    )
    moment = {
        "type": "string",
        "pattern": EXPIRES_PATTERN,
        "description": "a date, as in 2027-01-31, or a date and time; UTC",
    }
    secrets = {
        "secret": _TEXT,
        "secret_env": {**_TEXT, "description": "name of the variable that holds it"},
        "hash": {"type": "string", "pattern": HASH_PATTERN, "description": "SHA-256 of the secret"},
    }
    # Null is as if it were not there, here too.
    one_secret = [{"required": [name], "properties": {name: {"type": "string"}}} for name in secrets]
    previous = _object({**secrets, "until": moment}, required=["until"], oneOf=one_secret)
    key = _object(
        {
            "name": _TEXT,
            **secrets,
            "previous": {**previous, "description": "the secret that it had before, until a day"},
            "admin": {"type": "boolean"},
            "client": {"type": "boolean"},
            "routes": _TEXTS,
            "may_start": {"type": "boolean"},
            "may_evict": {"type": "boolean"},
            "priority": {"type": "integer"},
            "requests_per_minute": _COUNT,
            "tokens_per_minute": _COUNT,
            "streams": _COUNT,
            "expires": moment,
        },
        required=["name"],
        oneOf=one_secret,
    )
    key["properties"]["name"] = {**_TEXT, "pattern": NAME_PATTERN}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmproxy.yaml",
        **_object(
            {
                "listen": {**_TEXTS, "description": "Twisted endpoint strings"},
                "docker": _object(
                    {
                        "host": _TEXT,
                        "compose_file": _TEXT,
                        "allowed_mounts": {
                            "type": ["array", "string"],
                            "items": _TEXT,
                            "description": "folders of the host that created containers may see",
                        },
                        "allow_unsafe": {
                            "type": "array",
                            "items": {"enum": list(UNSAFE)},
                            "description": "what created containers may have although it lets them out",
                        },
                    }
                ),
                "hosts": {
                    "type": "object",
                    "propertyNames": {"pattern": HOST_NAME_PATTERN, "not": {"const": LOCAL}},
                    "additionalProperties": _host(),
                },
                "gpus": _gpus(),
                "host_memory_for_sleep": _SIZE,
                "scheduler": _object({"max_wait_before_drain": _DURATION, "drain_limit": _DURATION}),
                "limits": _object(_limits()),
                "cors": _object({"origins": _texts(ORIGIN_PATTERN)}),
                "probes": _object(
                    {
                        "user_agents": _TEXTS,
                        "paths": _texts(PROBE_PATH_PATTERN),
                        "health_completions": {"enum": list(HEALTH_COMPLETIONS)},
                    }
                ),
                "usage": _object(
                    {
                        "history": {
                            "type": "integer",
                            "minimum": 0,
                            "maximum": 10_000_000,
                            "description": "requests that are kept",
                        },
                        "retention": {**_DURATION, "description": "how long sums are kept"},
                    }
                ),
                "log": _object(
                    {
                        "format": {"enum": list(LOG_FORMATS), "description": "how the log is written"},
                        "level": {"enum": list(LOG_LEVELS), "description": "what is told"},
                    }
                ),
                "default_route": {**_TEXT, "description": "where requests to /v1 go that name no model"},
                "drain": _DURATION,
                "stop_backends_on_exit": {"type": "boolean"},
                "metrics_access": {"enum": list(METRICS_ACCESS), "description": "who may read /metrics"},
                "trusted_proxies": {
                    **_texts(PROXY_PATTERN),
                    "description": "whose X-Forwarded-For is believed: addresses, networks, or unix",
                },
                "allowed_hosts": {
                    **_texts(HOST_PATTERN),
                    "description": "names by which browsers may reach the proxy: a name, *.name, or *",
                },
                "state_dir": _TEXT,
                "defaults": {"$ref": "#/$defs/backend"},
                "backends": {
                    "type": "object",
                    "propertyNames": {
                        "pattern": rf"^(?!(?:{reserved})$)[A-Za-z0-9][A-Za-z0-9._-]*$",
                    },
                    "additionalProperties": _or_null({"$ref": "#/$defs/backend"}),
                },
                "keys": {"type": "array", "items": key},
            }
        ),
        "$defs": {"backend": backend},
    }


def _gpus() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": _or_null(_object({"memory": _SIZE, "reserve": _SIZE})),
    }


def _host() -> dict[str, Any]:
    file = {"type": "string", "pattern": FILE_PATTERN}
    files = {
        "ca": {**file, "description": "who has signed the engine's certificate"},
        "cert": {**file, "description": "our certificate"},
        "key": {**file, "description": "its key"},
    }
    tls = {"type": "object", "properties": files, "additionalProperties": False, "required": list(files)}
    found = _object(
        {
            "tls": tls,
            "address": {
                "type": "string",
                "pattern": ADDRESS_PATTERN,
                "description": "where its published ports are reached; else where its engine is",
            },
            "gpus": _gpus(),
        },
        required=["docker"],
    )
    docker = {
        "type": "string",
        "pattern": DOCKER_PATTERN,
        "description": "where its engine is: unix:///path, tcp://host:port or ssh://[user@]host[:port]",
    }
    found["properties"] = {"docker": docker, **found["properties"]}
    # Only an engine that is reached by tcp has any.
    found["if"] = {"required": ["tls"], "properties": {"tls": {"type": "object"}}}
    found["then"] = {"properties": {"docker": {"pattern": "^tcp:"}}}
    return found


def _limits() -> dict[str, Any]:
    counts = ("max_connections", "max_fields", "max_held")
    sizes = ("max_body", "max_head", "max_target", "min_body_rate", "body_memory", "body_disk")
    times = ("head_timeout", "body_timeout", "idle_timeout", "write_timeout", "tunnel_idle")
    return {
        **dict.fromkeys(counts, _COUNT),
        "max_connections_per_address": {**_COUNT, "minimum": 0, "description": "0: no limit"},
        **dict.fromkeys(sizes, _SIZE),
        **{name: {**_DURATION, "description": "0: no limit"} for name in times},
    }


def main() -> None:
    """Print the schema."""
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
