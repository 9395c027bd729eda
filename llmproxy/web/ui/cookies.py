"""The session's cookie (RFC 6265).  Pure."""

from __future__ import annotations

import re

from llmproxy.http.headers import Fields

__all__ = ["clearing", "name_for", "read", "setting", "without_credentials"]

_NAME = "llmproxy_session"
_PORT = re.compile(rb":([0-9]{1,5})\s*\Z")
_ATTRIBUTES = "HttpOnly; SameSite=Strict; Path=/ui/"
_CREDENTIALS = frozenset((b"authorization", b"cookie", b"x-api-key"))


def name_for(host: bytes) -> str:
    """The cookie's name at this ``Host``: cookies know no ports, and there may be a proxy on each of two."""
    port = _PORT.search(host)
    return f"{_NAME}_{port[1].decode('ascii')}" if port else _NAME


def read(fields: Fields) -> str | None:
    """The id of the session, if there is one."""
    wanted = name_for(fields.get(b"host", b""))
    for line in fields.all(b"cookie"):
        for part in line.decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == wanted and value:
                return value
    return None


def setting(fields: Fields, token: str, *, secure: bool) -> bytes:
    """``Set-Cookie`` that has the browser keep the id until it is closed."""
    flags = _ATTRIBUTES + ("; Secure" if secure else "")
    return f"{name_for(fields.get(b'host', b''))}={token}; {flags}".encode("ascii")


def clearing(fields: Fields) -> bytes:
    """``Set-Cookie`` that has the browser forget it."""
    return f"{name_for(fields.get(b'host', b''))}=; {_ATTRIBUTES}; Max-Age=0".encode("ascii")


def without_credentials(fields: Fields, secret: bytes | None = None) -> Fields:
    """The fields as a resource outside of ``/ui`` is to see them: no cookie, and the session's key.

    :param secret: that key; None: the credentials stay as they are.
    """
    if secret is None:
        return Fields([field for field in fields.raw if field[0].lower() != b"cookie"])
    kept = [field for field in fields.raw if field[0].lower() not in _CREDENTIALS]
    return Fields([*kept, (b"Authorization", b"Bearer " + secret)])
