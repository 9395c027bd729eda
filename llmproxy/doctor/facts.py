"""What is known of an installation, as frozen values.  Pure: ``gather`` fills them, ``checks`` judge them.

What could not be learned is ``None`` or empty, and a check then says that it was skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import Factory, field, frozen

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import Config
from llmproxy.doctor.doctor_client import Answer, Target

__all__ = [
    "ClockFacts",
    "ComposeFacts",
    "Container",
    "DiskFacts",
    "Engine",
    "Facts",
    "Folder",
    "FolderKind",
    "GpuFacts",
    "HostFacts",
    "Image",
    "KeptFile",
    "Mount",
    "Package",
    "ProxyFacts",
    "Published",
    "SecurityFacts",
    "Settings",
    "SwarmFacts",
    "SwarmNode",
    "SwarmService",
    "WindowsFacts",
    "WslFacts",
]


NO_ANSWER = Answer()
FolderKind = Literal["folder", "missing", "file", "hidden"]
"""``hidden``: whether it is there cannot be seen."""


@frozen
class Settings:
    """What the proxy would read if it were started here.

    :ivar error: why it would refuse to start.
    :ivar differing: variables that the environment and ``./.env`` tell differently.
    :ivar missing_commands: by route, the program of a process backend that is not there.
    """

    config: Config | None = None
    error: str | None = None
    demo: bool = False
    differing: tuple[str, ...] = ()
    missing_commands: Mapping[str, str] = Factory(dict)


@frozen
class Published:
    """A port of a container that the host answers on."""

    address: str
    port: int
    inner: int


@frozen
class Mount:
    """A folder of the host, or a volume of Docker's, that a backend sees.

    :ivar source: path on the host, or the volume's name.
    """

    source: str
    target: str
    read_only: bool = False
    bind: bool = True


@frozen
class Container:
    """A container.  What only an inspection tells is left at its default where none was made.

    :ivar service: of Compose.
    :ivar restart: name of its restart policy.
    :ivar gpu: whether it asks for a GPU; None when that is left open.
    """

    name: str
    state: str = ""
    image: str = ""
    service: str | None = None
    project: str | None = None
    published: tuple[Published, ...] = ()
    mounts: tuple[Mount, ...] = ()
    restart: str = ""
    user: str = ""
    gpu: bool | None = None
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=Factory(dict), repr=False)


@frozen
class Image:
    """An image that a backend needs.

    :ivar cuda: the CUDA version that it asks of the driver (``NVIDIA_REQUIRE_CUDA``).
    """

    name: str
    present: bool
    cuda: tuple[int, int] | None = None


@frozen
class SwarmNode:
    """A machine of the Swarm.  Several may have one name.

    :ivar state: Swarm's word (``ready``, ``down``); ``availability``: the operator's (``active``, ``drain``).
    :ivar amounts: of generic resources that it advertises, by kind.
    """

    id: str
    name: str
    state: str = "ready"
    availability: str = "active"
    manager: bool = False
    amounts: Mapping[str, int] = Factory(dict)

    @property
    def usable(self) -> bool:
        """Whether tasks may be placed there."""
        return self.state == "ready" and self.availability == "active"


@frozen
class SwarmService:
    """A service, as far as it matters.

    :ivar networks: ids of those that its tasks are joined to, without the routing mesh's.
    :ivar ports: of its containers that it publishes, and how (``host``, ``ingress``).
    :ivar args: its server's command line, as far as the service gives it.
    :ivar grace: seconds that a task gets to end.
    """

    name: str
    image: str = ""
    mode: str = "replicated"
    networks: tuple[str, ...] = ()
    ports: tuple[tuple[int, str], ...] = ()
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=Factory(dict), repr=False)
    grace: float = 10.0


@frozen
class SwarmFacts:
    """The Swarm that the engine belongs to.

    :ivar state: ``manager``, ``worker``, or Docker's word for what is neither: ``inactive``, ``locked``,
        ``pending``, ``error``.
    :ivar reserves: by route, what each task takes of its node; only generic resources.
    :ivar placeable: by route, ids of the nodes that its constraints allow; only where it has any.
    :ivar overlays: names of overlay networks, by id.
    :ivar joined: ids of the networks that we are joined to; None: we are in no container of that engine.
    :ivar pullable: by image, whether its registry has it; None: that could not be learned.
    """

    state: str = "inactive"
    error: str = ""
    managers: int = 0
    nodes: tuple[SwarmNode, ...] = ()
    services: Mapping[str, SwarmService] = Factory(dict)
    reserves: Mapping[str, Mapping[str, int]] = Factory(dict)
    placeable: Mapping[str, tuple[str, ...]] = Factory(dict)
    overlays: Mapping[str, str] = Factory(dict)
    joined: tuple[str, ...] | None = None
    pullable: Mapping[str, bool | None] = Factory(dict)


@frozen
class Engine:
    """The Docker engine.

    :ivar state: how far one gets with it: ``absent`` (no socket), ``dangling`` (a link to none),
        ``no_socket`` (something else is there), ``forbidden``, ``refused``, ``silent``, ``error``, or
        ``answers``.
    :ivar detail: the words of what went wrong.
    :ivar group: that the socket belongs to; ``groups`` are those of this user.
    :ivar others: sockets of engines elsewhere.
    :ivar local: it runs on this machine, so that its folders are ours.
    :ivar cdi: devices that it knows by the container device interface.
    :ivar apart: seconds that its clock is ahead of ours.
    :ivar ours: we run in one of its containers.
    :ivar containers: all, by name.
    :ivar swarm: what of a Swarm is told of it; all of that only where a backend runs there.
    """

    host: str
    state: str
    detail: str = ""
    group: int | None = None
    user: int | None = None
    groups: tuple[int, ...] = ()
    others: tuple[str, ...] = ()
    local: bool = True
    version: str = ""
    api_version: str = ""
    system: str = ""
    data_root: str = ""
    runtimes: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    apart: float | None = None
    ours: bool = False
    containers: Mapping[str, Container] = Factory(dict)
    images: Mapping[str, Image] = Factory(dict)
    swarm: SwarmFacts = SwarmFacts()

    @property
    def answers(self) -> bool:
        """Whether it can be used."""
        return self.state == "answers"

    @property
    def desktop(self) -> bool:
        """Whether it is Docker Desktop's."""
        return "docker desktop" in self.system.lower()


