"""All sources together: defaults, llmproxy.yaml, labels, environment, command line.  Pure.

Later sources win field by field, and for each setting it is kept where its value came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import Factory, evolve, frozen

from llmproxy.config.compose import ComposeService
from llmproxy.config.demo import demo_layer
from llmproxy.config.environment import prewarm_routes, read_environment, with_environment_keys
from llmproxy.config.file import read_file
from llmproxy.config.labels import PREFIX, LabelledContainer, read_labels
from llmproxy.config.layers import Layer, Setting
from llmproxy.config.listen import loopback
from llmproxy.config.model import (
    LOCAL,
    BackendSpec,
    Config,
    Cors,
    DockerSettings,
    Host,
    Key,
    Limits,
    LogSettings,
    Probes,
    Scheduler,
    UsageSettings,
)
from llmproxy.config.mounts import covered, source_of, supposed_mounts
from llmproxy.engines.redaction import flagged_secrets, secret_values
from llmproxy.errors import ConfigError

__all__ = ["CommandLine", "Sources", "read_sources"]

_URL = re.compile(r"[!-\[\]-~]+")
"""ASCII that may stand in a request line, but for the backslash, which some take for a slash."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@frozen
class CommandLine:
    """What the command line says.

    :ivar listen: endpoint strings; they take the place of all others when there are any.
    :ivar demo: serve the built-in demo models, and nothing else.
    :ivar python: the interpreter that demo models run in.
    """

    listen: tuple[str, ...] = ()
    demo: bool = False
    python: str = "python3"


@frozen
class Sources:
    """The texts that settings are read from.

    :ivar file: text of llmproxy.yaml; None when there is none.
    :ivar file_name: what errors call it.
    """

    environ: Mapping[str, str]
    file: str | None = None
    file_name: str = "llmproxy.yaml"
    containers: Sequence[LabelledContainer] = ()
    compose: Sequence[ComposeService] = ()
    options: CommandLine = Factory(CommandLine)


def read_sources(sources: Sources) -> Config:
    """Read every source and put them together.

    :raises llmproxy.errors.ConfigError: a setting is unknown, not allowed, or contradicts another one.
    """
    environ, options = sources.environ, sources.options
    environment = read_environment(environ)
    file = Layer() if sources.file is None else read_file(sources.file, sources.file_name, environ)
    prewarm = prewarm_routes(environ)
    if options.demo:
        # The demo shows the proxy, and so takes over no model that happens to be configured.
        file.backends, environment.backends = {}, {}
        demo = demo_layer(options.python)
        layers = [file, demo, environment]
        prewarm = [route for route in prewarm if route in demo.backends]
    else:
        layers = [file, _labels(sources, _value(file.top, "hosts", {})), environment]
    command_line = Layer()
    if options.listen:
        command_line.top["listen"] = Setting(options.listen, "command line --listen")
    layers.append(command_line)
    keys = with_environment_keys(file.keys, environ)
    config = _put_together(layers, keys, environ, prewarm)
    config = evolve(config, secrets=_secrets(config, sources))
    key_sources = {f"keys.{key.name}": _key_source(key, file) for key in keys}
    return evolve(config, sources={**key_sources, **config.sources})


def _secrets(config: Config, sources: Sources) -> tuple[str, ...]:
    environments = [
        sources.environ,
        *(spec.environment for spec in config.backends.values()),
        *(service.environment for service in sources.compose),
    ]
    found = [key.secret for key in config.keys if key.secret]
    found += [value for environment in environments for value in secret_values(environment)]
    for words in (
        *((*spec.command, *spec.args) for spec in config.backends.values()),
        *(service.args for service in sources.compose),
    ):
        found += flagged_secrets(words)
    return tuple(dict.fromkeys(found))


def _key_source(key: Key, file: Layer) -> str:
    variable = "LLMPROXY_ADMIN_KEY" if key.name == "admin" else "VLLM_API_KEY"
    return file.key_sources.get(key.name, f"environment {variable}")


