"""The house rules that a machine can hold: imports go downwards, and what is pure stays pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "llmproxy"

# From the ground up; a module imports from its own floor and from those below it.
FLOORS = (
    ("errors", "__init__", "files", "garbage", "reactors", "systemd", "words"),
    ("engines", "http"),
    ("config",),
    ("keys",),
    ("scheduling",),
    ("runtimes.interface",),
    ("runtimes", "relay"),
    ("backend",),
    ("fleet",),
    ("usage",),
    ("web",),
    ("listening", "upgrade.inherited"),
    ("observe",),
    ("service",),
    ("upgrade",),
    ("doctor",),
    ("importing", "seeding"),
    ("cli", "demo", "tap"),
)

PURE = (
    "errors",
    "config",
    "engines",
    "http",
    "importing",
    "keys.buckets",
    "keys.guard",
    "keys.limits",
    "observe.lines",
    "scheduling",
    "seeding.hearing",
    "seeding.order",
    "seeding.places",
    "listening.endpoints",
    "runtimes.hosts_route",
    "runtimes.interface",
    "runtimes.swarm_arrival",
    "runtimes.swarm_body",
    "runtimes.swarm_deaths",
    "runtimes.swarm_events",
    "runtimes.swarm_frames",
    "runtimes.swarm_labels",
    "runtimes.swarm_reach",
    "runtimes.swarm_room",
    "runtimes.swarm_state",
    "runtimes.swarm_task",
    "backend.admission",
    "backend.diary",
    "backend.effects",
    "backend.failures",
    "backend.identity",
    "backend.lifecycle",
    "backend.lingering",
    "backend.machine",
    "backend.present",
    "backend.progress",
    "backend.wishes",
    "cli.columns",
    "cli.keys_view",
    "cli.sharing_view",
    "cli.tasks_view",
    "cli.top.picture",
    "cli.usage_view",
    "cli.view",
    "doctor.checks",
    "doctor.facts",
    "doctor.findings",
    "doctor.judge",
    "doctor.numbers",
    "fleet.crowd",
    "fleet.names",
    "fleet.places",
    "fleet.telling",
    "fleet.telling_tasks",
    "upgrade.handed",
    "usage.ledger",
    "usage.occupancy",
    "usage.rates",
    "usage.records",
    "web.crosssite",
    "web.family",
    "web.h2.floods",
    "web.h2.heads",
    "web.heads",
    "web.hints",
    "web.histogram",
    "web.tracing",
    "web.ui.cookies",
    "web.ui.sessions",
    "web.unread",
    "words",
)
# Reads the files that the others are given as texts; prints.
NOT_PURE = ("config.loader", "config.schema")
IMPURE_IMPORTS = (
    "asyncio",
    "docker",
    "os",
    "random",
    "requests",
    "socket",
    "subprocess",
    "threading",
    "time",
    "twisted.application",
    "twisted.internet.reactor",
    "twisted.internet.task",
    "twisted.web",
)


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths if path.name != "__main__")


def imports(module: str) -> set[str]:
    """Everything that a module imports, as dotted names; what is imported for types alone counts too."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def floor(module: str) -> int:
    fitting = [
        (len(name), number)
        for number, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fitting, f"{module} stands on no floor"
    return max(fitting)[1]


@pytest.mark.parametrize("module", modules())
def test_imports_go_downwards(module: str) -> None:
    """No module imports from a floor above its own."""
    known = set(modules())
    for name in imports(module):
        target = name.removeprefix("llmproxy.")
        if name.startswith("llmproxy.") and target in known:
            assert floor(target) <= floor(module), f"{module} imports {target}"


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith(PURE) and m not in NOT_PURE])
def test_what_is_pure_stays_pure(module: str) -> None:
    """No reactor, no socket, no clock, no file."""
    for name in imports(module):
        assert not any(name == bad or name.startswith(bad + ".") for bad in IMPURE_IMPORTS), name


def test_only_tap_uses_the_global_reactor() -> None:
    """Everywhere else the reactor is an argument; a program of its own (the demo) has its own."""
    users = {module for module in modules() if "twisted.internet.reactor" in imports(module)}
    assert users <= {"tap"}
    source = (ROOT / "demo" / "__main__.py").read_text()
    assert "reactor" in source
