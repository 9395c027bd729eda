"""All checks, in the order in which they are shown.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from llmproxy.doctor.checks.containers import check_containers, check_images, check_ports, check_programs
from llmproxy.doctor.checks.docker import check_compose, check_engine
from llmproxy.doctor.checks.folders import check_disks, check_folders
from llmproxy.doctor.checks.gpu import check_cuda, check_driver, check_gpu_runtime
from llmproxy.doctor.checks.host import check_clock, check_versions, check_wsl
from llmproxy.doctor.checks.hosts import check_hosts
from llmproxy.doctor.checks.network import check_firewall, check_listening
from llmproxy.doctor.checks.proxy import check_proxy
from llmproxy.doctor.checks.security import (
    check_admin,
    check_age,
    check_containers_rights,
    check_exposure,
    check_files,
    check_rates,
    check_socket,
    check_wire,
)
from llmproxy.doctor.checks.settings import check_key, check_settings
from llmproxy.doctor.checks.swarm import check_swarm
from llmproxy.doctor.facts import Facts
from llmproxy.doctor.findings import SECTIONS, Finding, section

__all__ = ["CHECKS", "SECURITY", "Check", "judge"]

Check = Callable[[Facts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    check_settings,
    check_key,
    check_engine,
    check_hosts,
    check_compose,
    check_swarm,
    check_containers,
    check_ports,
    check_programs,
    check_images,
    check_driver,
    check_gpu_runtime,
    check_cuda,
    check_folders,
    check_disks,
    check_listening,
    check_firewall,
    check_wsl,
    check_clock,
    check_versions,
    check_proxy,
)
"""What ``llmproxy doctor`` looks at.  Another question about an installation is another such tuple for
:func:`judge`, over the same facts; a new section needs a heading in ``findings.SECTIONS``."""

SECURITY: tuple[Check, ...] = (
    check_key,
    check_exposure,
    check_admin,
    check_age,
    check_files,
    check_wire,
    check_rates,
    check_socket,
    check_containers_rights,
)
"""What ``llmproxy doctor --security`` looks at."""


def judge(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """What all checks find, by section."""
    found = [each for check in checks for each in check(facts)]
    order = list(SECTIONS)
    return sorted(found, key=lambda each: order.index(section(each)))
