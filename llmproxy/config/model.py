"""What the operator asked for, as frozen values: the result of reading all five sources.

Nothing here parses; :mod:`llmproxy.config.fields` knows how each value is written.  Durations are
seconds, sizes are bytes.  The fields and their defaults are section 8 of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

from attrs import Factory, evolve, field, frozen

__all__ = [
    "digest_of",
    "BackendSpec",
    "Config",
    "Cors",
    "DockerSettings",
    "Gpu",
    "Former",
    "Host",
    "Key",
    "LOCAL",
    "Limits",
    "LogSettings",
    "UsageSettings",
    "Probes",
    "Replicas",
    "Scheduler",
    "Tls",
]

LOCAL = "local"
"""The host whose engine is that of the ``docker`` section."""


@frozen
class Replicas:
    """How many tasks of a Swarm's service there are.

    :ivar min: never fewer; with 0 it is stopped when nobody uses it.
    :ivar max: never more.
    :ivar target_in_flight: requests in flight and waiting for each task; where there are more for
        ``out_after`` seconds there is one task more, where one fewer would have fewer for ``in_after``
        seconds there is one fewer.
    """

    min: int = 0
    max: int = 1
    target_in_flight: int = 8
    out_after: float = 5.0
    in_after: float = 120.0


@frozen
class BackendSpec:
    """One backend: where it runs, how it is reached, and how its lifecycle is tuned.

    :ivar route: public name, the first path segment; lower case.
    :ivar port: port that the server listens on; ``None`` means: read it from the container.
    :ivar models: names that it serves; ``None`` means: read them from the container.
    :ivar idle: seconds without a request in flight after which it is reaped; 0 means never.
    :ivar max_wait: seconds that one request is held at most; ``None`` means as long as the start takes.
    :ivar max_in_flight: requests handed over at once; ``None`` means no limit.
    :ivar gpu_memory: fraction of a GPU (``float``) or bytes (``int``); ``None``: read from the container.
    :ivar fallback: routes of which one that is ready may answer while this one is not.
    :ivar max_keep_alive: seconds for which a client may have it kept after a request.
    :ivar rewrite_model: answers name the model as the client asked for it.
    :ivar reservations: generic resources that a node must have free for each task of a created service.
    :ivar constraints: where its tasks may be placed, as Docker writes it (``node.labels.gpu == a100``).
    :ivar networks: overlay networks of a created service.
    :ivar host: the one that its container is on; ``None``: any one that has such a container, or, where it is
        created from an image, any one.
    """

    route: str
    runtime: Literal["docker", "process", "swarm", "url"] = "docker"
    engine: Literal["vllm", "generic"] = "vllm"
    container: str | None = None
    image: str | None = None
    args: tuple[str, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    volumes: tuple[str, ...] = ()
    command: tuple[str, ...] = field(default=(), repr=False)
    cwd: str | None = None
    url: str | None = None
    service: str | None = None
    port: int | None = None
    health: str = "/health"
    auth: Literal["key", "passthrough"] = "key"
    models: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    idle: float = 600.0
    start_timeout: float = 300.0
    stop_grace: float = 30.0
    max_waiting: int = 1000
    max_wait: float | None = None
    max_in_flight: int | None = None
    heartbeat_after: float = 8.0
    heartbeat_every: float = 10.0
    abandon_idle: float = 60.0
    gpu_memory: float | int | None = None
    gpus: tuple[str, ...] | None = None
    pinned: bool = False
    priority: int = 0
    min_residency: float = 30.0
    prewarm: bool = False
    sleep: Literal["auto", "off", "1", "2"] = "auto"
    sleep_idle: float = 3600.0
    request_defaults: Mapping[str, Any] = field(factory=dict, repr=False)
    request_overrides: Mapping[str, Any] = field(factory=dict, repr=False)
    hidden: bool = False
    fallback: tuple[str, ...] = ()
    max_keep_alive: float = 3600.0
    rewrite_model: bool = False
    replicas: Replicas = Replicas()
    reservations: Mapping[str, int] = field(factory=dict)
    constraints: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    host: str | None = None


@frozen
class Tls:
    """How an engine across a network knows us, and we know it: paths of files.

    :ivar ca: who has signed its certificate.
    :ivar cert: our own.
    :ivar key: its key.
    """

    ca: str
    cert: str
    key: str


@frozen
class DockerSettings:
    """How the Docker engine is reached.

    :ivar host: ``DOCKER_HOST`` form (``unix:///...``, ``tcp://...``); ``None`` means docker's own default.
    :ivar compose_file: compose file whose services may be created when their container is missing.
    :ivar allowed_mounts: folders of the host that containers may be created with, beside those that the
        configuration file itself gives a backend.
    :ivar allow_unsafe: what containers may be created with although it lets them out
        (:data:`llmproxy.config.mounts.UNSAFE`).
    :ivar name: of the host, where there are several; empty: there is this one.
    :ivar tls: of an engine across a network; ``None``: as the environment says.
    :ivar address: where its published ports are reached; ``None``: where the engine is.
    """

    host: str | None = None
    compose_file: str | None = None
    allowed_mounts: tuple[str, ...] = ("/srv/llm",)
    allow_unsafe: tuple[str, ...] = ()
    name: str = ""
    tls: Tls | None = None
    address: str | None = None


@frozen
class Gpu:
    """One GPU: its memory and how much of it stays free (bytes)."""

    memory: int | None = None
    reserve: int = 0


@frozen
class Host:
    """One more Docker engine.

    :ivar docker: where it is: ``unix:///...``, ``tcp://...`` or ``ssh://...``.
    :ivar tls: for ``tcp``.
    :ivar address: where its published ports are reached; ``None``: where the engine is.
    :ivar gpus: those that it has; ``None``: nobody says.
    """

    docker: str
    tls: Tls | None = None
    address: str | None = None
    gpus: Mapping[str, Gpu] | None = None


@frozen
class Scheduler:
    """Fairness between backends (seconds).

    :ivar max_wait_before_drain: that a demand waits for a busy backend before that takes no new requests.
    :ivar drain_limit: that its requests in flight get from then on.
    """

    max_wait_before_drain: float = 30.0
    drain_limit: float = 600.0


@frozen
class Limits:
    """What bounds the proxy as a whole: bytes, connections, held requests, and seconds that clients get.

    :ivar max_head: bytes of a request's head with its request line; of a trailer; of a chunk's extension.
    :ivar max_fields: header fields of one request.
    :ivar max_target: bytes of what a request line asks for.
    :ivar max_connections_per_address: of one client; 0: no limit.  Those from this machine are not counted.
    :ivar head_timeout: for a head, from its first byte to its last; this and the next four: 0 is no limit.
    :ivar body_timeout: for a body, and one more for each ``min_body_rate`` bytes of it.
    :ivar min_body_rate: bytes a second; 0: a body has ``body_timeout`` in all.
    :ivar idle_timeout: until the next request begins.
    :ivar write_timeout: for which a client takes nothing of what waits for it.
    :ivar tunnel_idle: for which a switched connection (WebSocket) carries nothing.
    :ivar body_memory: bytes of bodies that are kept in memory, all together; the others are put into files.
    :ivar body_disk: bytes of bodies that are kept in files, all together.
    """

    max_body: int = 64 * 1024 * 1024
    max_head: int = 32 * 1024
    max_fields: int = 200
    max_target: int = 8 * 1024
    max_connections: int = 4096
    max_connections_per_address: int = 1024
    max_held: int = 10_000
    head_timeout: float = 30.0
    body_timeout: float = 60.0
    min_body_rate: int = 500
    idle_timeout: float = 60.0
    write_timeout: float = 120.0
    tunnel_idle: float = 0.0
    body_memory: int = 256 * 1024 * 1024
    body_disk: int = 4 * 1024 * 1024 * 1024


@frozen
class Cors:
    """Which web pages may read answers in a browser.

    :ivar origins: as browsers send them (``https://chat.example``), or ``*`` for every one; none: CORS is
        left to the backends.
    """

    origins: tuple[str, ...] = ()


@frozen
class Probes:
    """Requests that only look, and so wake nothing and keep nothing awake.

    :ivar user_agents: what stands in their ``User-Agent``, in whatever case.
    :ivar paths: what they ask a backend for; ``/x*`` is all that begins with ``/x``.
    :ivar health_completions: whether a completion that is known to be a health check may start a model.
    """

    user_agents: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    health_completions: Literal["serve", "refuse"] = "serve"


@frozen
class UsageSettings:
    """What is kept of what models were used for.

    :ivar history: requests; 0: none.
    :ivar retention: seconds for which sums are kept, in whole days.
    """

    history: int = 100_000
    retention: float = 400 * 86400.0


@frozen
class LogSettings:
    """How the log is written.

    :ivar format: ``text`` to be read by people, or ``json``: one object a line.
    :ivar level: what is less important is left out; requests are told at ``info``.
    """

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warn", "error"] = "info"


def digest_of(secret: str) -> bytes:
    """What is compared instead of a secret, and kept where it is not to be known: its SHA-256."""
    return sha256(secret.encode("utf-8")).digest()


@frozen
class Former:
    """A secret that a key had before its present one.

    :ivar until: POSIX time after which it is refused.
    """

    digest: bytes = field(repr=False)
    until: float


@frozen
class Key:
    """An API key and what it may do.

    :ivar secret: the secret itself; never printed; empty where only its digest is known.
    :ivar hashed: its digest, in that case.
    :ivar former: secrets that it had before, and still answers to.
    :ivar routes: routes that it may use; ``None`` means all.
    :ivar expires: POSIX time after which it is refused.
    """

    name: str
    secret: str = field(default="", repr=False)
    admin: bool = False
    client: bool = True
    routes: tuple[str, ...] | None = None
    may_start: bool = True
    may_evict: bool = True
    priority: int = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    expires: float | None = None
    hashed: bytes | None = field(default=None, repr=False)
    former: tuple[Former, ...] = ()

    @property
    def digest(self) -> bytes:
        """What a secret's digest has to be."""
        return digest_of(self.secret) if self.hashed is None else self.hashed

    @property
    def limited(self) -> bool:
        """How much it may ask for is bounded."""
        return (self.requests_per_minute or self.tokens_per_minute or self.streams) is not None


@frozen
class Config:
    """Everything that the operator asked for.

    :ivar listen: Twisted endpoint strings.
    :ivar default_route: where requests to ``/v1`` go that name no model; ``None``: they are refused.
    :ivar metrics_access: who may read ``/metrics``: anybody, or administrators.
    :ivar trusted_proxies: addresses and networks whose ``X-Forwarded-For`` is believed, or ``unix``.
    :ivar allowed_hosts: names by which browsers may reach the proxy, beside those that no stranger can own.
    :ivar hosts: Docker engines beside that of ``docker``, by name.
    :ivar backend_key: the key that backends ask for (``VLLM_API_KEY``), sent where ``auth`` is ``key``.
    :ivar sources: for each setting (``backends.coder.idle``) where its value came from; what is not
        listed has its default.
    :ivar secrets: never to be shown, wherever they turn up: the keys, and what the environment and the
        backends' settings have under names of secrets.
    :ivar notes: remarks for the log at start (what was changed for safety, what is not in force).
    """

    listen: tuple[str, ...] = ("tcp:8000",)
    docker: DockerSettings = DockerSettings()
    hosts: Mapping[str, Host] = Factory(dict)
    gpus: Mapping[str, Gpu] = Factory(dict)
    host_memory_for_sleep: int | None = None
    scheduler: Scheduler = Scheduler()
    limits: Limits = Limits()
    cors: Cors = Cors()
    probes: Probes = Probes()
    log: LogSettings = LogSettings()
    usage: UsageSettings = UsageSettings()
    default_route: str | None = None
    drain: float = 30.0
    stop_backends_on_exit: bool = False
    metrics_access: Literal["open", "admin"] = "open"
    trusted_proxies: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    state_dir: str = ""
    backends: Mapping[str, BackendSpec] = Factory(dict)
    keys: tuple[Key, ...] = ()
    backend_key: str | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def all_gpus(self) -> Mapping[str, Gpu]:
        """What is said of GPUs; those of other hosts are named ``host/index``."""
        others = {
            f"{name}/{index}": gpu
            for name, host in self.hosts.items()
            for index, gpu in (host.gpus or {}).items()
        }
        return {**self.gpus, **others} if others else self.gpus

    def engine_of(self, name: str) -> DockerSettings:
        """How the engine of one of ``hosts`` is reached.  Compose makes containers on the local one alone."""
        host = self.hosts[name]
        return evolve(
            self.docker, host=host.docker, compose_file=None, name=name, tls=host.tls, address=host.address
        )
