"""Keys that the proxy itself has given out: a file in the state folder, with digests of their secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from attrs import define, evolve, field
from twisted.logger import Logger

from llmproxy.config.keys import read_key, rights_view, told_hash
from llmproxy.config.model import Former, Key, digest_of
from llmproxy.errors import ConfigError
from llmproxy.files import replace_file
from llmproxy.keys import KEY_FILE

__all__ = ["KeyFile", "mint", "rights_of"]

PREFIX = "llmp_"
"""Of our secrets, so that people and scanners know one when they see it."""


def mint() -> str:
    """A secret that nobody can guess: 256 random bits."""
    # Only who gives keys out needs it.
    from secrets import token_urlsafe

    return PREFIX + token_urlsafe(32)


def rights_of(key: Key) -> dict[str, Any]:
    """What a key may do, as the configuration writes it; what is as usual is left out."""
    usual = rights_view(Key(""))
    return {name: value for name, value in rights_view(key).items() if value != usual[name]}


@define(eq=False)
class KeyFile:
    """Keeps them.

    :ivar folder: where the file stands; made when it is first written.
    """

    folder: str
    _keys: dict[str, Key] = field(factory=dict, init=False)
    _log = Logger()

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(self.folder, KEY_FILE)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them."""
        return tuple(self._keys.values())

    def read(self) -> tuple[Key, ...]:
        """All of them, as they were last written.

        A file that cannot be understood is put aside as ``keys.json.damaged``: its keys are refused then.
        """
        try:
            with open(self.path, "rb") as file:
                document = json.load(file)
            self._keys = {key.name: key for key in map(_read, document["keys"])}
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log.error("The keys in {path} are refused: {error}", path=self.path, error=error)
        except (ValueError, LookupError, TypeError, AttributeError, ConfigError, RecursionError) as error:
            with suppress(OSError):
                os.replace(self.path, self.path + ".damaged")
            self._log.error(
                "{path} is damaged and is kept as {path}.damaged; its keys are refused: {error}",
                path=self.path,
                error=type(error).__name__,
            )
        return self.keys

    def add(self, name: str, rights: Mapping[str, Any]) -> tuple[Key, str]:
        """A new key.

        :param rights: what :func:`llmproxy.config.keys.read_rights` has read.
        :return: the key, and its secret, which is known to nobody from then on.
        :raises OSError: it cannot be written.
        """
        secret = mint()
        return self._put(Key(name, hashed=digest_of(secret), **rights)), secret

    def rotate(self, name: str, until: float, now: float) -> tuple[Key, str]:
        """A new secret for a key.

        :param until: how long the present one is good for (POSIX seconds).
        :return: see :meth:`add`.
        :raises KeyError: there is none of that name.
        :raises OSError: it cannot be written.
        """
        key, secret = self._keys[name], mint()
        former = [one for one in key.former if one.until > now]
        if until > now:
            former.append(Former(key.digest, until))
        return self._put(evolve(key, hashed=digest_of(secret), former=tuple(former))), secret

    def revoke(self, name: str) -> Key:
        """Refuse a key from now on.

        :raises KeyError: there is none of that name.
        :raises OSError: it cannot be written.
        """
        key = self._keys[name]
        self._write(one for one in self.keys if one is not key)
        del self._keys[name]
        return key

    def _put(self, key: Key) -> Key:
        self._write([*(one for one in self.keys if one.name != key.name), key])
        self._keys[key.name] = key
        return key

    def _write(self, keys: Iterable[Key]) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        document = json.dumps({"version": 1, "keys": list(map(_written, keys))}, indent=1)
        replace_file(self.folder, KEY_FILE, document.encode())


def _written(key: Key) -> dict[str, Any]:
    told = {"name": key.name, "hash": told_hash(key.digest), **rights_of(key)}
    if key.former:
        told["former"] = [{"hash": told_hash(one.digest), "until": one.until} for one in key.former]
    return told


def _read(entry: Mapping[str, Any]) -> Key:
    rest = {name: value for name, value in entry.items() if name not in ("former", "expires")}
    key = read_key(KEY_FILE, rest, {})
    former = [
        Former(read_key(KEY_FILE, {"name": "x", "hash": one["hash"]}, {}).digest, float(one["until"]))
        for one in entry.get("former", ())
    ]
    expires = entry.get("expires")
    return evolve(key, former=tuple(former), expires=None if expires is None else float(expires))
