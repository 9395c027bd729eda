"""``llmproxy.*`` labels of containers, compose services and a Swarm's services -> settings.  Pure."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from llmproxy.config.fields import read_field
from llmproxy.config.layers import Layer, Setting, route_name
from llmproxy.errors import ConfigError

__all__ = ["PREFIX", "LabelledContainer", "read_labels", "says_something"]

PREFIX = "llmproxy."
_OURS = ("llmproxy.managed", "llmproxy.test", "llmproxy.run", "llmproxy.used", "llmproxy.needed")
"""Marks on what llmproxy, or its tests, created, and notes of proxies for each other; they say nothing about
routes."""


@frozen
class LabelledContainer:
    """A container that exists, running or not, and its labels.

    :ivar host: the one that it is on, where there are several.
    :ivar kind: ``container``, or ``service``: one of a Swarm.
    """

    name: str
    labels: Mapping[str, str]
    host: str = ""
    kind: str = "container"


def says_something(label: str) -> bool:
    """Whether the label is a setting of a route."""
    return label.startswith(PREFIX) and not any(label == own or label.startswith(f"{own}.") for own in _OURS)


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
        if not says_something(label):
            continue
        name = label.removeprefix(PREFIX)
        if name in ("container", "service", "runtime") and (name == "container" or kind == "service"):
            raise ConfigError(f"{place}: {label} is not a label; the {kind} is the one that it stands on")
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
    itself = "service" if kind == "service" else "container"
    if other is not None and (itself not in other or other[itself].value != container):
        first = "container" if "container" in other else "service"
        raise ConfigError(
            f"{place}: its label llmproxy.route={route} stands on {first} {other[first].value} too"
        )
    source = f"label llmproxy.route on {place}"
    if host:
        settings["host"] = Setting(host, source)
    if kind == "service":
        settings["runtime"] = Setting("swarm", source)
    layer.put(route, {itself: Setting(container, source), **settings})
