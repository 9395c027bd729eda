"""Who reaches what, and with which keys: what ``llmproxy doctor --security`` goes through.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llmproxy.config.model import Config
from llmproxy.doctor.checks.backends import known_backends
from llmproxy.doctor.checks.network import read_endpoint
from llmproxy.doctor.doctor_client import is_loopback
from llmproxy.doctor.facts import Facts, KeptFile
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn

__all__ = [
    "check_admin",
    "check_age",
    "check_containers_rights",
    "check_exposure",
    "check_files",
    "check_rates",
    "check_socket",
    "check_wire",
]

QUARTER = 92 * 86400.0
PRIVATE = 0o077
"""Rights of a file that others than its owner have."""


def _launchers(facts: Facts) -> list[str]:
    """Addresses at which a container publishes the proxy's port."""
    return [
        one.address
        for each in facts.engine.containers.values()
        if each.state == "running"
        for one in each.published
        if one.port == facts.proxy.target.port
    ]


def _open(facts: Facts, config: Config) -> bool:
    """Whether others than this machine reach the proxy, as far as that is seen from here."""
    published = [] if facts.host.contained else _launchers(facts)
    if published:
        return not all(is_loopback(address) for address in published)
    return not all(read_endpoint(each).shut for each in config.listen)


def check_exposure(facts: Facts) -> Iterator[Finding]:
    """That only the launcher is for the network, and models are not."""
    name, shown = "security.models", []
    known = known_backends(facts)
    for one in known:
        shown += [
            f"{one.route} at {port.address}:{port.port}"
            for port in one.published
            if not is_loopback(port.address) and port.port != facts.proxy.target.port
        ]
    config = facts.settings.config
    if config is None:
        yield skipped(name, "Where models listen is not known, as the settings cannot be read.")
    elif shown:
        yield fail(
            name,
            f"Models are reached past the proxy, its limits and its keys: {', '.join(shown)}.",
            "Publish them on loopback: MODEL_BIND=127.0.0.1 in .env, or 127.0.0.1:PORT:PORT in the"
            " compose file;"
            " then make their containers anew.",
        )
    elif known:
        yield ok(name, "Ports of models are private: on loopback, or not published at all.")
    if config is not None and not config.keys and _open(facts, config):
        yield fail(
            "security.keys",
            "The proxy is reached from the network and asks for no key.",
            "Set VLLM_API_KEY (make env writes one), and start it again.",
        )


def _rights(mode: int) -> str:
    return f"mode {mode:04o}"


def check_files(facts: Facts) -> Iterator[Finding]:
    """That files with keys are for their owner only, and not in Git."""
    security = facts.security
    if security is None:
        return
    for file in security.files:
        if file.mode & PRIVATE and _keeps_keys(facts, file):
            yield fail(
                "security.files",
                f"Others may read {file.name} ({_rights(file.mode)}).",
                f"chmod 600 {file.name}",
            )
        elif file.tracked and file.name == ".env":
            yield fail(
                "security.git",
                ".env is tracked by Git: whoever has the repository has the keys.",
                "git rm --cached .env, put .env into .gitignore, and mint new keys: the history keeps these.",
            )
        elif file.name == ".env":
            told = (
                "is not tracked by Git" if file.tracked is False else "is no file of Git's, as far as is seen"
            )
            yield ok("security.files", f".env is for its owner only and {told}.")
    if security.state_mode is not None and security.state_mode & PRIVATE:
        yield warn(
            "security.state",
            f"Others may look into the state folder ({_rights(security.state_mode)}), where models'"
            " output is.",
            f"chmod 700 {facts.settings.config.state_dir if facts.settings.config else 'it'}",
        )


def _keeps_keys(facts: Facts, file: KeptFile) -> bool:
    """Whether there are keys in it: .env is made for them; the configuration may name variables only."""
    config = facts.settings.config
    return file.name == ".env" or (
        config is not None and any(_written(config, key.name) for key in config.keys)
    )


def _written(config: Config, name: str) -> bool:
    return not config.sources.get(f"keys.{name}", "").startswith("environment")


def check_age(facts: Facts) -> Iterator[Finding]:
    """That keys are changed each quarter."""
    security = facts.security
    for file in () if security is None else security.files:
        if not _keeps_keys(facts, file):
            continue
        days = (facts.clock.now - file.changed) / 86400
        if facts.clock.now - file.changed > QUARTER:
            yield warn(
                "security.age",
                f"{file.name} was last changed {days:.0f} days ago, so the keys in it are as old at least.",
                "Change them each quarter: mint one (openssl rand -hex 32), put it there, bring the"
                " launcher up"
                " again, and give it to the clients; `previous` in llmproxy.yaml keeps the old one"
                " for a while.",
            )
        else:
            yield ok("security.age", f"{file.name} was changed {max(0.0, days):.0f} days ago.")


