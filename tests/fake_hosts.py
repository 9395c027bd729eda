"""Several hosts in memory, each a world of its own that a test may take away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.hosts import HostsRuntime
from llmproxy.runtimes.interface import Instance, RuntimeUnavailable, Step, unheard
from tests.fakes import FakeController, FakeRuntime

__all__ = ["FakeEngine", "FakeHosts"]


@define(eq=False)
class FakeEngine(FakeRuntime):
    """One host's engine.

    :ivar containers: routes that have a container there; those that were started have one.
    :ivar labelled: containers with labels of routes.
    :ivar looking: what is under way there; None: nothing.
    :ivar doubted: how often somebody asked to see whether it is there.
    """

    settings: DockerSettings = field(factory=DockerSettings)
    containers: set[str] = field(factory=set)
    labelled: list[LabelledContainer] = field(factory=list)
    doubted: int = 0
    looking: Deferred[None] | None = None
    _standing: list[Callable[[str], None]] = field(factory=list)
    _catalogue_changed: list[Callable[[], None]] = field(factory=list)

    def start(self) -> None:
        super().start()
        self.tell_standing()

    def tell_standing(self) -> None:
        for callback in self._standing:
            callback(self.world._away or "")

    def go_away(self, why: str = "its cable is out") -> None:
        """Nobody reaches it; what runs there goes on."""
        self.world.go_away(why)
        self.tell_standing()

    def come_back(self) -> None:
        """It is there again."""
        self.world.come_back()
        self.tell_standing()

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        def there(instance: Instance) -> Instance:
            self.containers.add(spec.route)
            return instance

        return super().ensure_started(spec, step).addCallback(there)

    # What a Docker engine has besides.

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        if self.world._away is not None:
            return fail(RuntimeUnavailable(self.world._away))
        return succeed(list(self.labelled))

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        self._catalogue_changed.append(callback)

    def on_standing(self, callback: Callable[[str], None]) -> None:
        self._standing.append(callback)

    def settled(self) -> Deferred[None]:
        return self.looking or succeed(None)

    def doubt(self) -> None:
        self.doubted += 1

    def has_container(self, route: str) -> bool:
        return route in self.containers


class FakeHosts:
    """Hosts by name, and the runtime over them."""

    def __init__(self, names: Sequence[str] = ("local", "tower", "rack")) -> None:
        self.worlds: dict[str, FakeController] = {}
        self.engines: dict[str, FakeEngine] = {}
        for place, name in enumerate(names):
            world = self.worlds[name] = FakeController()
            # No two runs, and no two addresses, are the same.
            world._count = 100 * place
            self.engines[name] = FakeEngine(world, settings=DockerSettings(f"tcp://{name}:2376", name=name))
        self.runtime = HostsRuntime(self.engines)

    def running(self, route: str) -> list[str]:
        """The hosts on which it runs."""
        return [name for name, world in self.worlds.items() if world.is_running(route)]