def _labels(sources: Sources, hosts: Mapping[str, Host]) -> Layer:
    layer = Layer()
    existing = set()
    seen: dict[tuple[str, str], str] = {}
    for container in sources.containers:
        if container.kind == "service":
            read_labels(layer, container.name, container.labels, kind="service")
            continue
        if container.host not in ("", LOCAL, *hosts):
            # Of a host that the settings have no more.
            continue
        twin = (container.name, container.labels.get(f"{PREFIX}route", "").lower())
        if twin in seen and seen[twin] != container.host:
            # The same on several hosts: it may run on any of them, and the first one's labels hold.
            layer.backends[twin[1]].pop("host", None)
            continue
        seen[twin] = container.host
        if container.host in ("", LOCAL):
            existing.add(container.name)
        read_labels(layer, container.name, container.labels, host=container.host)
    for service in sources.compose:
        if not any(label.startswith(PREFIX) for label in service.labels):
            continue
        if service.container_name is None:
            raise ConfigError(
                f"compose service {service.name}: it has llmproxy labels and no container_name, by which"
                " llmproxy finds its container"
            )
        if service.container_name not in existing:
            read_labels(layer, service.container_name, service.labels, kind="compose service")
    return layer


def _put_together(
    layers: Sequence[Layer], keys: Sequence[Key], environ: Mapping[str, str], prewarm: Sequence[str]
) -> Config:
    top: dict[str, Setting] = {}
    for layer in layers:
        top.update(layer.top)
    sources = {name: setting.source for name, setting in top.items()}
    docker = _docker(top, environ)
    hosts: Mapping[str, Host] = _value(top, "hosts", {})
    _check_hosts(hosts, docker, environ)
    backends = {}
    routes = {route: None for layer in layers for route in layer.backends}
    for route in prewarm:
        if route not in routes:
            known = ", ".join(routes) or "none"
            raise ConfigError(f"environment PREWARM_ROUTES: there is no route {route!r}; routes: {known}")
    for route in routes:
        settings = _settings(route, layers, prewarm)
        backends[route] = _backend(route, settings)
        _check_mounts(route, settings, layers[0], docker)
        _check_host(route, settings, hosts)
        sources.update({f"backends.{route}.{name}": setting.source for name, setting in settings.items()})
    _check_together(backends, sources)
    listen = tuple(_value(top, "listen", Config().listen))
    default_route = _value(top, "default_route")
    notes = (*_notes(keys), *_open_engines(hosts), *_unknown_routes(backends, default_route))
    if not keys:
        listen, note = loopback(listen)
        notes = (note, *notes)
    return Config(
        listen=listen,
        docker=docker,
        hosts=hosts,
        gpus=_value(top, "gpus", {}),
        host_memory_for_sleep=_value(top, "host_memory_for_sleep"),
        scheduler=Scheduler(**_section(top, "scheduler")),
        limits=Limits(**_section(top, "limits")),
        cors=Cors(**_section(top, "cors")),
        probes=Probes(**_section(top, "probes")),
        log=LogSettings(**_section(top, "log")),
        usage=UsageSettings(**_section(top, "usage")),
        default_route=default_route,
        drain=_value(top, "drain", Config().drain),
        stop_backends_on_exit=_value(top, "stop_backends_on_exit", False),
        metrics_access=_value(top, "metrics_access", Config().metrics_access),
        trusted_proxies=_value(top, "trusted_proxies", ()),
        allowed_hosts=_value(top, "allowed_hosts", ()),
        state_dir=_value(top, "state_dir") or _state_dir(environ),
        backends=backends,
        keys=tuple(keys),
        backend_key=_backend_key(environ),
        sources=sources,
        notes=notes,
    )


def _docker(top: Mapping[str, Setting], environ: Mapping[str, str]) -> DockerSettings:
    given = _section(top, "docker")
    return DockerSettings(**{"allowed_mounts": supposed_mounts(environ), **given})


def _check_mounts(route: str, settings: Mapping[str, Setting], file: Layer, docker: DockerSettings) -> None:
    """What the file gives a backend is the operator's word; labels and variables stay inside the list."""
    setting = settings.get("volumes")
    if setting is None or "mounts" in docker.allow_unsafe:
        return
    if setting in (file.backends.get(route, {}).get("volumes"), file.defaults.get("volumes")):
        return
    for volume in setting.value:
        folder = source_of(volume)
        if folder is not None and not covered(folder, docker.allowed_mounts):
            raise ConfigError(
                f"backend {route}: volumes has {folder}, which is not in docker.allowed_mounts; add it there"
                f" (LLMPROXY_ALLOWED_MOUNTS), or give the volume in llmproxy.yaml ({setting.source})"
            )


