"""Several hosts as one runtime, each loaded when something needs it; and at the start the labels of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
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
) -> HostsRuntime:
    """The runtime over all hosts.

    :param labelled: containers with labels of routes, as they were found before.
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
    return HostsRuntime(engines, compose, found)


def read_all_labels(config: Config, timeout: float) -> list[LabelledContainer]:
    """All containers with a route label on all hosts, for the start of the process.  All are asked at once;
    one that does not answer within ``timeout`` seconds is left out.  Blocks for as long at most.

    :param config: it may be without routes.
    """
    found: dict[str, list[LabelledContainer]] = {}

    def read(name: str, settings: DockerSettings) -> None:
        try:
            found[name] = [evolve(one, host=name) for one in read_labels(settings, timeout)]
        except RuntimeUnavailable as cause:
            _log.info("labels of {host} will be read when it answers: {cause}", host=name, cause=str(cause))

    threads = [
        threading.Thread(target=read, args=each, name=f"llmproxy-labels-{each[0]}", daemon=True)
        for each in engines_of(config).items()
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [one for name in engines_of(config) for one in found.get(name, ())]
