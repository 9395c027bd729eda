"""What is known of vLLM beside its flags: its secrets.  Pure."""

from __future__ import annotations

from llmproxy.engines.flags import VllmFlags, read_flags
from llmproxy.engines.redaction import redact

__all__ = ["VllmFlags", "read_flags", "redact"]
