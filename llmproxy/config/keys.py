"""API keys as they are configured, in llmproxy.yaml or by the admin API.  Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from llmproxy.config import values
from llmproxy.config.fields import unknown_key, whole
from llmproxy.config.model import Former, Key, digest_of
from llmproxy.errors import ConfigError

__all__ = [
    "EXPIRES_PATTERN",
    "HASH_PATTERN",
    "KEY_FIELDS",
    "NAME_PATTERN",
    "PREVIOUS_FIELDS",
    "RIGHTS",
    "read_key",
    "read_rights",
    "rights_view",
    "told_hash",
]

_PREFIX = "sha256:"

HASH_PATTERN = r"^sha256:[0-9a-f]{64}$"
"""SHA-256 of the secret.  Secrets are random: a slow hash, as passwords want one, would protect nothing."""

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
        return float(values.fail("a date, as in 2027-01-31"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _priority(value: Any) -> int:
    value = whole(values.plain(value))
    if isinstance(value, bool) or not isinstance(value, int):
        values.fail("a whole number")
    return int(value)


def _routes(value: Any) -> tuple[str, ...]:
    return tuple(route.lower() for route in values.texts(value))


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}$"

NAME_ALLOWED = "up to 64 letters, digits and ._@+-"


def _digest(value: Any) -> bytes:
    written = values.text(value)
    if not re.search(HASH_PATTERN, written):
        values.fail("sha256: and 64 hexadecimal digits, as llmproxy keys add --offline prints it")
    return bytes.fromhex(written[len(_PREFIX) :])


def _name(value: Any) -> str:
    name = values.text(value)
    # It stands in logs, metrics and paths of the admin API.
    return name if re.search(NAME_PATTERN, name) else str(values.fail(NAME_ALLOWED))


RIGHTS: values.Readers = {
    "admin": values.boolean,
    "client": values.boolean,
    "routes": _routes,
    "may_start": values.boolean,
    "may_evict": values.boolean,
    "priority": _priority,
    "requests_per_minute": values.count,
    "tokens_per_minute": values.count,
    "streams": values.count,
    "expires": _expires,
}
"""What a key may do, and how much of it."""

_SECRETS: values.Readers = {"secret": values.text, "secret_env": values.text, "hash": _digest}

PREVIOUS_FIELDS: values.Readers = {**_SECRETS, "until": _expires}
"""Of a secret that a key had before."""

KEY_FIELDS: values.Readers = {"name": _name, **_SECRETS, "previous": dict, **RIGHTS}
"""What stands in an entry of ``keys``."""


def read_key(place: str, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Key:
    """One entry of ``keys``.

    :param place: where it stands, for the error.
    :raises llmproxy.errors.ConfigError: something in it is not allowed.
    """
    read = _read(place, settings, KEY_FIELDS)
    if "name" not in read:
        raise ConfigError(f"{place}: it needs a name")
    secret, digest = _secret(place, read, environ)
    previous = read.pop("previous", None)
    former: tuple[Former, ...] = ()
    if previous:
        place = f"{place}.previous"
        older = _read(place, previous, PREVIOUS_FIELDS)
        if "until" not in older:
            raise ConfigError(f"{place}: it needs until: the day on which the old secret ends")
        former = (Former(_secret(place, older, environ)[1], older["until"]),)
    return Key(secret=secret, hashed=None if secret else digest, former=former, **read)


def read_rights(place: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a key may do, without its name and its secret.

    :raises llmproxy.errors.ConfigError: something of it is not allowed.
    """
    return _read(place, settings, RIGHTS)


def rights_view(key: Key) -> dict[str, Any]:
    """All that a key may do, for JSON."""
    told = {name: getattr(key, name) for name in RIGHTS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def told_hash(digest: bytes) -> str:
    """A digest as ``hash`` has it."""
    return _PREFIX + digest.hex()


def _read(place: str, settings: Mapping[str, Any], fields: values.Readers) -> dict[str, Any]:
    for name in settings:
        if name not in fields:
            raise unknown_key(place, name, fields)
    read = {}
    for name, item in settings.items():
        if item is None:
            continue
        try:
            read[name] = fields[name](item)
        except (ValueError, TypeError) as allowed:
            # Never the value: it may be the secret.
            told = "a mapping of secret_env, secret or hash, and until" if name == "previous" else allowed
            raise ConfigError(f"{place}: {name} is not allowed; use {told}") from None
    return read


def _secret(place: str, read: dict[str, Any], environ: Mapping[str, str]) -> tuple[str, bytes]:
    """The secret, where it is known, and its digest; taken out of what was read."""
    given = [name for name in _SECRETS if name in read]
    if len(given) != 1:
        raise ConfigError(f"{place}: it needs one of secret_env, secret and hash")
    value = read.pop(given[0])
    if given[0] == "hash":
        return "", value
    if given[0] == "secret_env":
        variable, value = value, environ.get(value, "")
        if not value:
            raise ConfigError(f"{place}: secret_env names {variable}, which is not set in the environment")
    return value, digest_of(value)
