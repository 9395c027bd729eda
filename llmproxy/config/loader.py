"""Finds and reads the texts that the configuration is made of.  The only part of ``config`` that does I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import define, evolve

from llmproxy.config.compose import ComposeService, read_compose
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import Config, DockerSettings
from llmproxy.config.resolve import CommandLine, Sources, read_sources
from llmproxy.errors import ConfigError

__all__ = ["PLACES", "Loader"]

PLACES = ("llmproxy.yaml", "/etc/llmproxy/llmproxy.yaml")
"""Where the file is looked for when none is named."""


@define
class Loader:
    """Reads the configuration, again and again.

    :param file: the configuration file that was named on the command line.
    :ivar compose: the services of the configured compose file, as of the last reading.
    """

    environ: Mapping[str, str]
    options: CommandLine
    file: str | None = None
    compose: tuple[ComposeService, ...] = ()

    def docker_settings(self) -> DockerSettings:
        """How the engine is reached; it is needed before labels can be read.

        :raises llmproxy.errors.ConfigError: a setting is not allowed.
        """
        return self.bare().docker

    def load(self, containers: Sequence[LabelledContainer]) -> Config:
        """Read everything.

        :param containers: those with llmproxy's labels.
        :raises llmproxy.errors.ConfigError: a setting is not allowed, or a file cannot be read.
        """
        sources = self._sources()
        if not self.options.demo:
            name = self._docker(sources).compose_file
            self.compose = () if name is None else read_compose(_read(name), name, self.environ)
            sources = evolve(sources, containers=containers, compose=self.compose)
        return read_sources(sources)

    def _sources(self) -> Sources:
        environ = self.environ
        if not environ.get("HOME"):  # systemd gives system services none
            environ = {**environ, "HOME": os.path.expanduser("~")}
        name = self.file or environ.get("LLMPROXY_CONFIG") or None
        if name is None:
            name = next((place for place in PLACES if Path(place).is_file()), None)
        text = None if name is None else _read(name)
        return Sources(environ, text, name or PLACES[0], options=self.options)

    def bare(self) -> Config:
        """Everything but the routes: it is right without the labels of containers, too.

        :raises llmproxy.errors.ConfigError: a setting is not allowed, or the file cannot be read.
        """
        return self._without_routes(self._sources())

    def _docker(self, sources: Sources) -> DockerSettings:
        return self._without_routes(sources).docker

    @staticmethod
    def _without_routes(sources: Sources) -> Config:
        # Without labels a route may look incomplete, and a route to be prewarmed unknown.
        environ = {
            name: value
            for name, value in sources.environ.items()
            if name != "PREWARM_ROUTES" and not name.upper().startswith("MAP__")
        }
        return read_sources(evolve(sources, environ=environ, options=evolve(sources.options, demo=True)))


def _read(name: str) -> str:
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: it is not UTF-8 text") from None
    except OSError as cause:
        raise ConfigError(f"{name}: it cannot be read: {os.strerror(cause.errno or 0)}") from None
