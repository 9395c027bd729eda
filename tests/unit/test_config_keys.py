"""API keys in the configuration: secrets, digests of them, and those that they had before."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llmproxy.config.describe import describe
from llmproxy.config.keys import read_rights, told_hash
from llmproxy.config.model import Config, Key, digest_of
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError

HASH = told_hash(digest_of("old-secret"))


def read(file: str, **environ: str) -> Config:
    return read_sources(Sources(environ, file=file))


def test_a_key_may_be_known_by_its_digest_alone() -> None:
    """The secret is nowhere in the configuration then."""
    (key,) = read(f"keys: [{{name: site, hash: '{HASH}'}}]").keys
    assert (key.secret, key.digest) == ("", digest_of("old-secret"))
    assert key == Key("site", hashed=digest_of("old-secret"))
    assert HASH[7:] not in repr(key)


def test_a_key_may_have_had_another_secret() -> None:
    """Until a day, so that clients change over one after the other."""
    (key,) = read(
        f"keys: [{{name: site, secret_env: NEW, previous: {{hash: '{HASH}', until: 2027-01-31}}}}]", NEW="new"
    ).keys
    assert (key.digest, key.former[0].digest) == (digest_of("new"), digest_of("old-secret"))
    assert key.former[0].until == datetime(2027, 1, 31, tzinfo=UTC).timestamp()


def test_the_environments_keys_are_found_by_their_digests() -> None:
    """What the file says of one wins, and the administrator's key is one of the file's."""
    config = read(f"keys: [{{name: me, hash: '{HASH}', routes: [chat]}}]", VLLM_API_KEY="old-secret")
    assert [(key.name, key.routes, key.admin) for key in config.keys] == [("me", ("chat",), False)]
    config = read(f"keys: [{{name: me, hash: '{HASH}'}}]", LLMPROXY_ADMIN_KEY="old-secret")
    assert [(key.name, key.admin) for key in config.keys] == [("me", True)]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("{name: a, hash: abc}", "hash is not allowed; use sha256: and 64"),
        (f"{{name: a, hash: '{HASH}', secret: x}}", "one of secret_env, secret and hash"),
        ("{name: a, secret: x, previous: {secret: y}}", "needs until"),
        ("{name: a, secret: x, previous: {until: 2027-01-31}}", "previous: it needs one of"),
        ("{name: a, secret: x, previous: 7}", "previous is not allowed; use a mapping"),
        ("{name: a, secret: x, previous: {secret: y, until: soon}}", "until is not allowed; use a date"),
        ("{name: a, secret: x, previous: {secrets: y}}", "unknown key 'secrets'; did you mean 'secret'"),
        ("{name: 'a/b', secret: x}", "name is not allowed; use up to 64"),
        (
            "{name: a, secret: old-secret}, {name: b, secret: y, previous: {hash: HASH, until: 2027-01-31}}",
            "same secret",
        ),
    ],
)
def test_what_is_not_allowed(key: str, words: str) -> None:
    """One line says what is, without the secret."""
    with pytest.raises(ConfigError, match=words) as caught:
        read(f"keys: [{key.replace('HASH', repr(HASH))}]")
    assert "old-secret" not in str(caught.value)
    assert HASH[7:] not in str(caught.value)


def test_no_secret_is_shown() -> None:
    """Nor its digest."""
    config = read(f"keys: [{{name: a, secret: s3cr3t, previous: {{hash: '{HASH}', until: 2027-01-31}}}}]")
    told = str(list(describe(config)))
    assert "s3cr3t" not in told
    assert HASH[7:] not in told


def test_rights_by_themselves() -> None:
    """As the admin API takes them."""
    rights = read_rights("it", {"routes": ["Chat"], "streams": 2, "may_start": False, "admin": None})
    assert rights == {"routes": ("chat",), "streams": 2, "may_start": False}
    with pytest.raises(ConfigError, match="unknown key 'secret'"):
        read_rights("it", {"secret": "x"})
