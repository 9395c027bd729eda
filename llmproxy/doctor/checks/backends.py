"""What is known of each backend that Docker runs, whether its container or service is there or not.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import evolve, frozen

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import LOCAL, BackendSpec
from llmproxy.doctor.facts import Container, Facts, Mount, Published, SwarmService

__all__ = [
    "Known",
    "KnownService",
    "known_backends",
    "read_mount",
    "read_published",
    "wants_docker",
    "wants_gpu",
]


@frozen
class Known:
    """One backend.

    :ivar container: that it has.
    :ivar service: of the compose file, which makes it.
    """

    spec: BackendSpec
    container: Container | None = None
    service: ComposeService | None = None

    @property
    def route(self) -> str:
        """Its name."""
        return self.spec.route

    @property
    def image(self) -> str | None:
        """What its next container is made from, or its present one was."""
        service = self.service.image if self.service is not None else None
        container = self.container.image if self.container is not None else None
        return container or service or self.spec.image

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What it sees of the host."""
        texts = self.service.volumes if self.service is not None else self.spec.volumes
        written = [mount for text in texts if (mount := read_mount(text)) is not None]
        if self.container is None:
            return tuple(written)
        # Docker Desktop tells a place within its own machine for a folder of ours.
        named = {mount.target: mount.source for mount in written if mount.bind}
        return tuple(
            evolve(mount, source=named.get(mount.target, mount.source)) for mount in self.container.mounts
        )

    @property
    def published(self) -> tuple[Published, ...]:
        """Its ports on the host, as far as they are TCP."""
        if self.container is not None:
            return self.container.published
        texts = self.service.ports if self.service is not None else ()
        return tuple(one for text in texts if (one := read_published(text)) is not None)

    @property
    def args(self) -> tuple[str, ...]:
        """Its command line."""
        if self.container is not None:
            return self.container.args
        return tuple(self.service.args) if self.service is not None else self.spec.args

    @property
    def environment(self) -> Mapping[str, str]:
        """What its command line may refer to."""
        if self.container is not None:
            return self.container.environment
        return self.service.environment if self.service is not None else self.spec.environment

    @property
    def wants_gpu(self) -> bool:
        """Whether it cannot do without a GPU, as far as that is told."""
        if self.container is not None:
            return bool(self.container.gpu)
        if self.service is not None:
            asked = self.service.devices
            return asked is not None and bool(asked.ids or asked.count)
        return self.spec.engine == "vllm" and self.spec.image is not None and self.spec.gpus != ()


@frozen
class KnownService:
    """One that is a service of a Swarm.

    :ivar service: None: it is not there (yet).
    """

    spec: BackendSpec
    service: SwarmService | None = None

    @property
    def route(self) -> str:
        """Its name."""
        return self.spec.route

    @property
    def image(self) -> str:
        """What its tasks are made from."""
        return (self.service.image if self.service is not None else "") or self.spec.image or ""


def known_backends(facts: Facts) -> tuple[Known, ...]:
    """Those that are containers, by route."""
    config = facts.settings.config
    if config is None:
        return ()
    services = {one.container_name: one for one in facts.compose.services if one.container_name}
    return tuple(
        Known(spec, facts.engine.containers.get(spec.container or ""), services.get(spec.container or ""))
        for spec in config.backends.values()
        if spec.runtime == "docker" and _is_here(facts, spec)
    )


def _is_here(facts: Facts, spec: BackendSpec) -> bool:
    """Its container is this machine's, or it can be no other's.  Of others no more is known than whether
    their engines answer."""
    if not facts.hosts or spec.host == LOCAL:
        return True
    return spec.host is None and (spec.container or "") in facts.engine.containers


def wants_docker(facts: Facts) -> bool:
    """Whether something here cannot do without an engine."""
    config = facts.settings.config
    if facts.settings.demo:
        return False
    if facts.compose.file is not None or config is None:
        return True
    return any(
        spec.runtime == "swarm" or (spec.runtime == "docker" and _is_here(facts, spec))
        for spec in config.backends.values()
    )


def wants_gpu(known: Iterable[Known]) -> list[str]:
    """The routes whose backends need one."""
    return [one.route for one in known if one.wants_gpu]


def read_mount(text: str) -> Mount | None:
    """``source:target[:mode]``, as Compose and Docker write it; None for an anonymous volume.

    >>> read_mount("/srv/llm/.cache:/root/.cache:ro")
    Mount(source='/srv/llm/.cache', target='/root/.cache', read_only=True, bind=True)
    """
    parts = text.split(":")
    if len(parts) > 1 and len(parts[0]) == 1 and parts[1][:1] in ("\\", "/"):  # C:\models:/models
        parts = [f"{parts[0]}:{parts[1]}", *parts[2:]]
    if len(parts) < 2 or not parts[0] or not parts[1]:
        return None
    modes = parts[2].split(",") if len(parts) > 2 else []
    bind = parts[0][:1] in ("/", ".", "~") or ":" in parts[0]
    return Mount(parts[0], parts[1], "ro" in modes, bind)


def read_published(text: str) -> Published | None:
    """``[[address:]published:]target[/protocol]``; None where Docker picks the host's port, and for UDP.

    >>> read_published("127.0.0.1:8001:8000/tcp")
    Published(address='127.0.0.1', port=8001, inner=8000)
    """
    ports, _, protocol = text.partition("/")
    if protocol not in ("", "tcp"):
        return None
    before, _, inner = ports.rpartition(":")
    address, _, port = before.rpartition(":")
    # isdecimal() alone takes digits of other scripts, and int() limits their number.
    if not all(one.isascii() and one.isdecimal() and len(one) < 6 for one in (inner, port)):
        return None
    return Published(address.strip("[]") or "0.0.0.0", int(port), int(inner))
