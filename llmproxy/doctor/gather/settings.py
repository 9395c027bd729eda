"""Reads the settings as the proxy would, and the compose file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from attrs import define, evolve, field

from llmproxy.config.compose import read_compose
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, DockerSettings
from llmproxy.config.resolve import CommandLine
from llmproxy.doctor.facts import ComposeFacts, Settings
from llmproxy.doctor.gather.commands import run
from llmproxy.errors import ConfigError

__all__ = ["Reading", "find_command"]

DEFAULT_COMPOSE = "docker-compose.yml"
"""What ``make run`` serves where nothing else is said."""
COMPOSE_TIMEOUT = 15.0


@define
class Reading:
    """The settings, read in two steps: Docker has to be asked for labels in between.

    :param shell: the environment.
    :param written: what ``./.env`` says.
    """

    shell: Mapping[str, str]
    written: Mapping[str, str]
    options: CommandLine
    file: str | None = None
    compose: ComposeFacts = field(factory=ComposeFacts, init=False)
    docker: DockerSettings = field(factory=DockerSettings, init=False)
    hosts: dict[str, DockerSettings] = field(factory=dict, init=False)
    _error: str | None = field(default=None, init=False)
    _environment: dict[str, str] = field(factory=dict, init=False)

    def begin(self) -> DockerSettings:
        """How Docker is reached, and what the compose file says."""
        self._environment = {**self.written, **self.shell}
        try:
            bare = Loader(self._environment, self.options, self.file).bare()
            self.docker = bare.docker
            self.hosts = {} if self.options.demo else {name: bare.engine_of(name) for name in bare.hosts}
        except ConfigError as wrong:
            self._error = str(wrong)
            names = {name: self._environment.get(name) or None for name in ("DOCKER_HOST", "COMPOSE_FILE")}
            self.docker = DockerSettings(names["DOCKER_HOST"], names["COMPOSE_FILE"])
        if self.options.demo:
            return self.docker
        if self.docker.compose_file is None and os.path.isfile(DEFAULT_COMPOSE):
            self.docker = evolve(self.docker, compose_file=DEFAULT_COMPOSE)
            self._environment["COMPOSE_FILE"] = DEFAULT_COMPOSE
            self.compose = ComposeFacts(by_default=True)
        if self.docker.compose_file is not None:
            self.compose = self._read_compose(self.docker.compose_file)
        return self.docker

    def _read_compose(self, name: str) -> ComposeFacts:
        found = evolve(self.compose, file=name)
        try:
            text = Path(name).read_text(encoding="utf-8")
            return evolve(found, services=read_compose(text, name, self._environment))
        except ConfigError as wrong:
            return evolve(found, error=str(wrong))
        except UnicodeDecodeError:
            return evolve(found, error=f"{name}: it is not UTF-8 text")
        except OSError as wrong:
            return evolve(found, error=f"{name}: it cannot be read: {os.strerror(wrong.errno or 0)}")

    def finish(self, containers: list[LabelledContainer]) -> Settings:
        """All of them."""
        config = None
        if self._error is None:
            environment = dict(self._environment)
            if self.compose.error is not None:
                environment.pop("COMPOSE_FILE", None)  # told by itself; the rest may be right
            try:
                config = Loader(environment, self.options, self.file).load(containers)
            except ConfigError as wrong:
                self._error = str(wrong)
        differing = tuple(
            sorted(
                name
                for name, value in self.written.items()
                if value and self.shell.get(name, value).strip() not in ("", value.strip())
            )
        )
        return Settings(config, self._error, self.options.demo, differing, _missing(config))


def _missing(config: Config | None) -> dict[str, str]:
    """Programs of process backends that are not there."""
    found = {}
    for route, spec in config.backends.items() if config is not None else ():
        if spec.runtime == "process" and spec.command:
            program, folder = spec.command[0], spec.cwd or "."
            # A path is looked up from the folder in which it is run, a name in PATH.
            place = os.path.join(folder, program) if os.sep in program else program
            if shutil.which(place, path=spec.environment.get("PATH")) is None:
                found[route] = program
    return found


def find_command(settings: DockerSettings, facts: ComposeFacts) -> ComposeFacts:
    """The same, with what is Compose here."""
    from llmproxy.runtimes.compose import find_compose

    command = find_compose(settings)
    if command is None:
        return facts
    ran = run([*command, "version", "--short"], COMPOSE_TIMEOUT)
    lines = ran.output.splitlines()
    return evolve(facts, command=" ".join(command), version=lines[0].strip() if ran.well and lines else None)
