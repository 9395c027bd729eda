"""The backends: their containers, names, ports and images.  Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from llmproxy.doctor.checks.backends import Known, known_backends
from llmproxy.doctor.facts import Container, Facts, Published
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn
from llmproxy.engines.vllm import read_flags

__all__ = ["check_containers", "check_images", "check_ports", "check_programs"]

ALL = ("0.0.0.0", "::", "")
ALIVE = ("running", "paused", "restarting")


def check_containers(facts: Facts) -> Iterator[Finding]:
    """Whether each route has its container, or can have one made."""
    known = known_backends(facts)
    if not known:
        return
    if not facts.engine.answers:
        yield skipped("backends.containers", "Docker does not answer, so its containers cannot be looked at.")
        return
    well = []
    for one in known:
        found = _missing(one, facts)
        if found is not None:
            yield found
            continue
        state = one.container.state if one.container is not None else "to be made"
        well.append(f"{one.route} ({one.spec.container}, {state})")
        if one.container is not None:
            yield from _judge(one, one.container)
    if well:
        yield ok("backends.containers", f"These routes have a container: {', '.join(well)}.")


def _missing(one: Known, facts: Facts) -> Finding | None:
    if one.container is not None or one.service is not None or one.spec.image is not None:
        return None
    wanted = one.spec.container or ""
    text = f"Route {one.route}: there is no container {wanted!r}, and nothing to make it from."
    twins = [
        each
        for each in facts.engine.containers.values()
        if wanted in (each.service, f"{each.project}-{each.service}")
    ]
    near = [each.name for each in twins] or difflib.get_close_matches(wanted, [*facts.engine.containers], 1)
    unnamed = [
        each for each in facts.compose.services if each.name == wanted and each.container_name != wanted
    ]
    if unnamed:
        fix = f"Give the compose service {wanted} its name: container_name: {wanted}."
    elif near:
        fix = (
            f"Did you mean {near[0]!r}? Correct MAP__{one.route}__container (or container in llmproxy.yaml)."
        )
    else:
        fix = "Create it (docker compose up --no-start), name the compose file in COMPOSE_FILE, or set image."
    return fail("backends.containers", text, fix)


def _judge(one: Known, container: Container) -> Iterator[Finding]:
    if container.state == "paused":
        yield warn(
            "backends.containers",
            f"{container.name} is paused: it will not answer.",
            f"docker unpause {container.name}",
        )
    elif container.state in ("dead", "removing"):
        text = f"{container.name} is {container.state}: it cannot be started."
        yield fail(
            "backends.containers", text, f"docker rm -f {container.name}; the next request makes it anew."
        )
    elif container.state == "restarting":
        text = f"{container.name} is started again and again by Docker: it ends each time."
        yield fail("backends.containers", text, f"docker logs {container.name} tells why; set restart: no.")
    if container.restart not in ("", "no"):
        yield warn(
            "backends.restart",
            f"{container.name} has the restart policy {container.restart!r}: Docker starts"
            " it behind the proxy's back.",
            f"docker update --restart=no {container.name}; and restart: no in the compose file.",
        )


def check_ports(facts: Facts) -> Iterator[Finding]:
    """Ports that are taken, clash, or are not those that the server listens on."""
    known = known_backends(facts)
    if not known:
        return
    found = [
        *_clashes(known, facts),
        *(one for each in known for one in _taken(each, facts)),
        *(one for each in known for one in _mistaken(each)),
    ]
    yield from found
    if not found:
        ports = sorted({port.port for each in known for port in each.published})
        told = f" ({', '.join(map(str, ports))})" if ports else ""
        if facts.host.contained or not facts.engine.answers or not facts.engine.local:
            text = f"The backends' ports{told} do not clash; who else has them is not to be seen from here."
        else:
            text = f"The backends' ports on this host{told} are free, or their own."
        yield ok("backends.ports", text)


def _overlap(one: Published, other: Published) -> bool:
    return one.port == other.port and (
        one.address == other.address or one.address in ALL or other.address in ALL
    )


def _clashes(known: Sequence[Known], facts: Facts) -> Iterator[Finding]:
    for number, one in enumerate(known):
        for other in known[number + 1 :]:
            shared = sorted({a.port for a in one.published for b in other.published if _overlap(a, b)})
            if shared:
                yield fail(
                    "backends.ports",
                    f"Routes {one.route} and {other.route} both publish port {shared[0]}:"
                    " only one of them can run.",
                    "Give each its own host port (ports: in the compose file); --port and"
                    " the route's port go with it.",
                )
        mine = facts.proxy.target.port
        if any(each.port == mine for each in one.published):
            yield fail(
                "backends.ports",
                f"Route {one.route} publishes port {mine}, which is the proxy's own.",
                "Give it another host port (ports: in the compose file).",
            )


def _taken(one: Known, facts: Facts) -> Iterator[Finding]:
    if one.container is not None and one.container.state in ALIVE:
        return  # it has them itself
    for mine in one.published:
        owners = [
            each.name
            for each in facts.engine.containers.values()
            if each.name != one.spec.container
            and each.state in ALIVE
            and any(_overlap(mine, theirs) for theirs in each.published)
        ]
        if owners:
            yield fail(
                "backends.ports",
                f"Port {mine.port} of route {one.route} is taken by the container {owners[0]}.",
                f"docker stop {owners[0]}, or give one of them another host port.",
            )
        elif (mine.address, mine.port) in facts.busy:
            yield fail(
                "backends.ports",
                f"Port {mine.port} of route {one.route} is taken by another program of this host.",
                f"See which (sudo ss -ltnp 'sport = :{mine.port}') and end it, or use another host port.",
            )


def _mistaken(one: Known) -> Iterator[Finding]:
    """The port that the route names, that the server listens on, and that is published."""
    listens = read_flags(one.args, one.environment).port if one.spec.engine == "vllm" else None
    if one.spec.port is not None and listens is not None and one.spec.port != listens:
        yield fail(
            "backends.ports",
            f"Route {one.route} looks for port {one.spec.port}, and its server listens on"
            f" {listens} (--port).",
            f"Make them the same: --port in its command, and llmproxy.port (or MAP__{one.route}__port).",
        )
        return
    port = one.spec.port or listens
    if port is not None and one.published and all(each.inner != port for each in one.published):
        inner = one.published[0].inner
        yield warn(
            "backends.ports",
            f"Route {one.route} listens on {port}, and what is published is its port {inner}.",
            f"Correct the right-hand side of ports: in the compose file ({one.published[0].port}:{port}).",
        )


def check_images(facts: Facts) -> Iterator[Finding]:
    """What containers that have yet to be made are made from, and vLLM's versions."""
    known = known_backends(facts)
    for name in dict.fromkeys(one.image for one in known if one.container is None):
        image = facts.engine.images.get(name or "")
        if image is not None and not image.present:
            routes = ", ".join(one.route for one in known if one.image == name)
            yield warn(
                "backends.images",
                f"The image {name} ({routes}) is not here: the first start has to download it.",
                f"docker pull {name} beforehand; vLLM's are 10 GB and more.",
            )
    for name in dict.fromkeys(one.image for one in known if one.image and "vllm" in one.image):
        routes = ", ".join(one.route for one in known if one.image == name)
        tag = (name or "").rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@" in (name or "") or tag not in ("", "latest", "nightly"):
            yield ok("versions.vllm", f"vLLM: {name} ({routes}).")
        else:
            yield warn(
                "versions.vllm",
                f"vLLM: {name} ({routes}) is no fixed version: it is another one after the next pull.",
                "Name a version, such as vllm/vllm-openai:v0.11.0 (VLLM_IMAGE in .env).",
            )


def check_programs(facts: Facts) -> Iterator[Finding]:
    """Backends that are child processes."""
    config, missing = facts.settings.config, facts.settings.missing_commands
    for route, program in missing.items():
        yield fail(
            "backends.programs",
            f"Route {route}: its program {program!r} is not there.",
            f"Install it, or correct command in llmproxy.yaml (backends.{route}.command).",
        )
    mine = (
        [] if config is None else [name for name, one in config.backends.items() if one.runtime == "process"]
    )
    if mine and not missing:
        yield ok("backends.programs", f"The programs of {', '.join(mine)} are there.")