@frozen
class ComposeFacts:
    """Compose, and its file.

    :ivar command: what is Compose here, such as ``docker compose``; None when it is not there.
    :ivar by_default: the file was not configured, but lies here as ``make run`` would take it.
    """

    file: str | None = None
    error: str | None = None
    services: tuple[ComposeService, ...] = ()
    command: str | None = None
    version: str | None = None
    by_default: bool = False


@frozen
class Folder:
    """A folder on this machine.

    :ivar filesystem: its type, as ``/proc/self/mountinfo`` calls it.
    :ivar writable: by this user.
    """

    path: str
    kind: FolderKind = "folder"
    filesystem: str = ""
    read_only: bool = False
    writable: bool = True
    owner: int = 0
    mode: int = 0o755


@frozen
class DiskFacts:
    """The file system under a folder; its bytes that may be used, and whether it has names left for files."""

    what: str
    path: str
    free: int
    total: int
    full_of_files: bool = False


@frozen
class WindowsFacts:
    """What Windows tells of itself, asked from within WSL.

    :ivar apart: seconds that its clock is ahead of ours.
    :ivar networks: category (``Public``, ``Private``, ``DomainAuthenticated``) of each network it is in.
    :ivar allowed: profiles on which a rule of its firewall lets the proxy's port in; None when the rules
        could not be read.
    :ivar hyperv: what Hyper-V's firewall does with what comes in for WSL (``Allow``, ``Block``).
    :ivar error: why it could not be asked.
    """

    apart: float | None = None
    networks: tuple[str, ...] = ()
    allowed: tuple[str, ...] | None = None
    hyperv: str | None = None
    error: str | None = None


