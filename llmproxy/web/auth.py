"""Who is asking: API keys compared in constant time."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from llmproxy.config.model import Key
from llmproxy.errors import Refusal, invalid_api_key, not_allowed
from llmproxy.http.headers import Fields

__all__ = ["ANYBODY", "NOBODY", "Authenticator", "may_use", "route_refusal"]

NOBODY = Key(name="-", secret="", client=False)
"""A request whose key nobody has asked for, or has not been accepted."""

ANYBODY = Key(name="anybody", secret="", admin=True)
"""Whoever reaches a proxy without keys, which listens on loopback only."""


class Authenticator:
    """Finds the key that a request carries.

    :param keys: the configured keys; none means that everybody may do everything.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = [(sha256(key.secret.encode("utf-8")).digest(), key) for key in keys]

    def authenticate(self, fields: Fields, now: float) -> Key:
        """The key of a request: ``Authorization: Bearer`` (RFC 6750) or ``x-api-key``.

        Every configured key is compared, by digests of one length, so that the time taken tells nothing.

        :param fields: its header fields.
        :param now: POSIX seconds, for keys that expire.
        :raises llmproxy.errors.Refusal: ``invalid_api_key``.
        """
        if not self._keys:
            return ANYBODY
        digest = sha256(_presented(fields)).digest()
        found: Key | None = None
        for expected, key in self._keys:
            if compare_digest(expected, digest):
                found = key
        if found is None:
            raise invalid_api_key()
        self.require_current(found, now)
        return found

    @staticmethod
    def require_current(key: Key, now: float) -> None:
        """Let no key on that has expired.

        :param now: POSIX seconds.
        :raises llmproxy.errors.Refusal: ``invalid_api_key``.
        """
        if key.expires is not None and key.expires <= now:
            raise invalid_api_key()

    @staticmethod
    def require_admin(key: Key) -> None:
        """Let only administrators on.

        :raises llmproxy.errors.Refusal: ``not_allowed``.
        """
        if not key.admin:
            raise not_allowed(
                f"The key {key.name!r} is not an administrator's.",
                hint="Use the key from LLMPROXY_ADMIN_KEY, or one with admin: true.",
            )

    @staticmethod
    def require_client(key: Key) -> None:
        """Let only those on who may use models.

        :raises llmproxy.errors.Refusal: ``not_allowed``.
        """
        if not key.client:
            raise not_allowed(f"The key {key.name!r} is for administration only.")


def may_use(key: Key, route: str) -> bool:
    """Whether this key may use that route."""
    return key.routes is None or route in key.routes


def route_refusal(key: Key, route: str) -> Refusal:
    """403 for a route that exists and that this key may not use."""
    return not_allowed(f"The key {key.name!r} may not use /{route}.")


def _presented(fields: Fields) -> bytes:
    scheme, _, credentials = fields.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    return fields.get(b"x-api-key", b"").strip()
