"""Environment variables -> settings; the names are those of the launcher that llmproxy replaces.  Pure."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from llmproxy.config import units
from llmproxy.config.fields import log_format, log_level, metrics_access, read_field
from llmproxy.config.layers import Layer, Setting, route_name
from llmproxy.config.model import Key, digest_of
from llmproxy.config.mounts import mount_folders
from llmproxy.config.network import allowed_hosts, commas, trusted_proxies
from llmproxy.errors import ConfigError

__all__ = ["prewarm_routes", "read_environment", "with_environment_keys"]

_PREFIX = "MAP__"

_DURATIONS = {"IDLE_SECONDS": "idle", "START_TIMEOUT_SECONDS": "start_timeout"}

_TEXTS = {
    "DOCKER_HOST": "docker.host",
    "COMPOSE_FILE": "docker.compose_file",
    "LLMPROXY_STATE_DIR": "state_dir",
}

_CHOICES = {
    "LLMPROXY_METRICS_ACCESS": ("metrics_access", metrics_access),
    "LLMPROXY_LOG_FORMAT": ("log.format", log_format),
    "LLMPROXY_LOG_LEVEL": ("log.level", log_level),
    "LLMPROXY_ALLOWED_MOUNTS": ("docker.allowed_mounts", mount_folders),
    "LLMPROXY_TRUSTED_PROXIES": ("trusted_proxies", lambda text: trusted_proxies(commas(text))),
    "LLMPROXY_ALLOWED_HOSTS": ("allowed_hosts", lambda text: allowed_hosts(commas(text))),
}


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Read the variables that are llmproxy's.

    :raises llmproxy.errors.ConfigError: one of them is not allowed.
    """
    layer = Layer()
    for variable, field in _DURATIONS.items():
        text = environ.get(variable, "").strip()
        if text:
            try:
                layer.defaults[field] = Setting(units.duration(text), f"environment {variable}")
            except ValueError as allowed:
                raise ConfigError(
                    f"environment {variable} is {text!r}, which is not allowed; use {allowed}"
                ) from None
    for variable, path in _TEXTS.items():
        text = environ.get(variable, "").strip()
        if text:
            layer.top[path] = Setting(text, f"environment {variable}")
    for variable, (path, read) in _CHOICES.items():
        text = environ.get(variable, "").strip()
        if text:
            try:
                layer.top[path] = Setting(read(text), f"environment {variable}")
            except ValueError as allowed:
                raise ConfigError(
                    f"environment {variable} is {text!r}, which is not allowed; use {allowed}"
                ) from None
    listen = environ.get("LLMPROXY_LISTEN", "").split()
    if listen:
        layer.top["listen"] = Setting(tuple(listen), "environment LLMPROXY_LISTEN")
    for variable, value in sorted(environ.items()):
        if variable.upper().startswith(_PREFIX):
            _read_map(layer, variable, value)
    return layer


def _read_map(layer: Layer, variable: str, value: str) -> None:
    route, separator, field = variable[len(_PREFIX) :].rpartition("__")
    place = f"environment {variable}"
    if not separator or not route:
        raise ConfigError(f"{place}: it must be MAP__<route>__<field>")
    if value == "":
        # Compose sets what is not set on the host to nothing.
        return
    name = route_name(place, route)
    layer.put(name, {field.lower(): Setting(read_field(place, field.lower(), value, text=True), place)})


def prewarm_routes(environ: Mapping[str, str]) -> list[str]:
    """The routes of ``PREWARM_ROUTES``, in lower case."""
    return environ.get("PREWARM_ROUTES", "").replace(",", " ").lower().split()


def with_environment_keys(keys: list[Key], environ: Mapping[str, str]) -> list[Key]:
    """``keys`` and those of ``VLLM_API_KEY`` and ``LLMPROXY_ADMIN_KEY``; what the file says of one wins.

    ``VLLM_API_KEY`` is the clients' key and, unless ``LLMPROXY_ADMIN_KEY`` is set, the administrator's too.

    :raises llmproxy.errors.ConfigError: the file has another key of that name.
    """
    client, admin = environ.get("VLLM_API_KEY", "").strip(), environ.get("LLMPROXY_ADMIN_KEY", "").strip()
    # The file may know them by their digests alone.
    known = {key.digest for key in keys}
    found = list(keys)
    taken = {key.name for key in keys}
    for name, secret, variable in (
        ("default", client, "VLLM_API_KEY"),
        ("admin", admin, "LLMPROXY_ADMIN_KEY"),
    ):
        if secret and digest_of(secret) not in known and name in taken:
            raise ConfigError(
                f"environment {variable}: its key is named {name!r}, as another key of the file is;"
                " give that one another name"
            )
    if client and digest_of(client) not in known:
        found.append(Key("default", client, admin=not admin or admin == client))
    if admin and admin != client and digest_of(admin) not in known:
        found.append(Key("admin", admin, admin=True))
    elif admin and digest_of(admin) in known:
        mine = digest_of(admin)
        found = [evolve(key, admin=True) if key.digest == mine else key for key in found]
    return found
