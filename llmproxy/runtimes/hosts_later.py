"""Several hosts as one runtime, each loaded when something needs it; and at the start the labels of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve
from twisted.logger import Logger

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import LOCAL, Config, DockerSettings
from llmproxy.runtimes.docker_later import DockerWhenNeeded, read_labels
from llmproxy.runtimes.hosts import HostsRuntime
from llmproxy.runtimes.interface import RuntimeUnavailable

if TYPE_CHECKING:
    from llmproxy.runtimes.docker import DockerReactor

__all__ = ["hosts_runtime", "read_all_labels"]

_log = Logger()


def engines_of(config: Config) -> dict[str, DockerSettings]:
    """How each host's engine is reached, the local one first."""
    local = evolve(config.docker, name=LOCAL)
    return {LOCAL: local, **{name: config.engine_of(name) for name in config.hosts}}


def hosts_runtime(
    reactor: DockerReactor,
    config: Config,
    compose: Callable[[], Sequence[ComposeService]],
    labelled: Sequence[LabelledContainer],
    away: Mapping[str, str],
) -> HostsRuntime:
    """The runtime over all hosts.

    :param labelled: containers with labels of routes, as they were found before.
    :param away: hosts that did not answer then, and why.
    """
    engines = {
        name: DockerWhenNeeded(
            reactor,
            settings,
            compose=compose if name == LOCAL else lambda: (),
            backend_key=config.backend_key,
        )
        for name, settings in engines_of(config).items()
    }
    found = {name: [one for one in labelled if one.host == name] for name in engines}
    return HostsRuntime(engines, compose, found, dict(away))


def read_all_labels(config: Config, timeout: float) -> tuple[list[LabelledContainer], dict[str, str]]:
    """All containers with a route label on all hosts, for the start of the process; and the hosts that do not
    answer within ``timeout`` seconds, with the reason.  All are asked at once.  Blocks for as long at most.

    :param config: it may be without routes.
    """
    found: dict[str, list[LabelledContainer]] = {}
    away: dict[str, str] = {}

    def read(name: str, settings: DockerSettings) -> None:
        try:
            found[name] = [evolve(one, host=name) for one in read_labels(settings, timeout)]
        except RuntimeUnavailable as cause:
            away[name] = str(cause)

    engines = engines_of(config)
    threads = {
        name: threading.Thread(target=read, args=(name, each), name=f"llmproxy-labels-{name}", daemon=True)
        for name, each in engines.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    told = {
        name: away.get(name, f"it did not answer within {timeout:g} s")
        for name in engines
        if name not in found
    }
    for name, reason in told.items():
        _log.info("labels of {host} will be read when it answers: {reason}", host=name, reason=reason)
    return [one for name in engines for one in found.get(name, ())], told
