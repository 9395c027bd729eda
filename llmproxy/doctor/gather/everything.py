"""Gathers all facts; what waits for others waits at the same time."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from attrs import evolve, field, frozen

from llmproxy import __version__
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import LOCAL, DockerSettings
from llmproxy.config.resolve import CommandLine
from llmproxy.doctor.checks.backends import known_backends
from llmproxy.doctor.checks.containers import ALIVE
from llmproxy.doctor.doctor_client import Target, ask
from llmproxy.doctor.facts import DiskFacts, Engine, Facts, HostFacts, Package, ProxyFacts
from llmproxy.doctor.gather.engine import TIMEOUT, gather_engine, inspect_backends
from llmproxy.doctor.gather.host import gather_clock, gather_disk, gather_folders, gather_host, is_busy
from llmproxy.doctor.gather.nvidia import gather_gpu
from llmproxy.doctor.gather.security import gather_security
from llmproxy.doctor.gather.settings import Reading, find_command
from llmproxy.doctor.gather.swarm import gather_swarm, labelled_services
from llmproxy.runtimes.interface import RuntimeUnavailable

__all__ = ["Question", "gather", "gather_proxy", "read_requirement", "secrets_of", "source_path"]


@frozen
class Question:
    """What is to be looked at.

    :ivar shell: the environment.
    :ivar written: what ``./.env`` says.
    :ivar key: for the running proxy.
    """

    target: Target
    key: str | None = field(default=None, repr=False)
    shell: Mapping[str, str] = field(factory=dict, repr=False)
    written: Mapping[str, str] = field(factory=dict, repr=False)
    file: str | None = None
    demo: bool = False


def gather(question: Question) -> Facts:
    """All facts."""
    options = CommandLine(demo=question.demo, python=sys.executable)
    reading = Reading(question.shell, question.written, options, question.file)
    docker = reading.begin()
    with ThreadPoolExecutor(5) as pool:
        asked = pool.submit(gather_engine, docker)
        gpu = pool.submit(gather_gpu)
        host = pool.submit(gather_host, question.target.port)
        proxy = pool.submit(gather_proxy, question.target, question.key)
        compose = pool.submit(find_command, docker, reading.compose)
        others = {name: pool.submit(gather_engine, each) for name, each in reading.hosts.items()}
        engine = asked.result()
        hosts = {name: each.result() for name, each in others.items()}
        settings = reading.finish(_all_labelled(reading, engine, hosts))
        clock = gather_clock()
        facts = Facts(
            __version__,
            settings,
            engine,
            compose.result(),
            _where(host.result(), engine),
            gpu.result(),
            clock,
            proxy.result(),
            (sys.version_info[0], sys.version_info[1]),
            _packages(),
        )
    config = facts.settings.config
    state_dir = "" if config is None else config.state_dir
    looked = gather_security(question.file, state_dir, engine.host)
    return _look_closer(evolve(facts, security=looked, hosts=hosts), docker)


def _where(host: HostFacts, engine: Engine) -> HostFacts:
    return evolve(host, contained=engine.ours) if engine.answers else host


def _all_labelled(reading: Reading, engine: Engine, hosts: Mapping[str, Engine]) -> list[LabelledContainer]:
    found = _labelled(reading.docker, engine)
    if not hosts:
        return found
    found = [evolve(one, host=LOCAL) for one in found]
    for name, other in hosts.items():
        found += [evolve(one, host=name) for one in _labelled(reading.hosts[name], other)]
    return found


def _labelled(docker: DockerSettings, engine: Engine) -> list[LabelledContainer]:
    if not engine.answers:
        return []
    from llmproxy.runtimes.docker_catalogue import read_labelled_containers

    try:
        found = read_labelled_containers(docker, TIMEOUT)
    except RuntimeUnavailable:
        return []
    return [*found, *(labelled_services(docker, TIMEOUT) if engine.swarm.state == "manager" else ())]


def gather_proxy(target: Target, key: str | None, timeout: float = TIMEOUT) -> ProxyFacts:
    """Ask the proxy, if it is one."""
    found = ProxyFacts(target, ask(target, "/healthz", timeout=timeout), keyed=key is not None)
    if not found.answers:
        return found
    return ProxyFacts(
        target,
        found.health,
        ask(target, "/readyz", timeout=timeout + 2),  # it asks the engine, for 5 s at most
        ask(target, "/v1/models", timeout=timeout),
        ask(target, "/api/backends", key, timeout),
        key is not None,
    )


def _look_closer(facts: Facts, docker: DockerSettings) -> Facts:
    """What can only be asked when it is known which backends there are."""
    known = known_backends(facts)
    engine = inspect_backends(
        docker,
        facts.engine,
        [one.spec.container for one in known if one.spec.container is not None],
        [one.image for one in known if one.image is not None],
    )
    config = facts.settings.config
    specs = () if config is None else tuple(config.backends.values())
    facts = evolve(facts, engine=gather_swarm(docker, engine, specs, TIMEOUT))
    known = known_backends(facts)
    if facts.host.contained or not engine.local:
        return evolve(facts, disks=_disks(facts, ()))
    mounts = [mount for one in known for mount in one.mounts if mount.bind]
    paths = {mount.source: source_path(mount.source, facts.compose.file) for mount in mounts}
    looked = gather_folders(paths.values())
    folders = {source: looked[path] for source, path in paths.items()}
    caches = [paths[mount.source] for mount in mounts if not mount.read_only]
    wanted = {
        (each.address, each.port)
        for one in known
        if one.container is None or one.container.state not in ALIVE
        for each in one.published
    }
    if facts.proxy.health.error is not None:
        wanted.add((facts.proxy.target.host, facts.proxy.target.port))
    busy = frozenset(place for place in wanted if _is_address(place[0]) and is_busy(*place))
    return evolve(facts, folders=folders, disks=_disks(facts, caches), busy=busy)


def _is_address(text: str) -> bool:
    return re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", text) is not None


def source_path(source: str, compose_file: str | None) -> str:
    """Where a mounted folder is; Compose takes relative ones from the folder that its file is in."""
    path = os.path.expanduser(source)
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(compose_file or ".env")), path))


def _disks(facts: Facts, caches: Iterable[str]) -> tuple[DiskFacts, ...]:
    wanted: list[tuple[str, str]] = []
    config, engine = facts.settings.config, facts.engine
    if config is not None and config.state_dir:
        wanted.append(("state", config.state_dir))
    if engine.local and not engine.desktop and not facts.host.contained and os.path.isdir(engine.data_root):
        wanted.append(("docker", engine.data_root))
    wanted += [("cache", path) for path in dict.fromkeys(caches)]
    if facts.host.wsl is not None and os.path.isdir("/mnt/c"):
        wanted.append(("windows", "/mnt/c"))
    found = (gather_disk(what, path) for what, path in wanted)
    return tuple(disk for disk in found if disk is not None)


def read_requirement(text: str) -> tuple[str, str] | None:
    """Name and lowest version of a requirement that always holds; None for what an extra or a marker adds.

    >>> read_requirement("Twisted[tls]>=26.10"), read_requirement('uvloop>=0.22; extra == "uvloop"')
    (('Twisted', '26.10'), None)
    """
    match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?>=\s*([0-9][0-9.]*)[^;]*", text.strip())
    return (match[1], match[2]) if match else None


def _packages() -> tuple[Package, ...]:
    try:
        required = importlib.metadata.requires("llmproxy") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from its sources
        return ()
    found = []
    for name, least in filter(None, map(read_requirement, required)):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        found.append(Package(name, installed, least))
    return tuple(found)


_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def secrets_of(question: Question, facts: Facts) -> set[str]:
    """All that must not be shown: keys, and what variables hold whose names say so."""
    environments = [question.shell, question.written]
    environments += [each.environment for each in facts.engine.containers.values()]
    environments += [each.environment for each in facts.compose.services]
    environments += [each.environment for each in facts.engine.swarm.services.values()]
    config = facts.settings.config
    found = {question.key or ""}
    if config is not None:
        environments += [spec.environment for spec in config.backends.values()]
        found |= {key.secret for key in config.keys} | {config.backend_key or ""}
    for environment in environments:
        found |= {value.strip() for name, value in environment.items() if _SECRET.search(name)}
    # A number or a word of three letters is no secret, and hiding it would shred what is told.
    return {secret for secret in found if len(secret) > 3 and not secret.isdecimal()}
