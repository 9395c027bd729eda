"""``llmproxy.*`` labels of containers and compose services -> settings.  Pure."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from llmproxy.config.fields import read_field
from llmproxy.config.layers import Layer, Setting, route_name
from llmproxy.errors import ConfigError

__all__ = ["PREFIX", "LabelledContainer", "read_labels"]

PREFIX = "llmproxy."
_OURS = ("llmproxy.managed", "llmproxy.test")
"""Marks on containers that llmproxy, or its tests, created; they say nothing about routes."""


@frozen
class LabelledContainer:
    """A container that exists, running or not, and its labels.

    :ivar host: the one that it is on, where there are several.
    """

    name: str
    labels: Mapping[str, str]
    host: str = ""


def read_labels(
    layer: Layer, container: str, labels: Mapping[str, str], kind: str = "container", host: str = ""
) -> None:
    """Put what the labels of one container say into ``layer``.

    :param container: its name, which the route leads to.
    :param kind: what errors and sources call it.
    :param host: the one that it is on, where there are several.
    :raises llmproxy.errors.ConfigError: a label is not allowed, or there are labels but no route.
    """
    place = f"{kind} {container}" + (f" on {host}" if host else "")
    settings: dict[str, Setting] = {}
    route = None
    for label, value in labels.items():
        if not label.startswith(PREFIX) or label.startswith(_OURS):
            continue
        name = label.removeprefix(PREFIX)
        if name == "container":
            raise ConfigError(f"{place}: {label} is not a label; the container is the one that it stands on")
        if name == "host":
            raise ConfigError(f"{place}: {label} is not a label; the host is the one that it is on")
        if name == "route":
            route = route_name(f"{place} label {label}", value)
        else:
            read = read_field(f"{place} label {label}", name, value, text=True)
            settings[name] = Setting(read, f"label {label} on {place}")
    if route is None:
        if settings:
            raise ConfigError(f"{place}: it has llmproxy labels but no llmproxy.route")
        return
    other = layer.backends.get(route)
    if other is not None and other["container"].value != container:
        raise ConfigError(
            f"{place}: its label llmproxy.route={route} stands on container {other['container'].value} too"
        )
    source = f"label llmproxy.route on {place}"
    if host:
        settings["host"] = Setting(host, source)
    layer.put(route, {"container": Setting(container, source), **settings})
