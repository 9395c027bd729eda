"""``/api/keys``: who may ask, and keys that the proxy gives out, renews and takes back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from llmproxy.config.keys import EXPIRES_PATTERN, NAME_ALLOWED, NAME_PATTERN, read_rights, rights_view
from llmproxy.config.model import Key
from llmproxy.config.units import duration
from llmproxy.errors import ConfigError, Refusal, invalid_request
from llmproxy.keys.store import KeyFile
from llmproxy.web.api.answers import Ask, conflict, not_found, short_body, text
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resource import answer_json

__all__ = ["add_key", "revoke_key", "rotate_key", "show_keys"]

_T = TypeVar("_T")

OVERLAP = "24h"
"""How long an old secret goes on beside a new one: a day to change the clients over."""

LONGEST = 3660 * 86400.0
"""Seconds that a key, or an old secret, may be good for from now on."""


def key_view(ask: Ask, key: Key) -> dict[str, Any]:
    """A key, without its secret."""
    site, now = ask.request.site, ask.request.site.clock.seconds()
    configured = key in site.configured
    source = ask.fleet.config.sources.get(f"keys.{key.name}", "default") if configured else "/api/keys"
    left = {name: values[1] for name, values in site.limiter.told(key, now).items()}
    return {
        "name": key.name,
        **rights_view(key),
        "expired": key.expires is not None and key.expires <= now,
        "former_until": max((one.until for one in key.former if one.until > now), default=None),
        "left": left,
        "source": source,
    }


def show_keys(ask: Ask) -> None:
    """All keys that count."""
    site = ask.request.site
    taken = {key.name for key in site.configured}
    keys = (*site.configured, *(key for key in site.given if key.name not in taken))
    answer_json(ask.request, 200, {"keys": [key_view(ask, key) for key in keys]})


def add_key(ask: Ask) -> None:
    """Give out a new one.

    :raises llmproxy.errors.Refusal: ``invalid_request``, or 409.
    """
    request = ask.request
    asked = _object(request)
    name = asked.pop("name", None)
    if not isinstance(name, str) or not re.search(NAME_PATTERN, name):
        raise invalid_request(f"name must be a text of {NAME_ALLOWED}.", param="name")
    asked["expires"] = _expiry(asked.get("expires"), request.site.clock.seconds())
    try:
        rights = read_rights("The key", asked)
    except ConfigError as cause:
        raise invalid_request(f"{cause}.") from None
    if any(name.lower() == key.name.lower() for key in (*request.site.configured, *request.site.given)):
        raise conflict(f"There is a key {name!r} already.", "llmproxy keys rotate gives it a new secret.")
    if not request.site.configured:
        raise conflict(
            "No key is configured, so everybody who reaches the proxy may do everything.",
            "Set VLLM_API_KEY or LLMPROXY_ADMIN_KEY (make env writes one into .env) and start again.",
        )
    _give(ask, lambda file: file.add(name, rights), 201)


def rotate_key(ask: Ask) -> None:
    """Give a key a new secret; the old one goes on for a while.

    :raises llmproxy.errors.Refusal: ``invalid_request``, 404, or 409.
    """
    request = ask.request
    key, now = _mine(ask), request.site.clock.seconds()
    said = text(request, b"overlap") or OVERLAP
    try:
        overlap = duration(said)
    except ValueError as allowed:
        raise invalid_request(f"overlap is {said!r}; use {allowed}.", param="overlap") from None
    if overlap > LONGEST:
        raise invalid_request("overlap is too long.", param="overlap")
    _give(ask, lambda file: file.rotate(key.name, now + overlap, now), 200)


def revoke_key(ask: Ask) -> None:
    """Refuse a key from now on.

    :raises llmproxy.errors.Refusal: 404, or 409.
    """
    key = _mine(ask)
    site = ask.request.site
    rest = [one for one in (*site.configured, *site.given) if one.admin and one.name != key.name]
    if key.admin and not rest:
        raise conflict("It is the only administrator's key.", "Give out another one first.")
    view = key_view(ask, key)
    _change(ask, lambda file: file.revoke(key.name))
    answer_json(ask.request, 200, view)


def _mine(ask: Ask) -> Key:
    """The key that the path names, where the proxy has given it out."""
    site = ask.request.site
    for key in site.configured:
        if key.name == ask.name:
            source = ask.fleet.config.sources.get(f"keys.{key.name}", "the configuration")
            raise conflict(f"The key {key.name!r} stands in {source}.", "Change it there, and reload (HUP).")
    for key in site.given:
        if key.name == ask.name:
            return key
    known = ", ".join(key.name for key in site.given) or "none"
    raise not_found(f"There is no key {ask.name!r}. Given out are: {known}.")


def _give(ask: Ask, change: Callable[[KeyFile], tuple[Key, str]], status: int) -> None:
    key, secret = _change(ask, change)
    body = json.dumps({**key_view(ask, key), "secret": secret}).encode() + b"\n"
    # It is told this once, and is to be kept nowhere on the way.
    fields = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")]
    ask.request.answer(status, body, fields)


def _change(ask: Ask, change: Callable[[KeyFile], _T]) -> _T:
    """Change the keys that are given out; from then on they count as they are then.

    :raises llmproxy.errors.Refusal: 503: it cannot be kept, and so nothing has changed.
    """
    site = ask.request.site
    assert site.key_file is not None, "every proxy has one"
    try:
        found = change(site.key_file)
    except OSError as cause:
        raise Refusal(
            503,
            "error",
            f"The key cannot be kept, and so nothing has changed: {cause}.",
            hint="Look at the disk and at the rights of state_dir.",
        ) from None
    site.use_keys(given=site.key_file.keys)
    return found


def _object(request: ProxyRequest) -> dict[str, Any]:
    try:
        found = json.loads(short_body(request) or b"null")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise invalid_request('The body must be a JSON object such as {"name": "site"}.')
    return found


def _expiry(said: Any, now: float) -> Any:
    """When the key ends: a day, as the configuration has it, or how long from now on as in ``90d``."""
    if said is None or (isinstance(said, str) and re.search(EXPIRES_PATTERN, said)):
        return said
    try:
        ahead = duration(said)
    except ValueError:
        ahead = 0.0
    if not 0 < ahead <= LONGEST:
        told = "expires must be a day such as 2027-01-31, or a time such as 90d."
        raise invalid_request(told, param="expires")
    return datetime.fromtimestamp(now + ahead, UTC)
