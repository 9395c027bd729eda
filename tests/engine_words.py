"""What the Docker engine says when it says no."""

from __future__ import annotations

import requests
from docker.errors import APIError, NotFound

__all__ = ["said"]


def said(status: int, words: str) -> APIError:
    """As the SDK raises it."""
    answer = requests.Response()
    answer.status_code = status
    return (NotFound if status == 404 else APIError)("no", answer, words)
