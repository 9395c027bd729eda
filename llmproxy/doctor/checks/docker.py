"""The Docker engine and Compose.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmproxy.doctor.checks.backends import known_backends, wants_docker
from llmproxy.doctor.facts import Engine, Facts
from llmproxy.doctor.findings import Finding, fail, ok, skipped, warn
from llmproxy.doctor.numbers import version_of

__all__ = ["check_compose", "check_engine"]

INTEGRATION = (
    "Docker Desktop, Settings, Resources, WSL integration: enable this distribution{name},"
    " then Apply & restart."
)
START_DESKTOP = "Start Docker Desktop on Windows (and let it start at sign-in), then open a new shell here."


def check_engine(facts: Facts) -> Iterator[Finding]:
    """Whether it can be used, and why not."""
    engine = facts.engine
    if engine.answers:
        system = f" ({engine.system})" if engine.system else ""
        yield ok("docker.engine", f"Docker {engine.version or '?'} answers at {engine.host}{system}.")
        yield from _version(engine)
        return
    text, fix = _trouble(facts)
    if not wants_docker(facts):
        yield skipped("docker.engine", f"{text} No backend needs it.")
    else:
        yield fail("docker.engine", text, fix)


def _version(engine: Engine) -> Iterator[Finding]:
    api = version_of(engine.api_version)
    if api and api < (1, 41):
        yield fail(
            "docker.version",
            f"Docker {engine.version} is too old: it speaks version {engine.api_version} of its API.",
            "Install Docker 20.10 (API 1.41) or newer.",
        )


def _trouble(facts: Facts) -> tuple[str, str]:
    """What is wrong, and what to do."""
    engine, wsl = facts.engine, facts.host.wsl
    where = f"at {engine.host}"
    if engine.state == "forbidden":
        return _forbidden(facts)
    if engine.state in ("absent", "dangling", "refused") and engine.others:
        return (
            f"Nothing answers {where}, but there is an engine's socket at {engine.others[0]}.",
            f"Use that one: export DOCKER_HOST={engine.others[0]} (or put it into .env).",
        )
    if facts.host.contained and engine.state in ("absent", "dangling"):
        return (
            f"There is no Docker socket {where} in this container.",
            "Mount it (-v /var/run/docker.sock:/var/run/docker.sock; DOCKER_SOCKET in .env names another).",
        )
    if wsl is not None and wsl.desktop != "absent" and engine.state != "answers":
        if wsl.desktop == "installed":
            return f"Docker Desktop does not run: nothing answers {where}.", START_DESKTOP
        name = f" ({wsl.distribution})" if wsl.distribution else ""
        if engine.state in ("absent", "dangling"):
            text = f"Docker Desktop runs, but its WSL integration is off here: nothing answers {where}."
            return text, INTEGRATION.format(name=name)
        return (
            f"Docker Desktop runs, and its engine does not answer {where} ({engine.detail or engine.state}).",
            f"Restart Docker Desktop. If that does not help: {INTEGRATION.format(name=name)}",
        )
    if engine.state in ("absent", "dangling"):
        return (
            f"There is no Docker engine {where}.",
            "Install Docker (https://docs.docker.com/engine/install/) and start it (sudo"
            " systemctl start docker),"
            " or name its socket in DOCKER_HOST.",
        )
    if engine.state == "no_socket":
        fix = (
            "Docker made a folder of it when it was mounted before the engine ran: remove it, restart Docker."
        )
        return f"What is {where} is no socket.", fix
    if engine.state == "refused":
        return (
            f"The Docker engine is down: nobody listens {where}.",
            "sudo systemctl start docker (or service docker start).",
        )
    if engine.state == "silent":
        return (
            f"The Docker engine {where} accepts and does not answer in time.",
            "It is under load, or hangs: look at journalctl -u docker, and restart it.",
        )
    return (
        f"The Docker engine {where} cannot be used: {engine.detail or 'no reason given'}.",
        "Correct DOCKER_HOST (unix:///var/run/docker.sock, tcp://host:2376), and DOCKER_CERT_PATH with TLS.",
    )


def _forbidden(facts: Facts) -> tuple[str, str]:
    engine = facts.engine
    groups = ", ".join(map(str, engine.groups))
    if engine.group is None:
        text = f"User {engine.user} may not get to the Docker socket at {engine.host}."
        return text, "Open the folders above it to this user, or use another socket (DOCKER_HOST)."
    text = (
        f"User {engine.user} (groups {groups}) may not use the Docker socket at"
        f" {engine.host}, which belongs to"
        f" group {engine.group}."
    )
    if facts.host.contained:
        return text, f"Put DOCKER_GID={engine.group} into .env, and bring the launcher up again."
    if engine.group in engine.groups:
        return text, "Let its group write to it: sudo chmod 660 on the socket, or restart Docker."
    return text, "sudo usermod -aG docker $USER, then sign out and in again (newgrp docker for this shell)."


def check_compose(facts: Facts) -> Iterator[Finding]:
    """The compose file, and Compose itself where a container has to be made by it."""
    compose, known = facts.compose, known_backends(facts)
    if facts.settings.demo:
        return
    if compose.error is not None:
        yield fail(
            "docker.compose_file",
            f"The compose file cannot be used: {compose.error}",
            "Correct COMPOSE_FILE (or docker.compose_file in llmproxy.yaml); docker"
            " compose config names the line.",
        )
    elif compose.file is None:
        yield skipped(
            "docker.compose_file", "No compose file is configured: no container is made by Compose."
        )
    else:
        mine = sum(one.service is not None for one in known)
        how = ", as make run takes it" if compose.by_default else ""
        text = f"{compose.file}{how}: {len(compose.services)} services, {mine} of them with a route."
        if mine or known or facts.settings.config is None:
            yield ok("docker.compose_file", text)
        else:
            fix = "Label the models' services (llmproxy.route), or set MAP__<route>__container."
            yield warn("docker.compose_file", text, fix)
    absent = [one.route for one in known if one.container is None and one.service is not None]
    if compose.file is None or compose.error is not None:
        return
    if compose.command is not None:
        yield ok("docker.compose", f"{compose.command} {compose.version or ''} is here.".replace("  ", " "))
    elif absent:
        yield fail(
            "docker.compose",
            f"There is no Compose here, and it has to make the containers of {', '.join(absent)}.",
            "Install the Compose plugin (apt install docker-compose-v2, or docker-compose-plugin).",
        )
    elif any(one.service is not None for one in known):
        yield warn(
            "docker.compose",
            "There is no Compose here: a container that is removed cannot be made again.",
            "Install the Compose plugin (apt install docker-compose-v2, or docker-compose-plugin).",
        )
