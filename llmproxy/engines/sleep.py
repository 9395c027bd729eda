"""How vLLM is put to sleep and woken: the requests, and what their answers say.  Pure.

The requests are those of vLLM's documentation ("Sleep Mode") and of its article "Zero-Reload Model Switching
with vLLM Sleep Mode" (2025-10-26); the answers are those of 0.32 (``vllm/entrypoints/serve/dev/sleep``), and
the empty ones of earlier versions.  All need ``VLLM_SERVER_DEV_MODE=1``, and none a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from attrs import frozen

__all__ = [
    "Call",
    "Freed",
    "asleep",
    "fell_asleep",
    "is_sleeping",
    "read_freed",
    "sleep_request",
    "wake_requests",
    "woke",
]


class Call(NamedTuple):
    """A request to the engine.

    :ivar path: with its query.
    :ivar body: to be sent as JSON; ``None`` for no body.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None


def sleep_request(level: int) -> Call:
    """Put it to sleep: 1 keeps the weights in the host's memory, 2 drops them.

    It answers when it sleeps.  With ``mode=wait`` it first finishes what it has in hand, which it would abort
    otherwise (``vllm/v1/engine/core.py``, ``pause_scheduler``); older versions know no modes.
    """
    return Call("POST", f"/sleep?level={level}&mode=wait")


def wake_requests(level: int) -> tuple[Call, ...]:
    """Wake it from that level, one request after the other.

    From level 2 it comes back with whatever was in memory, and answers with nonsense until its weights are
    loaded again.  The prefix cache is then about other memory: the article demands that it be reset, the
    documentation of later versions does not, for they do it while falling asleep (``EngineCore.sleep``).
    """
    if level != 2:
        return (Call("POST", "/wake_up"),)
    return (
        Call("POST", "/wake_up?tags=weights"),
        Call("POST", "/collective_rpc", {"method": "reload_weights"}),
        Call("POST", "/wake_up?tags=kv_cache"),
        Call("POST", "/reset_prefix_cache"),
    )


def is_sleeping() -> Call:
    """Ask whether it sleeps.  Asleep, it is healthy to ``/health``, and requests hang until it is woken."""
    return Call("GET", "/is_sleeping")


def fell_asleep(status: int, body: bytes) -> bool:
    """Whether the answer to :func:`sleep_request` says that it sleeps."""
    return status == 200 and _read(body).get("status", "sleeping") == "sleeping"


def woke(call: Call, status: int, body: bytes) -> bool:
    """Whether the answer to one of :func:`wake_requests` says that it did what it is for.  It is awake when
    the last one did."""
    if status != 200:
        return False
    said = _read(body)
    if call.path == "/reset_prefix_cache":
        # False while a request runs; nobody's should before it is awake.
        return said.get("success") is not False
    # Until all is back it still "sleeps".
    return "tags=weights" in call.path or said.get("status") != "sleeping"


def asleep(status: int, body: bytes) -> bool | None:
    """What the answer to :func:`is_sleeping` says; ``None`` when it does not say: there is no such path, and
    so it cannot be asleep, or it is not well."""
    said = _read(body).get("is_sleeping") if status == 200 else None
    return said if isinstance(said, bool) else None


@frozen
class Freed:
    """What falling asleep brought on one GPU, in bytes.

    :ivar freed: what it gave back.
    :ivar in_use: what is in use on that GPU afterwards *by anybody*: vLLM asks the device, not the process
        (``torch.cuda.mem_get_info`` in ``Worker.sleep``).  It is what this one kept where it is alone there.
    """

    freed: int
    in_use: int


_FREED = re.compile(
    r"Sleep mode freed ([0-9]{1,6}(?:\.[0-9]{1,6})?) GiB memory, "
    r"([0-9]{1,6}(?:\.[0-9]{1,6})?) GiB memory is still in use"
)


def read_freed(line: str) -> Freed | None:
    """Read a line of its log (``Worker.sleep`` in ``vllm/v1/worker/gpu_worker.py``), of which each GPU's
    worker writes one; ``None`` for other lines."""
    match = _FREED.search(line)
    if match is None:
        return None
    freed, in_use = (int(float(number) * 1024**3) for number in match.groups())
    return Freed(freed, in_use)


def _read(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
