"""Which paths of a backend wake it, which only look, which ask for what it has stored, and which are its
engine's own controls.  Pure."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

__all__ = ["is_control", "is_passive", "is_stored", "plain"]

_PASSIVE = frozenset(("health", "ping", "metrics", "load", "version"))

_CONTROLS = frozenset(
    (
        "collective_rpc",
        "docs",
        "is_paused",
        "is_scaling_elastic_ep",
        "is_sleeping",
        "openapi.json",
        "pause",
        "redoc",
        "release_kv_cache_memory",
        "reset_encoder_cache",
        "reset_mm_cache",
        "reset_prefix_cache",
        "resume",
        "scale_elastic_ep",
        "sleep",
        "start_profile",
        "stop_profile",
        "wake_up",
    )
)
"""First segments of vLLM's own controls, for which vLLM itself asks no key."""

_CONTROL_PREFIXES = ("update_weights", "init_weight", "start_weight", "finish_weight")


def plain(path: str) -> str:
    """``path`` as a server may come to see it: decoded, without empty and ``.`` segments, ``..`` resolved,
    backslashes for slashes, and without what is behind a semicolon.

    Used to guard paths, never to forward them.
    """
    segments: list[str] = []
    for whole in unquote(path).replace("\\", "/").split("/"):
        segment = whole.partition(";")[0]
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return "/".join(segments)


def is_passive(path: str) -> bool:
    """It only looks (health, metrics ...), and so never wakes a backend."""
    return _known(path) in _PASSIVE


def is_stored(method: bytes, path: str) -> bool:
    """It is about a response that the backend has in its memory, and loses when it is stopped."""
    match _known(path).split("/"):
        case ["v1", "responses", _, *rest]:
            return method in (b"GET", b"HEAD", b"DELETE") or rest == ["cancel"]
        case _:
            return False


def is_control(path: str) -> bool:
    """It is one of vLLM's own controls, which are for administrators."""
    head = _known(path).partition("/")[0]
    return head in _CONTROLS or head.startswith(_CONTROL_PREFIXES)


def _known(path: str) -> str:
    # Clients ask for the same few paths; what is long is none of them, and not worth being kept.
    return _kept(path) if len(path) <= 256 else plain(path)


_kept = lru_cache(maxsize=1024)(plain)
