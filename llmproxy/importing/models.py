"""One model of llama-swap as a backend: its command becomes a process or a container.  Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import define

from llmproxy.importing.docker_run import DockerRun, read_docker_run
from llmproxy.importing.filters import request_overrides
from llmproxy.importing.macros import PORT, expanded, unknown_macros
from llmproxy.importing.names import Names
from llmproxy.importing.reading import listed
from llmproxy.importing.remarks import Remarks

__all__ = ["ALONE", "Model", "convert_model"]

ALONE = 0.9
"""Share of a GPU that two models cannot both have: llama-swap runs one at a time."""

_LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "::1", "")
_SHOWN_ONLY = "it is only shown in lists of models; llmproxy's list has what it knows itself"
_WITHOUT = {
    "name": _SHOWN_ONLY,
    "description": _SHOWN_ONLY,
    "metadata": _SHOWN_ONLY,
    "capabilities": _SHOWN_ONLY,
    "sendLoadingState": "who waits for a stream gets comments that alter no answer (docs/cold-start.md)",
    "timeouts": "an answer may take as long as it takes; the start has start_timeout, a waiter max_wait",
    "compat": "a WebSocket starts a model here like any other request",
}
_READ = frozenset(
    [
        "cmd",
        "cmdStop",
        "proxy",
        "aliases",
        "env",
        "checkEndpoint",
        "ttl",
        "unlisted",
        "useModelName",
        "concurrencyLimit",
        "filters",
        "macros",
        "unloadTimeout",
        "healthCheckTimeout",
    ]
)
_SECONDS = {"ttl": "idle", "unloadTimeout": "stop_grace", "healthCheckTimeout": "start_timeout"}


@define
class Model:
    """A backend that was made of one.

    :ivar fields: as they are to be written.
    :ivar shares: whether what it needs of a GPU is not known from its command.
    """

    name: str
    route: str
    fields: dict[str, Any]
    shares: bool = False


def convert_model(
    name: str, settings: Mapping[str, Any], macros: Sequence[tuple[str, Any]], names: Names, remarks: Remarks
) -> Model:
    """The backend for one model.

    :param macros: the file's own, by name, in their order.
    """
    place = f"models.{name}"
    own = settings.get("macros")
    merged = {"MODEL_ID": name, **dict(macros), **(own if isinstance(own, dict) else {})}
    raw = {key: value for key, value in settings.items() if key != "macros"}
    for field in ("cmd", "cmdStop"):
        if isinstance(raw.get(field), str):
            raw[field] = _without_comments(raw[field])
    filled: dict[str, Any] = expanded(raw, list(merged.items()))
    for key in ("cmd", "proxy", "checkEndpoint", "env", "filters"):
        for unknown in unknown_macros(filled.get(key)):
            if unknown != "PORT":
                remarks.add(f"{place}.{key}", "check", f"there is no macro {unknown!r}; it stays as it is")
    route = names.route(name)
    if route != name:
        remarks.add(place, "changed", f"its path is /{route}; models are still asked for by their names")
    model = Model(name, route, {})
    _where_it_runs(model, place, filled, remarks)
    _names(model, place, filled, names, remarks)
    _tuning(model, place, filled, remarks)
    for key, value in filled.items():
        if key in _WITHOUT and value not in (None, "", {}, []):
            remarks.add(f"{place}.{key}", "left out", _WITHOUT[key])
        elif key not in _WITHOUT and key not in _READ:
            remarks.add(f"{place}.{key}", "left out", "llmproxy has nothing that is like it")
    return model


def _without_comments(command: str) -> str:
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def _words(command: str) -> list[str]:
    """A command line as llama-swap reads it: lines are joined, and a backslash may end each."""
    lines = [line.strip().removesuffix("\\") for line in command.split("\n")]
    return [word.replace("${PORT}", PORT) for word in shlex.split(" ".join(lines))]


def _where_it_runs(model: Model, place: str, filled: Mapping[str, Any], remarks: Remarks) -> None:
    command = filled.get("cmd")
    command = command if isinstance(command, str) else ""
    proxy = str(filled.get("proxy") or "http://localhost:${PORT}").replace("${PORT}", PORT)
    try:
        words = _words(command)
    except ValueError:
        words = command.replace("${PORT}", PORT).split()
        remarks.add(f"{place}.cmd", "check", "a quotation mark is not closed")
    if not words:
        model.fields |= {"runtime": "url", "url": proxy}
        remarks.add(place, "check", "it has no cmd: taken for a server that runs already, at its proxy")
        return
    try:
        host, port, path = _parts(proxy)
    except ValueError:
        remarks.add(
            f"{place}.proxy", "check", "it is no URL; the server is asked at the port that it is given"
        )
        host, port, path = "", PORT, ""
    if path not in ("", "/"):
        remarks.add(f"{place}.proxy", "left out", f"requests go to the server's own paths, without {path}")
    run = read_docker_run(words)
    if run is not None and _container(model, place, run, port, filled, remarks):
        return
    _process(model, place, words, host, port, filled, remarks)
    if run is not None and not {"--rm", "--init"} <= set(words):
        # Killing the docker command leaves its container behind.
        remarks.add(f"{place}.cmd", "check", "give it --rm and --init, so that its container ends with it")


def _parts(proxy: str) -> tuple[str, str, str]:
    """Host, port (or the mark for the one that is given) and path."""
    parts = urlsplit(proxy.replace(PORT, "0"))
    if PORT in parts.netloc or ":" + PORT in proxy:
        return parts.hostname or "", PORT, parts.path
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "", str(port or (443 if parts.scheme == "https" else 80)), parts.path


def _container(
    model: Model, place: str, run: DockerRun, port: str, filled: Mapping[str, Any], remarks: Remarks
) -> bool:
    """Have llmproxy create the container that ``docker run`` would; False: it cannot."""
    inside = run.ports.get(port)
    known = inside is not None and inside.isascii() and inside.isdecimal() and 0 < int(inside) < 65536
    if run.unknown or inside is None or not known or any(PORT in each for each in run.args):
        why = f"{', '.join(dict.fromkeys(run.unknown))}: llmproxy's own containers have no such options"
        if not run.unknown:
            why = f"no -p leads from its proxy's port to one port of the container ({inside or 'none'})"
        remarks.add(f"{place}.cmd", "changed", f"{why}; docker run stays the command of a process")
        return False
    fields = model.fields
    vllm = "vllm" in f"{run.image} {' '.join(run.args)}"
    if not vllm:
        fields["engine"] = "generic"
        model.shares = True
    if run.name:
        fields["container"] = run.name
    fields["image"] = run.image
    if run.args:
        fields["args"] = list(run.args)
    own = _environment(place, filled, remarks)
    environment = {
        # Without a value it is that of the command's own environment.
        name: own.pop(name, f"\ue000{name}\ue001") if value is None else value
        for name, value in run.environment.items()
    }
    if environment:
        fields["environment"] = environment
    if own:
        remarks.add(f"{place}.env", "left out", f"{', '.join(own)}: it was for the docker command itself")
    if run.volumes:
        fields["volumes"] = list(run.volumes)
    fields["port"] = int(inside)
    if run.gpus == ("all",):
        if not vllm:
            fields["gpus"] = ["0"]
            remarks.add(f"{place}.cmd", "check", "--gpus all: it gets GPU 0; add those that it is to have")
    elif run.gpus:
        fields["gpus"] = list(run.gpus)
    if run.shared_memory and not vllm:
        remarks.add(f"{place}.cmd", "left out", "--ipc, --shm-size: its shared memory is Docker's 64 MiB")
    if filled.get("cmdStop"):
        remarks.add(f"{place}.cmdStop", "left out", "llmproxy stops the container itself")
    return True


def _process(
    model: Model,
    place: str,
    words: list[str],
    host: str,
    port: str,
    filled: Mapping[str, Any],
    remarks: Remarks,
) -> None:
    fields = model.fields
    fields["runtime"] = "process"
    if "vllm" not in " ".join(words):
        fields["engine"] = "generic"
        model.shares = True
    fields["command"] = words
    environment = _environment(place, filled, remarks)
    if environment:
        fields["environment"] = environment
    if host not in _LOCAL:
        remarks.add(f"{place}.proxy", "changed", f"a process is asked at 127.0.0.1, and not at {host}")
    if port != PORT:
        if port.isdecimal():
            fields["port"] = int(port)
        if any(PORT in word for word in words):
            remarks.add(f"{place}.proxy", "check", f"its command is given port {port}, as its proxy says")
    elif not any(PORT in word for word in words):
        remarks.add(
            f"{place}.cmd", "check", "it does not name its port: it is told by PORT in its environment"
        )
    if filled.get("cmdStop"):
        remarks.add(
            f"{place}.cmdStop", "left out", "a process and its children get TERM, and KILL after stop_grace"
        )


def _environment(place: str, filled: Mapping[str, Any], remarks: Remarks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in listed(filled.get("env")):
        name, equals, value = str(pair).partition("=")
        if equals and name:
            found[name] = value.replace("${PORT}", PORT)
        else:
            remarks.add(f"{place}.env", "left out", f"{name!r} has no value")
    return found


def _names(model: Model, place: str, filled: Mapping[str, Any], names: Names, remarks: Remarks) -> None:
    upstream = str(filled.get("useModelName") or model.name)
    wanted = [model.name, *_aliases(filled)]
    free = []
    for name in dict.fromkeys(wanted):
        other = names.claim(name, model.name)
        if other is not None:
            remarks.add(f"{place}.aliases", "left out", f"{name!r} is a name of {other} already")
        elif name != upstream:
            free.append(name)
    other = names.claim(upstream, model.name)
    if other is not None:
        remarks.add(
            f"{place}.useModelName",
            "changed",
            f"{upstream!r} is a name of {other}, too: requests keep the name {model.name!r}",
        )
        upstream = model.name
        free = [name for name in free if name != upstream]
    model.fields["models"] = [upstream]
    if free:
        model.fields["aliases"] = free


def _aliases(filled: Mapping[str, Any]) -> list[str]:
    aliases = []
    for alias in listed(filled.get("aliases")):
        written = alias.get("id") if isinstance(alias, dict) else alias
        if written:
            aliases.append(str(written))
    filters = filled.get("filters")
    by_name = filters.get("setParamsByID") if isinstance(filters, dict) else None
    return [*aliases, *(str(name) for name in (by_name if isinstance(by_name, dict) else {}))]


def _tuning(model: Model, place: str, filled: Mapping[str, Any], remarks: Remarks) -> None:
    fields = model.fields
    check = filled.get("checkEndpoint")
    if check == "none":
        remarks.add(
            f"{place}.checkEndpoint", "check", "llmproxy hands over when a path answers 2xx: is it /health?"
        )
    elif check and check != "/health":
        fields["health"] = check if str(check).startswith("/") else f"/{check}"
    for theirs, ours in _SECONDS.items():
        value = filled.get(theirs)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            continue  # -1 is the default
        if value or ours == "idle":
            fields[ours] = value
    limit = filled.get("concurrencyLimit")
    if isinstance(limit, int) and limit > 0:
        fields["max_in_flight"] = limit
        remarks.add(
            f"{place}.concurrencyLimit", "changed", "what is beyond it waits; 429 comes at max_waiting"
        )
    if filled.get("unlisted") is True:
        fields["hidden"] = True
    others = any(name != model.name for name in _aliases(filled))
    overrides = request_overrides(f"{place}.filters", filled.get("filters"), model.name, others, remarks)
    if overrides:
        fields["request_overrides"] = overrides