def _check_hosts(hosts: Mapping[str, Host], docker: DockerSettings, environ: Mapping[str, str]) -> None:
    """Seen twice, each container of an engine would be taken for another one's double, and be stopped."""
    here = docker.host or environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    for name, host in hosts.items():
        if host.docker == here:
            raise ConfigError(
                f"hosts.{name}: {here} is the engine of the docker section, which is {LOCAL} already"
            )


def _check_host(route: str, settings: Mapping[str, Setting], hosts: Mapping[str, Host]) -> None:
    setting = settings.get("host")
    if setting is None or setting.value == LOCAL or setting.value in hosts:
        return
    raise ConfigError(
        f"backend {route}: host is {setting.value!r}, and there is no such host;"
        f" hosts: {', '.join((LOCAL, *hosts))} ({setting.source})"
    )


def _open_engines(hosts: Mapping[str, Host]) -> tuple[str, ...]:
    return tuple(
        f"host {name}: {host.docker} has no tls: whoever reaches that port is root on that machine"
        for name, host in hosts.items()
        if host.docker.startswith("tcp:") and host.tls is None
    )


def _backend_key(environ: Mapping[str, str]) -> str | None:
    key = environ.get("VLLM_API_KEY", "").strip()
    if _CONTROL.search(key):
        raise ConfigError("environment VLLM_API_KEY: it has a control character, such as a line end, in it")
    return key or None


def _settings(route: str, layers: Sequence[Layer], prewarm: Sequence[str]) -> dict[str, Setting]:
    """The settings of one route, without those defaults that its runtime does not know."""
    settings: dict[str, Setting] = {}
    if route in prewarm:
        # Below the environment's own layer, where MAP__<route>__prewarm says it of this very route.
        prewarmed = Layer(defaults={"prewarm": Setting(True, "environment PREWARM_ROUTES")})
        layers = (*layers[:-2], prewarmed, *layers[-2:])
    meant: set[str] = set()
    for layer in layers:
        own = layer.backends.get(route, {})
        settings.update({**layer.defaults, **own})
        meant.update(own)
    runtime = settings["runtime"].value if "runtime" in settings else "docker"
    return {
        name: setting
        for name, setting in settings.items()
        if name in meant or runtime in _WHERE.get(name, (runtime,))
    }


def _value(top: Mapping[str, Setting], name: str, default: Any = None) -> Any:
    return top[name].value if name in top else default


def _section(top: Mapping[str, Setting], section: str) -> dict[str, Any]:
    prefix = section + "."
    return {
        name.removeprefix(prefix): setting.value for name, setting in top.items() if name.startswith(prefix)
    }


def _state_dir(environ: Mapping[str, str]) -> str:
    """systemd's ``STATE_DIRECTORY``, else the user's state folder (XDG base directories)."""
    systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if systemd:
        return systemd
    # Without HOME the ~ is left to the loader: who we are is not for a pure function to ask.
    base = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME') or '~'}/.local/state"
    return f"{base}/llmproxy"


# -- backends ---------------------------------------------------------------------------------------

_WHERE: Mapping[str, tuple[str, ...]] = {
    "container": ("docker",),
    "host": ("docker",),
    "image": ("docker", "swarm"),
    "args": ("docker", "swarm"),
    "volumes": ("docker", "swarm"),
    "command": ("process",),
    "cwd": ("process",),
    "url": ("url",),
    "service": ("swarm",),
    "replicas": ("swarm",),
    "reservations": ("swarm",),
    "constraints": ("swarm",),
    "networks": ("swarm",),
    "environment": ("docker", "process", "swarm"),
    "port": ("docker", "process", "swarm"),
    "gpu_memory": ("docker", "process"),
    "gpus": ("docker", "process"),
}
"""The runtimes that understand a field, where not all of them do."""


