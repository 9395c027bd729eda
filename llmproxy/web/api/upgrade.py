"""``POST /api/upgrade``: another process of the proxy takes the place of this one."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from llmproxy.errors import UpgradeFailed
from llmproxy.web.api.answers import Ask, conflict
from llmproxy.web.resource import answer_json

__all__ = ["upgrade"]


def upgrade(ask: Ask) -> None:
    """Begin, and answer when the other one serves, or when it is known that it does not.

    :raises llmproxy.errors.Refusal: 409: it cannot be done.
    """
    request = ask.request
    if request.site.upgrade is None:
        raise conflict("This proxy cannot be upgraded while it runs.")

    def done(told: dict[str, Any]) -> None:
        answer_json(request, 200, told)

    def failed(failure: Failure) -> None:
        if failure.check(UpgradeFailed) is None:
            request.processingFailed(failure)
            return
        request.refuse(
            conflict(f"Not upgraded: {failure.value}.", "The process that was there before serves as before.")
        )

    request.site.upgrade().addCallbacks(done, failed)
