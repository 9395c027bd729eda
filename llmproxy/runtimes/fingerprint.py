"""What tells one configuration of a backend from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

__all__ = ["fingerprint"]


def fingerprint(what: str, args: Sequence[str], environment: Mapping[str, str]) -> str:
    """A short name of all that together.  Secrets in it go into the hash and nowhere else.

    :param what: the image, by its id where that is known, or what else is run.
    """
    parts = [what, list(args), sorted(environment.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
