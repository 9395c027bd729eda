"""Keeps secrets out of what is shown: those that are known, and what has the shape of one.  Pure."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from json import dumps
from urllib.parse import quote

__all__ = ["HIDDEN", "flagged_secrets", "redact", "redact_known", "secret_values"]

HIDDEN = "***"

_LEAST = 4
"""Characters: to replace shorter ones would shred the text, and tell them."""

_NAMES = re.compile(
    r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|CREDENTIAL|APIKEY)S?(?:_|$)", re.IGNORECASE
)
"""Variables whose values are shown to nobody; not TOKENIZERS_PARALLELISM."""

_PLACES = re.compile(r"_(?:FILE|PATH|DIR|NAME|TYPE|ENV)$", re.IGNORECASE)
"""Ends of names that say where a secret is, or of which kind, and not what it is."""

_FLAG = re.compile("--?(?:[a-z]+[-_])*(?:api[-_]?key|token|password|secret)", re.IGNORECASE)

_WORDS = frozenset(("true", "false", "none", "null", "auto", "yes", "default", "local", "empty", "disabled"))
_USERINFO = re.compile(r"://[^/?#\s@:]*:([^/?#\s@]+)@")

_VALUE = r"""(?:"[^"\r\n]*"?|'[^'\r\n]*'?|[^\s'",\]})&]+)"""

_SHAPES: tuple[tuple[str, str], ...] = (
    # Hugging Face's, OpenAI's, and our own
    (r"hf_|sk-|llmp_", r"\b(?:hf_|sk-|llmp_)[A-Za-z0-9_-]{8,}"),
    # Forms that their makers have published: GitHub, GitLab, Slack, Docker Hub, NVIDIA
    (
        r"gh[pousr]_|github_pat_|glpat-|xox|dckr_|nvapi-",
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|dckr_(?:pat|oat)_|nvapi-)[A-Za-z0-9_-]{10,}",
    ),
    # AWS, Google, JSON Web Tokens
    (r"akia|asia|aiza", r"\b(?-i:(?:AKIA|ASIA)[0-9A-Z]{16}\b|AIza[A-Za-z0-9_-]{30,})"),
    (r"eyj", r"\b(?-i:eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)"),
    (r"private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]*?(?:-----END[^\r\n]*|\Z)"),
    # http://user:password@host; one without a password is most often no more than a name
    (r"://", r"(?P<k>://)(?:[^\s/?\#@'\":]*:[^\s/?\#@'\"]+|[^\s/?\#@'\":]{16,})(?=@)"),
    (r"cookie", r"(?P<k>\b(?:set-)?cookie['\"]?\s*:\s*)[^\r\n]+"),
    # Base64 and no word: "basic authentication" stays
    (r"basic", r"(?P<k>\bBasic\s+)(?=[A-Za-z0-9+/]*(?-i:[A-Z0-9+/=]))(?-i:[A-Za-z0-9+/]{8,}={0,2})"),
    # What signs a URL, as those of Hugging Face's and Amazon's stores
    (
        r"[?&][a-z_-]+=",
        r"(?P<k>[?&](?:key|token|sig|signature|policy|code|access[-_]token|api[-_]?key"
        r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^\s&'\"\#]+",
    ),
    (r"bearer", rf"(?P<k>\bBearer\s+){_VALUE}"),
    # --api-key X, --api-key=X, api_key='X', "api_key": ["X", and '--api-key', 'X'
    (
        r"api.?key|hf.?token",
        rf"(?P<k>\b(?:api[-_]?key|hf[-_]token)['\"]?\s*[=:,]?\s*\[?\s*){_VALUE}",
    ),
    (
        r"passw|passphrase|secret|[sehdy][-_]?token|registry-auth",
        r"(?P<k>\b(?:password|passwd|passphrase|secret[-_](?:access[-_])?key|client[-_]secret"
        r"|(?:access|refresh|identity|registry|auth|id)[-_]?token|x-registry-auth)['\"]?\s*[=:]\s*)" + _VALUE,
    ),
    (r'"auth"', rf'(?P<k>"auth"\s*:\s*){_VALUE}'),
    (
        r"(?:_key|_token|_secret|password|passwd)\s*=",
        rf"(?P<k>\b(?-i:[A-Z][A-Z0-9_]*(?:_KEY|_TOKEN|_SECRET|PASSWORD|PASSWD)\s*=\s*)){_VALUE}",
    ),
)
"""A sign that is quickly looked for (in lower case), and what to hide where it is found, but ``k``."""


@lru_cache(maxsize=1)
def _shapes() -> tuple[re.Pattern[str], tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]]:
    # Compiled when they are first needed: most of a proxy's life nothing is shown.
    each = [(re.compile(sign), re.compile(shape, re.IGNORECASE)) for sign, shape in _SHAPES]
    return re.compile("|".join(sign for sign, _ in _SHAPES)), tuple(each)


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values that must be shown to nobody: of variables whose names say so, and passwords in URLs."""
    found = []
    for name, value in environment.items():
        value = value.strip()
        # A number or an everyday word is no secret, and to hide it would shred whatever is told.
        telling = len(value) >= _LEAST and not value.isdecimal() and value.lower() not in _WORDS
        if telling and _NAMES.search(name) and not _PLACES.search(name):
            found.append(value)
        if "://" in value:
            found += _USERINFO.findall(value)
    return tuple(found)


def flagged_secrets(words: Sequence[str]) -> tuple[str, ...]:
    """Keys that a command line gives, ``--api-key X`` or ``--api-key=X``."""
    found = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if _FLAG.fullmatch(name):
            found.append(value if equals else "".join(words[place + 1 : place + 2]))
    return tuple(each for each in found if len(each) >= _LEAST and not each.startswith("--"))


@lru_cache(maxsize=64)
def _forms(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Every form in which the secrets may be written, the longest first."""
    found = set()
    for secret in secrets:
        if len(secret) < _LEAST:
            continue
        found |= {secret, quote(secret, safe=""), quote(secret), dumps(secret)[1:-1], repr(secret)[1:-1]}
        # Alone, or before a colon, as a Basic credential has it; what follows it is another's.
        found.add(b64encode(secret.encode("utf-8", "surrogatepass")).decode().rstrip("="))
    return tuple(sorted((form for form in found if len(form) >= _LEAST), key=len, reverse=True))


def redact_known(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of the known secrets, also where they are quoted or in base64."""
    for form in _forms(tuple(secrets)):
        if form in text:
            text = text.replace(form, HIDDEN)
    return text


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of the known secrets and of what has the shape of one.

    Secrets of fewer than four characters are left: to replace them would shred the text and tell them.
    """
    text = redact_known(text, secrets)
    lower = text.lower()
    any_sign, shapes = _shapes()
    if any_sign.search(lower) is None:
        return text
    for sign, shape in shapes:
        if sign.search(lower) is not None:
            text = shape.sub(_hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    return (match.groupdict().get("k") or "") + HIDDEN