def _backend(route: str, settings: Mapping[str, Setting]) -> BackendSpec:
    def fault(message: str, name: str | None = None) -> ConfigError:
        setting = settings.get(name) if name else next(iter(settings.values()), None)
        source = f" ({setting.source})" if setting is not None else ""
        return ConfigError(f"backend {route}: {message}{source}")

    spec = BackendSpec(route=route, **{name: setting.value for name, setting in settings.items()})
    for name, runtimes in _WHERE.items():
        if name in settings and spec.runtime not in runtimes:
            known = " or ".join(runtimes)
            hint = "" if "runtime" in settings else f"; say runtime: {runtimes[0]}"
            raise fault(f"{name} is for runtime {known}, and its runtime is {spec.runtime}{hint}", name)
    if spec.engine == "generic" and spec.sleep in ("1", "2"):
        raise fault("an engine that is generic cannot sleep; leave sleep away", "sleep")
    if spec.runtime == "docker":
        if spec.container is None and spec.image is None:
            raise fault("a docker backend needs container or image")
        if spec.container is None:
            spec = evolve(spec, container=f"llmproxy-{route}")
    elif spec.runtime == "swarm":
        if spec.service is None and spec.image is None:
            raise fault("a swarm backend needs service or image")
        if spec.service is None:
            spec = evolve(spec, service=f"llmproxy-{route}")
        if spec.sleep in ("1", "2"):
            raise fault("a swarm backend is never put to sleep; leave sleep away", "sleep")
        # Swarm does the fitting, and a sleeper would keep its node's reservation.
        spec = evolve(spec, sleep="off")
        if spec.replicas.min:
            spec = evolve(spec, idle=0.0, prewarm=True)
    elif spec.runtime == "process":
        if not spec.command:
            raise fault("a process backend needs command")
    else:
        if spec.url is None:
            raise fault("a url backend needs url")
        _check_url(spec.url, fault)
        # It runs elsewhere: there is nothing to reap.
        spec = evolve(spec, idle=0.0)
    if spec.heartbeat_every < 0.1:
        raise fault("heartbeat_every must be at least 0.1 s", "heartbeat_every")
    if spec.start_timeout <= 0:
        raise fault("start_timeout must be more than 0", "start_timeout")
    return spec


def _check_url(url: str, fault: Any) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # It stands before the target of every request; urlsplit takes line ends away in silence.
    if not usable or not _URL.fullmatch(url) or parts.query or parts.fragment or parts.username:
        raise fault("url must be http://host[:port][/path] or https://..., without spaces", "url")


def _check_together(backends: Mapping[str, BackendSpec], sources: Mapping[str, str]) -> None:
    containers: dict[str, list[BackendSpec]] = {}
    models: dict[str, str] = {}
    for route, spec in backends.items():
        if spec.container is not None:
            others = containers.setdefault(spec.container, [])
            for one in others:
                # On two hosts they are two.
                if one.host is None or spec.host is None or one.host == spec.host:
                    raise ConfigError(
                        f"backends {one.route} and {route} have the same container {spec.container!r}"
                        f" ({sources.get(f'backends.{route}.container', 'default')})"
                    )
            others.append(spec)
        for name in (*(spec.models or ()), *spec.aliases):
            other = models.setdefault(name, route)
            if other != route:
                raise ConfigError(f"backends {other} and {route} both serve a model named {name!r}")


# -- safety and remarks -----------------------------------------------------------------------------


def _notes(keys: Sequence[Key]) -> tuple[str, ...]:
    notes = [
        f"key {key.name}: its secret is one that everybody tries; mint one: openssl rand -hex 32"
        for key in keys
        if key.secret.lower() in ("changeme", "change-me", "secret", "test")
    ]
    if keys and not any(key.admin for key in keys):
        notes.append("no key is an admin key: /api and /ui are closed to everybody")
    return tuple(notes)


def _unknown_routes(backends: Mapping[str, BackendSpec], default_route: str | None) -> tuple[str, ...]:
    # A route may come with a container that is made later, so that this is no mistake by itself.
    named = [("default_route", default_route)] if default_route is not None else []
    named += [
        (f"backend {name}: fallback", route) for name, spec in backends.items() for route in spec.fallback
    ]
    return tuple(
        f"{where} is {route!r}, and there is no such route" for where, route in named if route not in backends
    )
