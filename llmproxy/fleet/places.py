"""On which hosts the backends of a fleet are, and which GPUs they mean there.

A backend counts the GPUs of the machine that it is on.  Those of this machine keep their names; those of
another host have it before them: ``tower/0``.  So claims of different hosts never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from llmproxy.config.model import LOCAL, BackendSpec, Config, Host
from llmproxy.engines.needs import Needs
from llmproxy.runtimes.interface import HostState, IHosts, IRuntime
from llmproxy.scheduling.claims import Room
from llmproxy.scheduling.outlook import Model, Place

__all__ = ["Placed", "Places", "host_of_gpu", "is_here"]


class Placed(Protocol):
    """What is asked of a backend here."""

    @property
    def spec(self) -> BackendSpec: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def runtime(self) -> IRuntime: ...


class Places:
    """The hosts of one fleet.

    :param hosts: the runtime that has several; None: all that there is is this machine.
    :ivar config: what the operator says of their GPUs.
    """

    def __init__(self, hosts: IHosts | None, config: Config) -> None:
        self.config = config
        self.hosts = hosts

    def _concerns(self, backend: Placed) -> bool:
        runtime: object = backend.runtime
        return self.hosts is not None and runtime is self.hosts

    def states(self) -> tuple[HostState, ...]:
        """All hosts; none where there is this machine alone."""
        return () if self.hosts is None else tuple(self.hosts.hosts())

    def at(self, backend: Placed) -> str:
        """The host that it is on; empty: on none, or there is this machine alone."""
        return self.hosts.host_of(backend.spec) if self.hosts is not None and self._concerns(backend) else ""

    def is_away(self, backend: Placed) -> bool:
        """Its host is not there."""
        at = self.at(backend)
        return self.hosts is not None and bool(at) and self.hosts.is_away(at)

    def put(self, backend: Placed, host: str) -> None:
        """It is to be started there."""
        if self.hosts is not None:
            self.hosts.place(backend.spec, host)

    def end_doubles(self) -> None:
        """Have what runs on a second host end there."""
        if self.hosts is not None:
            self.hosts.end_doubles()

    def gpus(self, backend: Placed) -> tuple[str, ...]:
        """Its GPUs, where it is; where it is not, those of the first host that it may be on."""
        gpus = backend.needs.gpus
        if self.hosts is None or not gpus or not self._concerns(backend):
            return gpus
        return _named(self.at(backend) or next(iter(self.hosts.places(backend.spec)), LOCAL), gpus)

    def everywhere(self, backend: Placed) -> set[str]:
        """Its GPUs on all hosts that count for it at present."""
        gpus = backend.needs.gpus
        found = set(self.gpus(backend))
        if self.hosts is not None and gpus and self._concerns(backend):
            doubles = [host for route, host in self.hosts.doubles() if route == backend.spec.route]
            for host in (*self.hosts.places(backend.spec), *doubles):
                found.update(_named(host, gpus))
        return found

    def offered(self, backend: Placed, rooms: Mapping[str, Room]) -> tuple[Place, ...] | None:
        """The hosts that it may start on, with its claim there; None: it is no matter of hosts."""
        if self.hosts is None or not self._concerns(backend):
            return None
        return tuple(
            self._offer(host, backend.needs, rooms, there=there)
            for host, there in self.hosts.places(backend.spec).items()
        )

    def _offer(self, host: str, needs: Needs, rooms: Mapping[str, Room], *, there: bool) -> Place:
        known = self.config.hosts.get(host, Host("")).gpus
        # One that is named otherwise than by its number cannot be looked up.
        lacks = (
            () if known is None else tuple(gpu for gpu in needs.gpus if gpu.isdecimal() and gpu not in known)
        )
        claim = {gpu: rooms[gpu].units(needs.memory) for gpu in _named(host, needs.gpus)}
        return Place(host, claim, there, lacks)

    def doubles(self, backends: Mapping[str, Placed], rooms: Mapping[str, Room]) -> list[Model]:
        """What is being ended on a host, since it runs on another one: it has its memory until then."""
        if self.hosts is None:
            return []
        return [
            Model(
                f"{route} on {host}",
                "leaving",
                held={
                    gpu: rooms[gpu].units(backends[route].needs.memory)
                    for gpu in _named(host, backends[route].needs.gpus)
                    if gpu in rooms
                },
                at=host,
            )
            for route, host in self.hosts.doubles()
            if route in backends
        ]


def is_here(gpu: str) -> bool:
    """It is one of this machine, which can be measured."""
    return "/" not in gpu


def host_of_gpu(gpu: str) -> str:
    """The host that it is of."""
    return gpu.partition("/")[0] if not is_here(gpu) else LOCAL


def _named(host: str, gpus: Iterable[str]) -> tuple[str, ...]:
    return tuple(gpus) if host in ("", LOCAL) else tuple(f"{host}/{gpu}" for gpu in gpus)
