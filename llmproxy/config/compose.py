"""What a compose file says of its services.  Pure: text in, services out; Compose itself creates them.

Only what llmproxy wants to know is read, and leniently: an error in the file is for Compose to tell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from attrs import Factory, field, frozen

from llmproxy.config.interpolate import compose_text
from llmproxy.engines.gpus import DeviceRequest
from llmproxy.errors import ConfigError

__all__ = ["ComposeService", "read_compose"]


class _Loader(yaml.SafeLoader):
    """Reads scalars as they are written.

    Compose follows YAML 1.2, where ``off`` is a text; PyYAML follows 1.1, where it is false, ``012`` is 10
    and ``22:22`` is 1342.  All that is read here are texts, so that nothing needs to be resolved but
    ``<<`` and null.
    """


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0].endswith((":merge", ":null"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _untagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    """Compose's ``!reset`` and ``!override`` say how files are merged; the value is what follows."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if not isinstance(node, yaml.ScalarNode) or (node.style is None and node.value in ("", "~", "null")):
        return None
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("!", _untagged)


@frozen
class ComposeService:
    """One service.

    :ivar args: entrypoint and command together, as far as the file gives them.
    :ivar ports: in the short form, ``[[address:]published:]target[/protocol]``.
    :ivar devices: the GPUs that it asks for; ``None`` when it leaves that open.
    :ivar volumes: in the short form, ``[source:]target[:mode]``.
    """

    name: str
    container_name: str | None = None
    image: str | None = None
    labels: Mapping[str, str] = Factory(dict)
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=Factory(dict), repr=False)
    profiles: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    devices: DeviceRequest | None = None
    volumes: tuple[str, ...] = ()


def read_compose(text: str, name: str, environ: Mapping[str, str]) -> tuple[ComposeService, ...]:
    """Read a compose file.

    :param name: what errors call it.
    :param environ: what ``${NAME}`` is read from; what is not set is empty.
    :raises llmproxy.errors.ConfigError: it is no YAML, or no compose file.
    """
    try:
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: it is not valid YAML") from None
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise ConfigError(f"{name}: it is no compose file, for it has no services")
    return tuple(
        _service(str(key), _fill(service, environ), environ)
        for key, service in services.items()
        if isinstance(service, dict)
    )


def _fill(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return compose_text(value, environ)
    if isinstance(value, list):
        return [_fill(item, environ) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, environ) for key, item in value.items()}
    return value


def _service(name: str, service: dict[Any, Any], environ: Mapping[str, str]) -> ComposeService:
    container = service.get("container_name")
    image = service.get("image")
    return ComposeService(
        name=name,
        container_name=str(container) if container else None,
        image=str(image) if image else None,
        labels=_pairs(service.get("labels"), {}),
        args=(*_words(service.get("entrypoint")), *_words(service.get("command"))),
        environment=_pairs(service.get("environment"), environ),
        profiles=_words(service.get("profiles")),
        ports=tuple(_port(port) for port in _list(service.get("ports"))),
        devices=_devices(service),
        volumes=tuple(_volume(volume) for volume in _list(service.get("volumes"))),
    )


def _devices(service: Mapping[Any, Any]) -> DeviceRequest | None:
    """GPUs, in the three ways to ask for them: ``deploy``'s reservations, ``gpus``, and ``devices`` with
    names of the container device interface (Compose specification; "Enable GPU support")."""
    found: list[tuple[int, Sequence[str]]] = []
    wanted: Any = service
    for key in ("deploy", "resources", "reservations"):
        wanted = wanted.get(key) if isinstance(wanted, dict) else None
    if isinstance(wanted, dict):
        found += [
            _request(each)
            for each in _list(wanted.get("devices"))
            if isinstance(each, dict)
            and (each.get("driver") in ("nvidia", "cdi") or "gpu" in _words(each.get("capabilities")))
        ]
    if service.get("gpus") == "all":
        found.append((-1, ()))
    found += [_request(each) for each in _list(service.get("gpus")) if isinstance(each, dict)]
    names = [str(each) for each in _list(service.get("devices")) if str(each).startswith("nvidia.com/gpu=")]
    if names:
        found.append((0, names))
    return DeviceRequest.of(found) if found else None


def _request(device: Mapping[Any, Any]) -> tuple[int, Sequence[str]]:
    """How many, and which.  All when it says neither."""
    names = _words(device.get("device_ids"))
    count = _scalar(device.get("count"))
    return (int(count) if re.fullmatch("[0-9]{1,4}", count) else 0 if names else -1), names


def _port(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    parts = [str(value[key]) for key in ("host_ip", "published", "target") if value.get(key)]
    return ":".join(parts) + (f"/{value['protocol']}" if value.get("protocol") else "")


def _volume(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    parts = [str(value[key]) for key in ("source", "target") if value.get(key)]
    read_only = len(parts) == 2 and value.get("read_only") == "true"
    return ":".join([*parts, "ro"] if read_only else parts)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError:  # a quote that is not closed
            return tuple(value.split())
    return tuple(_scalar(word) for word in _list(value))


def _pairs(value: Any, environ: Mapping[str, str]) -> dict[str, str]:
    if isinstance(value, dict):
        return {
            str(key): environ.get(str(key), "") if item is None else _scalar(item)
            for key, item in value.items()
        }
    pairs = {}
    for item in _list(value):
        key, equals, text = str(item).partition("=")
        pairs[key] = text if equals else environ.get(key, "")
    return pairs


def _scalar(value: Any) -> str:
    return "" if value is None else str(value)
