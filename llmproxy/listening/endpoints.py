"""Endpoint strings, as far as they are ours: ``ssl:``, and ``haproxy:`` around one.  Pure.

Twisted reads the files of an ``ssl:`` endpoint once, takes the first certificate of a chain alone, and tells
what is wrong with them in OpenSSL's words.  So they are read here; all other kinds are left to it.
"""

from __future__ import annotations

from attrs import frozen

__all__ = ["BACKLOG", "TlsEndpoint", "parse", "read_tls", "with_backlog"]

BACKLOG = 1024
"""Connections that may wait to be accepted where the endpoint does not say.  Twisted's own 50 are too few for
hundreds of clients at once: the kernel drops or resets the rest.  The kernel bounds it (``somaxconn``)."""

_NAMES = ("port", "privateKey", "certKey", "extraCertChain", "interface", "backlog", "http2")
"""What an ``ssl:`` endpoint may say; the first three may stand without their names."""

_LATER = {
    "sslmethod": "TLS 1.2 and 1.3 are served",
    "dhParameters": "keys are agreed on over elliptic curves",
}
"""What Twisted's own knows, and why it is of no use here."""


@frozen
class TlsEndpoint:
    """An ``ssl:`` endpoint.

    :ivar description: as it was written.
    :ivar private_key: path of a PEM file; ``certificate`` and ``chain``: the same.
    :ivar http2: HTTP/2 is offered, if it is installed.
    :ivar proxied: connections begin with the PROXY protocol.
    """

    description: str
    port: int
    private_key: str
    certificate: str
    chain: str | None = None
    interface: str = ""
    backlog: int = BACKLOG
    http2: bool = True
    proxied: bool = False


def parse(description: str) -> tuple[list[str], dict[str, str]]:
    """The parts of an endpoint string without and with names, as Twisted finds them: a backslash takes its
    meaning from what follows, and a value may have equals signs.

    :raises ValueError: it ends within an escape.
    """
    plain: list[str] = []
    named: dict[str, str] = {}
    name: str | None = None
    text, characters = "", iter(description)
    for character in characters:
        if character == "\\":
            following = next(characters, None)
            if following is None:
                raise ValueError("it ends with a backslash")
            text += following
        elif character == "=" and name is None:
            name, text = text, ""
        elif character == ":":
            _add(plain, named, name, text)
            name, text = None, ""
        else:
            text += character
    _add(plain, named, name, text)
    return plain, named


def _add(plain: list[str], named: dict[str, str], name: str | None, text: str) -> None:
    if name is None:
        plain.append(text)
    else:
        named[name] = text


def read_tls(description: str) -> TlsEndpoint | None:
    """An ``ssl:`` endpoint, be it behind ``haproxy:``; None for every other kind.

    :raises ValueError: it is one, and says something that is not understood.
    """
    rest, proxied = description, False
    if rest.startswith("haproxy:"):
        rest, proxied = rest.removeprefix("haproxy:"), True
    if not rest.startswith("ssl:"):
        return None
    plain, named = parse(rest.removeprefix("ssl:"))
    for name in named:
        if name in _LATER:
            raise ValueError(f"{name} is of no use here: {_LATER[name]}; leave it away")
        if name not in _NAMES:
            raise ValueError(f"it knows no {name}; what it may have is {', '.join(_NAMES)}")
    if len(plain) > 3:
        raise ValueError(f"{plain[3]!r} needs a name; what it may have is {', '.join(_NAMES)}")
    found = {**dict(zip(_NAMES, plain, strict=False)), **named}
    key = found.get("privateKey", "")
    if not key:
        raise ValueError("it needs privateKey=FILE, and certKey=FILE unless both are in one file")
    return TlsEndpoint(
        description=description,
        port=_number("port", found.get("port", ""), 0, 65535),
        private_key=key,
        certificate=found.get("certKey") or key,
        chain=found.get("extraCertChain") or None,
        interface=found.get("interface", ""),
        backlog=_number("backlog", found.get("backlog", str(BACKLOG)), 1, 1_000_000),
        http2=_truth("http2", found.get("http2", "yes")),
        proxied=proxied,
    )


def _number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ValueError(f"{name} is {text!r}, and must be a number from {least} to {most}")
    return int(text)


def _truth(name: str, text: str) -> bool:
    words = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False}
    if text.lower() not in {**words, "0": False}:
        raise ValueError(f"{name} is {text!r}, and must be yes or no")
    return words.get(text.lower(), False)


def with_backlog(description: str) -> str:
    """An endpoint string with :data:`BACKLOG`, if its kind takes one and it has none."""
    if description.partition(":")[0] in ("tcp", "tcp6", "unix") and ":backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description
