"""Gets images from their registries, and tells how far that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError
from docker.utils import parse_repository_tag

from llmproxy.engines.diagnosis import refusal_hint
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.interface import StartRefused

__all__ = ["PULL_TIMEOUT", "Pull", "pull_image"]

PULL_TIMEOUT = 600.0
"""Seconds that a pull may go without a word; progress comes several times a second."""

LEAST_STEP = 0.01
"""Part of a pull that is worth telling: an engine tells of each layer several times a second."""

MOST_LAYERS = 1000
"""Layers that are added up; an image has 127 at most."""

_HINT = "Check the image's name and tag, the network, and `docker login` if the registry is private."


@define(eq=False)
class Pull:
    """Adds up what the engine tells of the layers of one image (Docker Engine API, ``POST /images/create``).

    Layers are told of when their turn comes, so that the whole grows at first; what has been told stays.

    :param told: called when it has come further.
    """

    told: Callable[[Phase], None]
    _layers: dict[str, tuple[int, int]] = field(factory=dict, init=False)
    _last: float = field(default=0.0, init=False)

    def heard(self, step: Mapping[str, Any]) -> None:
        """One message of the engine."""
        layer, status, detail = step.get("id"), step.get("status"), step.get("progressDetail")
        if not isinstance(layer, str):
            return
        if status in ("Download complete", "Pull complete"):
            size = self._layers.get(layer, (0, 0))[1]
            self._layers[layer] = (size, size)
        elif status == "Downloading" and isinstance(detail, Mapping) and len(self._layers) < MOST_LAYERS:
            current, total = detail.get("current"), detail.get("total")
            if not isinstance(current, int) or not isinstance(total, int) or not 0 <= current <= total:
                return
            self._layers[layer] = (current, total)
        else:
            return
        whole = sum(total for _, total in self._layers.values())
        part = sum(current for current, _ in self._layers.values()) / whole if whole else 0.0
        if part >= self._last + LEAST_STEP:
            self._last = part
            self.told(Phase("pulling", part))


def pull_image(client: APIClient, image: str, heard: Callable[[Mapping[str, Any]], None]) -> None:
    """Get the image from its registry.  Blocks for minutes.

    :param heard: told each message of the engine, in this thread.
    :raises StartRefused: there is no such image, or the registry does not give it.
    """
    repository, tag = parse_repository_tag(image)
    try:
        # A digest stands where the tag would, and no tag means `latest`, not all of them.
        for step in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if not isinstance(step, Mapping):
                continue
            if step.get("error"):
                raise _refused(image, str(step["error"]))
            heard(step)
    except APIError as error:
        raise _refused(image, describe(error)) from error


def _refused(image: str, said: str) -> StartRefused:
    return StartRefused(f"image {image} cannot be pulled: {said}", refusal_hint(said) or _HINT)
