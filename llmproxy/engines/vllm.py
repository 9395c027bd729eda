"""What is known of vLLM beside its flags: its secrets.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmproxy.engines.flags import VllmFlags, read_flags

__all__ = ["VllmFlags", "read_flags", "redact"]


_SHAPES = re.compile(
    r"""\b(?:hf_|sk-)[A-Za-z0-9_-]{8,}
      | (?P<before>\bBearer\s+
          # --api-key X, --api-key=X, api_key='X', "api_key": ["X", and '--api-key', 'X'
          | \b(?:api[-_]key|hf[-_]token)['"]?\s*[=:,]?\s*\[?\s*)
        (?:"[^"\r\n]*"?|'[^'\r\n]*'?|[^\s'",\]})]+)""",
    re.VERBOSE | re.IGNORECASE,
)

HIDDEN = "***"


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in place of the known secrets and of what has the shape of one.

    Secrets of fewer than four characters are left: to replace them would shred the text and tell them.
    """
    for secret in sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(lambda match: (match["before"] or "") + HIDDEN, text)