@frozen
class WslFacts:
    """The Windows Subsystem for Linux that this runs in.

    :ivar networking: ``nat``, ``mirrored``, ``virtioproxy``, ``none``, or None.
    :ivar config: the ``[wsl2]`` section of ``.wslconfig``, names in lower case; None when it was not found.
    :ivar desktop: Docker Desktop: ``absent``, ``installed`` or ``running``.
    """

    version: int
    distribution: str = ""
    networking: str | None = None
    config: Mapping[str, str] | None = None
    config_path: str | None = None
    systemd: bool = False
    desktop: str = "absent"
    windows: WindowsFacts | None = None


@frozen
class HostFacts:
    """This machine.

    :ivar contained: we run in a container, and do not see what its host does.
    :ivar memory: bytes.
    :ivar lan: the address that others of the network reach it by.
    """

    contained: bool = False
    memory: int | None = None
    lan: str | None = None
    wsl: WslFacts | None = None


@frozen
class GpuFacts:
    """The driver.

    :ivar devices: of ``/dev/nvidiactl`` and ``/dev/dxg``, those that are there.
    :ivar gpus: name and bytes of each.
    :ivar cuda: the CUDA version that the driver can do.
    :ivar tool: a program of the container toolkit that is installed here.
    """

    devices: tuple[str, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    gpus: tuple[tuple[str, int], ...] = ()
    error: str | None = None
    tool: str | None = None


@frozen
class ClockFacts:
    """Now, and what it may be compared with (POSIX seconds).

    :ivar built: when llmproxy was installed here.
    :ivar synchronized: whether something keeps the clock right; None when that is not known.
    """

    now: float
    built: float | None = None
    synchronized: bool | None = None


@frozen
class Package:
    """A package that is needed: the version that is there, and the lowest that will do."""

    name: str
    installed: str | None
    least: str


@frozen
class ProxyFacts:
    """The running proxy, asked at its address.

    :ivar keyed: whether a key was sent for ``backends``.
    """

    target: Target
    health: Answer = NO_ANSWER
    ready: Answer = NO_ANSWER
    shut: Answer = NO_ANSWER
    backends: Answer = NO_ANSWER
    keyed: bool = False

    @property
    def answers(self) -> bool:
        """Whether llmproxy is there."""
        return self.health.status in (200, 503) and isinstance(self.health.document, dict)


@frozen
class KeptFile:
    """A file in which keys may be.

    :ivar changed: POSIX seconds.
    :ivar tracked: by Git; None where that cannot be told.
    """

    name: str
    mode: int
    changed: float
    tracked: bool | None = None


@frozen
class SecurityFacts:
    """Who may read and use what, as file modes; None for what is not there.

    :ivar files: ``.env`` and the configuration file, where they are.
    """

    files: tuple[KeptFile, ...] = ()
    state_mode: int | None = None
    socket_mode: int | None = None


@frozen
class Facts:
    """All of it.

    :ivar busy: addresses and ports on which something listens.
    :ivar hosts: the engines of other hosts, by name.
    """

    version: str
    settings: Settings
    engine: Engine
    compose: ComposeFacts
    host: HostFacts
    gpu: GpuFacts
    clock: ClockFacts
    proxy: ProxyFacts
    python: tuple[int, int] = (3, 11)
    packages: tuple[Package, ...] = ()
    folders: Mapping[str, Folder] = Factory(dict)
    disks: tuple[DiskFacts, ...] = ()
    busy: frozenset[tuple[str, int]] = frozenset()
    security: SecurityFacts | None = None
    hosts: Mapping[str, Engine] = Factory(dict)
