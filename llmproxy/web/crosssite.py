"""Requests that a page of somebody else makes in an operator's browser.  Pure."""

from __future__ import annotations

from llmproxy.errors import not_allowed
from llmproxy.http.headers import Fields

__all__ = ["SAFE", "refuse_cross_site"]

SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Methods that change nothing (RFC 9110 section 9.2.1)."""

_OWN = frozenset((b"same-origin", b"none"))
"""What ``Sec-Fetch-Site`` says of the dashboard's own pages, and of what a person typed (Fetch Metadata)."""


def refuse_cross_site(method: bytes, fields: Fields, told: bytes | None = None) -> None:
    """Let no page of another origin change anything.

    A browser says which page it asks for, and no page can make it say otherwise.  Programs say nothing of it,
    and are let on: they have no operator's session that could be abused.

    :param told: the ``Host`` that the browser asked for, where a trusted proxy tells of it.
    :raises llmproxy.errors.Refusal: ``not_allowed``.
    """
    if method in SAFE:
        return
    site, origin = fields.get(b"sec-fetch-site"), fields.get(b"origin")
    foreign = site is not None and site.strip().lower() not in _OWN
    if not foreign and origin is not None:
        # A page that hides where it is from says "null".
        host = origin.strip().lower().partition(b"://")[2]
        own = fields.get(b"host", b"") if told is None else told
        foreign = not host or host != own.strip().lower()
    if foreign:
        raise not_allowed(
            "A page of another site may not change anything here.",
            hint="If this is the dashboard itself, have the reverse proxy in front of it pass Host on.",
        )
