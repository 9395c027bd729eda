"""Backends that are services of a Docker Swarm: whether it can run them.  Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from llmproxy.doctor.checks.backends import KnownService
from llmproxy.doctor.checks.swarm_reach import check_ends, check_networks
from llmproxy.doctor.facts import Facts, SwarmFacts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn

__all__ = ["check_swarm"]

_QUORUM = 3
_OUTSIDE = {
    "inactive": (
        "The Docker engine at {host} belongs to no Swarm, and {routes} are to run in one.",
        "docker swarm init there (docker swarm join on the other machines), or name a manager's engine in"
        " DOCKER_HOST.",
    ),
    "worker": (
        "The Docker engine at {host} is a worker of its Swarm: it knows nothing of services.",
        "Name a manager's engine in DOCKER_HOST, or docker node promote this machine on a manager.",
    ),
    "locked": (
        "The Swarm's manager at {host} is locked since it was started.",
        "docker swarm unlock",
    ),
}
_ELSE = (
    "The Docker engine at {host} does not manage its Swarm at present ({state}).",
    "See docker info and journalctl -u docker there; without most of its managers a Swarm decides nothing.",
)


def check_swarm(facts: Facts) -> Iterator[Finding]:
    """All that concerns it; nothing where no backend runs in one."""
    config, swarm = facts.settings.config, facts.engine.swarm
    specs = [] if config is None else [one for one in config.backends.values() if one.runtime == "swarm"]
    if not specs:
        return
    if not facts.engine.answers:
        yield skipped("swarm.manager", "Docker does not answer, so its Swarm cannot be looked at.")
        return
    if swarm.state != "manager":
        text, fix = _OUTSIDE.get(swarm.state, _ELSE)
        routes = ", ".join(one.route for one in specs)
        said = f" It says: {swarm.error}." if swarm.error else ""
        yield fail(
            "swarm.manager",
            text.format(host=facts.engine.host, routes=routes, state=swarm.state) + said,
            fix,
        )
        return
    if not swarm.nodes:
        yield fail(
            "swarm.manager",
            f"The Swarm's manager does not tell of its nodes: {swarm.error or 'it gives no reason'}.",
            "docker node ls there; without most of its managers a Swarm decides nothing.",
        )
        return
    known = [KnownService(one, swarm.services.get(one.service or "")) for one in specs]
    yield from _managers(swarm)
    yield from _services(known, swarm)
    yield from _resources(known, swarm)
    yield from _images(known, facts)
    yield from check_networks(known, facts)
    for one in known:
        yield from check_ends(one)


def _managers(swarm: SwarmFacts) -> Iterator[Finding]:
    yield ok("swarm.manager", f"The engine manages a Swarm of {_count(len(swarm.nodes), 'node')}.")
    down = [node.name for node in swarm.nodes if node.state != "ready"]
    if down:
        yield warn(
            "swarm.nodes",
            f"The managers hear nothing of {', '.join(down)}: no task is placed there.",
            "Start Docker there, or docker node rm --force what will not come back.",
        )
    managers = swarm.managers or sum(node.manager for node in swarm.nodes)
    if managers < _QUORUM:
        one = "one manager" if managers == 1 else f"{managers} managers"
        lost = "while it is away" if managers == 1 else "while either of them is away"
        machines = "" if len(swarm.nodes) >= _QUORUM else " For that it takes three machines."
        yield warn(
            "swarm.managers",
            f"The Swarm has {one}: {lost} nothing is started, scaled or replaced. What runs goes on"
            " answering.",
            f"Have three: docker node promote.{machines}",
        )


def _services(known: Sequence[KnownService], swarm: SwarmFacts) -> Iterator[Finding]:
    well = []
    for one in known:
        name, service = one.spec.service or "", one.service
        if service is None and one.spec.image is None:
            near = difflib.get_close_matches(name, [*swarm.services], 1) or [
                other for other in swarm.services if other.endswith(f"_{name}")
            ]
            yield fail(
                "swarm.services",
                f"Route {one.route}: there is no service {name!r}, and nothing to make it from.",
                f"Did you mean {near[0]!r}? A stack's name stands before those of its services."
                if near
                else "Deploy it (docker stack deploy, replicas: 0), or set image, and llmproxy makes it.",
            )
        elif service is not None and service.mode != "replicated":
            yield fail(
                "swarm.services",
                f"Route {one.route}: service {name!r} is {service.mode}, so that it cannot be scaled.",
                "Deploy it with deploy: {mode: replicated, replicas: 0}, or take runtime url for it.",
            )
        else:
            well.append(f"{one.route} ({name}{'' if service is not None else ', to be made'})")
    if well:
        yield ok("swarm.services", f"These routes have a service: {', '.join(well)}.")


def _resources(known: Sequence[KnownService], swarm: SwarmFacts) -> Iterator[Finding]:
    """What tasks reserve, and where they may be placed."""
    there = {node.id: node for node in swarm.nodes if node.usable}
    for one in known:
        allowed = swarm.placeable.get(one.route)
        if allowed is not None and not set(allowed) & set(there):
            names = ", ".join(node.name for node in swarm.nodes if node.id in allowed)
            gone = f"of the nodes that its constraints allow ({names}) none takes tasks at present"
            why = gone if allowed else "its constraints allow no node"
            yield fail(
                "swarm.nodes",
                f"Route {one.route}: {why}.",
                "Label a node (docker node update --label-add NAME=VALUE NODE), or correct the constraints.",
            )
            continue
        places = [node for id, node in there.items() if allowed is None or id in allowed]
        for kind, amount in swarm.reserves.get(one.route, {}).items():
            most = max((node.amounts.get(kind, 0) for node in places), default=0)
            where = "no node" if allowed is None else "no node that its constraints allow"
            text = f"Route {one.route}: a task reserves {amount} {kind}, and {where} advertises"
            if not most:
                yield fail(
                    "swarm.resources",
                    f"{text} any: none will ever be placed.",
                    f'On each node with a GPU: "node-generic-resources": ["{kind}=..."] in'
                    " /etc/docker/daemon.json, and restart Docker.",
                )
            elif most < amount:
                yield fail(
                    "swarm.resources",
                    f"{text} more than {most}: none will ever be placed.",
                    "Reserve less (reservations, or the service's generic_resources), or advertise more.",
                )
            else:
                fit = sum(node.amounts.get(kind, 0) // amount for node in places)
                yield ok(
                    "swarm.resources",
                    f"Route {one.route}: {amount} {kind} for a task; {_count(fit, 'task')} would fit if"
                    " nothing else ran.",
                )


def _images(known: Sequence[KnownService], facts: Facts) -> Iterator[Finding]:
    swarm = facts.engine.swarm
    for image in dict.fromkeys(one.image for one in known):
        if image not in swarm.pullable:
            continue
        routes = ", ".join(one.route for one in known if one.image == image)
        found, pullable = facts.engine.images.get(image), swarm.pullable[image]
        here = found is not None and found.present
        shown = image.partition("@")[0]
        if pullable:
            yield ok("swarm.images", f"{shown} ({routes}) can be fetched by the nodes from its registry.")
        elif here and len(swarm.nodes) == 1:
            yield ok("swarm.images", f"{shown} ({routes}) is on the only node.")
        elif pullable is None:
            yield skipped(
                "swarm.images",
                f"Whether the nodes can fetch {shown} ({routes}) could not be learned: its registry does not"
                " answer this manager.",
            )
        elif here:
            yield warn(
                "swarm.images",
                f"{shown} ({routes}) is on this node, and in no registry that this manager may read: tasks on"
                " nodes without it are rejected.",
                "Push it to a registry that all nodes reach, or docker load it on each node.",
            )
        else:
            yield fail(
                "swarm.images",
                f"{shown} ({routes}) is neither on this node nor in a registry that this manager may read.",
                "Correct its name, push it, or docker login here before the service is made"
                " (docker stack deploy --with-registry-auth).",
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
