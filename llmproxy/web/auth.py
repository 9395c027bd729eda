"""Who is asking: API keys compared in constant time."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from attrs import evolve

from llmproxy.config.model import Key
from llmproxy.errors import Refusal, invalid_api_key, not_allowed, rate_limited
from llmproxy.http.headers import Fields
from llmproxy.keys.guard import Guard
from llmproxy.web.crowd import party

__all__ = ["ANYBODY", "NOBODY", "Authenticator", "may_use", "route_refusal"]

NOBODY = Key(name="-", secret="", client=False)
"""A request whose key nobody has asked for, or has not been accepted."""

ANYBODY = Key(name="anybody", secret="", admin=True)
"""Whoever reaches a proxy without keys, which listens on loopback only."""


class Authenticator:
    """Finds the key that a request carries.

    :param keys: the configured keys; none means that everybody may do everything.
    :param guard: makes those wait who show wrong ones.
    """

    def __init__(self, keys: Sequence[Key], guard: Guard | None = None) -> None:
        self._guard = Guard() if guard is None else guard
        self._keys = [(key.digest, key) for key in keys]
        for key in keys:
            for former in key.former:
                until = former.until if key.expires is None else min(former.until, key.expires)
                self._keys.append((former.digest, evolve(key, expires=until)))

    def authenticate(self, fields: Fields, now: float, who: str = "-") -> Key:
        """The key of a request: ``Authorization: Bearer`` (RFC 6750), ``x-api-key``, or a ``Basic`` password.

        Every configured key is compared, by digests of one length, so that the time taken tells nothing.

        :param fields: its header fields.
        :param now: POSIX seconds, for keys that expire.
        :param who: the address that it comes from.
        :raises llmproxy.errors.Refusal: ``invalid_api_key``, ``rate_limited``.
        """
        if not self._keys:
            return ANYBODY
        presented = _presented(fields)
        digest = sha256(presented).digest()
        found: Key | None = None
        for expected, key in self._keys:
            if compare_digest(expected, digest):
                found = key
        if not presented:
            # Nobody guesses by saying nothing.
            raise invalid_api_key()
        # Programs of this machine are not told apart, and need no guesses to get at a key.
        whose = party(who)
        wait = 0.0 if whose is None else self._guard.wait(whose, digest, now)
        if wait > 0:
            raise rate_limited(
                "Too many wrong keys came from this address.",
                wait,
                hint="Correct the key, and try again later.",
            )
        if found is None:
            if whose is not None:
                self._guard.failed(whose, now)
            raise invalid_api_key()
        if whose is not None:
            self._guard.succeeded(whose, digest)
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
    kind = scheme.lower()
    if kind == b"bearer":
        return credentials.strip()
    if kind == b"basic":
        try:
            # RFC 7617: whoever it is, the password is the key.
            return b64decode(credentials.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return fields.get(b"x-api-key", b"").strip()
