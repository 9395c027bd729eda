"""Backends that are services of a Docker Swarm: how their tasks are reached, and how they end.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from llmproxy.doctor.checks.backends import KnownService
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import Finding, fail, ok, warn

__all__ = ["check_ends", "check_networks"]


def check_networks(known: Sequence[KnownService], facts: Facts) -> Iterator[Finding]:
    """How tasks are reached; what llmproxy makes it makes so that they are."""
    swarm = facts.engine.swarm
    for one in known:
        service = one.service
        if service is None:
            continue
        names = [swarm.overlays.get(id, id) for id in service.networks]
        shared = [] if swarm.joined is None else [id for id in service.networks if id in swarm.joined]
        modes = {mode for _, mode in service.ports}
        published = (
            "Publish its port in host mode, too: docker service update --publish-add"
            f" mode=host,target=PORT {service.name}."
        )
        if shared:
            name = swarm.overlays.get(shared[0], shared[0])
            yield ok("swarm.networks", f"Route {one.route}: its tasks are reached on the network {name}.")
        elif "host" in modes:
            yield ok(
                "swarm.networks", f"Route {one.route}: its tasks are reached by the ports that they publish."
            )
        elif "ingress" in modes:
            yield warn(
                "swarm.networks",
                f"Route {one.route}: its port is published by the routing mesh alone, which leads to any"
                " task: requests are not spread by load, and what leaves cannot be drained.",
                f"Run the proxy on an overlay network of the service. Or: {published}",
            )
        elif swarm.joined is not None:
            joined = f" ({', '.join(names)})" if names else ""
            yield fail(
                "swarm.networks",
                f"Route {one.route}: the proxy's container is on none of its networks{joined}, and it"
                " publishes no port: nothing leads to its tasks.",
                f"docker network connect {names[0] if names else 'NETWORK'} (the proxy's container); the"
                f" network has to be attachable. Or: {published.replace(', too', '')}",
            )
        else:
            joined = f", such as {names[0]}" if names else ""
            yield warn(
                "swarm.networks",
                f"Route {one.route}: it publishes no port, so that only a proxy in a container on one of its"
                f" networks{joined} reaches its tasks on other nodes.",
                published.replace(", too", ""),
            )


def check_ends(one: KnownService) -> Iterator[Finding]:
    """What becomes of answers in flight when Swarm ends a task: a drained node, an update, one task fewer."""
    if one.spec.engine != "vllm" or (one.service is None and one.spec.image is None):
        return
    args = one.service.args if one.service is not None else one.spec.args
    grace = one.service.grace if one.service is not None else one.spec.stop_grace
    match = re.search(r"--shutdown[-_]timeout(?:=|\s+)(\d{1,6})", " ".join(args))
    seconds = int(match[1]) if match else 0
    if not seconds:
        yield warn(
            "swarm.ends",
            f"Route {one.route}: vLLM breaks its answers off when the Swarm ends a task (a node is drained,"
            " the service updated).",
            "Add --shutdown-timeout=60 to its arguments, with which vLLM finishes them first, and a"
            " stop_grace_period (stop_grace) that is longer.",
        )
    elif grace <= seconds:
        yield warn(
            "swarm.ends",
            f"Route {one.route}: a task is killed {grace:g} s after it is to end, and vLLM would take up to"
            f" {seconds} s to finish its answers (--shutdown-timeout).",
            f"Set stop_grace_period (stop_grace where llmproxy makes the service) to more than {seconds} s.",
        )
    else:
        yield ok("swarm.ends", f"Route {one.route}: a task that the Swarm ends finishes its answers first.")