def check_wire(facts: Facts) -> Iterator[Finding]:
    """TLS, or something in front that has it, where others are let in."""
    config = facts.settings.config
    if config is None:
        return
    name = "security.tls"
    if not _open(facts, config):
        yield ok(
            name, "Only this machine reaches the proxy; a tunnel or a reverse proxy here may bring the rest."
        )
    elif all(each.startswith("ssl:") for each in config.listen if not read_endpoint(each).shut):
        yield ok(name, "The proxy speaks TLS with the network.")
    elif config.trusted_proxies:
        yield ok(name, "A proxy in front is trusted; see that it has TLS, and that nobody gets past it.")
    else:
        yield warn(
            name,
            "Keys, prompts and answers cross the network as they are: there is no TLS.",
            "In a network that you trust leave it so. To be reached from elsewhere use a tunnel"
            " (cloudflared),"
            " a reverse proxy with TLS, or listen: [ssl:...] (docs/reverse-proxies.md).",
        )
    plain = [
        spec.route
        for spec in config.backends.values()
        if spec.url is not None
        and spec.url.startswith("http:")
        and not is_loopback(urlsplit(spec.url).hostname or "")
    ]
    if plain:
        yield warn(
            "security.backends",
            f"What goes to {', '.join(plain)} crosses the network as it is, with the backend's key.",
            "Give it a https:// url, or keep it in a network that you trust.",
        )


def check_rates(facts: Facts) -> Iterator[Finding]:
    """That no client can take all, once others are let in."""
    config = facts.settings.config
    if config is None or not config.keys:
        return
    free = [key.name for key in config.keys if key.client and not key.limited]
    if not free:
        yield ok("security.rates", "Each key of a client has a rate.")
    elif _open(facts, config):
        yield warn(
            "security.rates",
            f"Nothing bounds what these keys may ask for: {', '.join(free)}.",
            "Before strangers get one, give it requests_per_minute, tokens_per_minute or streams in"
            " llmproxy.yaml.",
        )
    else:
        yield skipped(
            "security.rates", f"No rate for {', '.join(free)}: only this machine reaches the proxy."
        )
    if config.metrics_access == "open" and _open(facts, config):
        yield warn(
            "security.metrics",
            "Anybody who reaches the proxy may read /metrics: names of models and keys, and how much"
            " they are used.",
            "Set metrics_access: admin (LLMPROXY_METRICS_ACCESS=admin), and give Prometheus the key.",
        )


def check_admin(facts: Facts) -> Iterator[Finding]:
    """That those who use models cannot stop them."""
    config = facts.settings.config
    if config is None or not config.keys:
        return
    both = [key.name for key in config.keys if key.admin and key.client]
    only = [key for key in config.keys if not key.admin]
    if both and not only:
        yield warn(
            "security.admin",
            f"The clients' key is the administrator's, too ({', '.join(both)}): who may ask a model"
            " may stop them all, and each model has it in its environment.",
            "Set LLMPROXY_ADMIN_KEY to another one in .env, and keep it to yourself.",
        )
    else:
        yield ok("security.admin", "Clients have keys that are not an administrator's.")


def check_socket(facts: Facts) -> Iterator[Finding]:
    """Who may use Docker, which is to be root."""
    host, security = facts.engine.host, facts.security
    mode = None if security is None else security.socket_mode
    if not host.startswith("unix:"):
        target = urlsplit(host)
        if (
            host.startswith(("tcp:", "http:"))
            and target.port == 2375
            and not is_loopback(target.hostname or "")
        ):
            inner = facts.host.contained and "." not in (target.hostname or ".")
            if inner:
                yield ok(
                    "security.socket",
                    f"The engine is asked through {target.hostname}, and not by its socket.",
                )
                return
            yield fail(
                "security.socket",
                f"The engine takes orders at {host} without asking who gives them: that is root for"
                " the network.",
                "Have it listen on its socket only, or with TLS and client certificates (DOCKER_TLS_VERIFY).",
            )
        return
    if mode is None:
        yield skipped("security.socket", "Docker's socket is not seen from here.")
    elif mode & 0o007:
        yield fail(
            "security.socket",
            f"Every user of this machine may use Docker's socket ({_rights(mode)}), which is to be root.",
            f"sudo chmod 660 {urlsplit(host).path}, and put those who need it into its group.",
        )
    else:
        yield ok(
            "security.socket",
            f"Docker's socket is for root and its group ({_rights(mode)});"
            " deploy/compose/socket-proxy.yml keeps it"
            " from the launcher.",
        )


def check_containers_rights(facts: Facts) -> Iterator[Finding]:
    """What containers are allowed that lets them out."""
    config = facts.settings.config
    if config is None:
        return
    docker = config.docker
    if docker.allow_unsafe:
        yield warn(
            "security.containers",
            f"Containers may be created with {', '.join(docker.allow_unsafe)}, which lets what runs"
            " in them out.",
            "Take out of docker.allow_unsafe what no model needs.",
        )
    wide = [each for each in docker.allowed_mounts if each.count("/") == 1]
    if wide:
        yield warn(
            "security.mounts",
            f"Containers may be given all of {', '.join(wide)} of this host.",
            "Name the folders that models need in docker.allowed_mounts.",
        )
    if not docker.allow_unsafe and not wide:
        folders = ", ".join(docker.allowed_mounts) or "no folder"
        yield ok(
            "security.containers",
            f"Containers are created without rights on the host; they may get {folders}.",
        )
