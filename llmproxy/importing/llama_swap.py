"""llama-swap's ``config.yaml`` -> ``llmproxy.yaml``.  Pure.

Read as its own loader reads it (``internal/config`` and ``docs/config.example.yaml`` there, 2026):
``${env.NAME}`` first, then macros, the last one first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from attrs import frozen

from llmproxy.errors import ConfigError
from llmproxy.importing.filters import request_overrides
from llmproxy.importing.macros import expanded, has_variable, marked, variables, written
from llmproxy.importing.models import Model, convert_model
from llmproxy.importing.names import Names
from llmproxy.importing.reading import listed, read_with_lines
from llmproxy.importing.remarks import Remark, Remarks
from llmproxy.importing.rooms import share_gpus

__all__ = ["Conversion", "convert_llama_swap"]

_LOG_LEVELS = ("debug", "info", "warn", "error")
_LONGEST_START = 15
"""What llama-swap makes of a ``healthCheckTimeout`` that is less."""

_NOT_NEEDED = {
    "startPort": "${port} is any free port",
    "logTimeFormat": "the log has times as ISO 8601 has them",
    "logToStdout": "the models' own output is kept apart: llmproxy logs ROUTE",
    "sendLoadingState": "who waits for a stream gets comments that alter no answer (docs/cold-start.md)",
    "metricsMaxInMemory": "usage.history is how many requests are kept",
    "store": "requests and usage are kept in state_dir",
    "captureBuffer": "bodies of requests and answers are not kept",
    "performance": "the dashboard and /metrics show GPUs without a setting",
    "ui": "the dashboard shows who asks by key and address",
    "upstream": "see `probes` for paths that are to start nothing",
    "includeAliasesInList": "/v1/models lists each model once; all its names are good for requests",
    "profiles": "llmproxy has no sets of names to switch between; change aliases and reload (HUP)",
}
_READ = frozenset(
    [
        "models",
        "macros",
        "apiKeys",
        "peers",
        "hooks",
        "groups",
        "matrix",
        "routing",
        "selectors",
        "globalTTL",
        "healthCheckTimeout",
        "unloadTimeout",
        "logLevel",
    ]
)


@frozen
class Conversion:
    """What came of a file.

    :ivar document: ``llmproxy.yaml``, ready to be written.
    :ivar variables: names that the environment must have when llmproxy starts.
    """

    document: dict[str, Any]
    remarks: tuple[Remark, ...]
    variables: tuple[str, ...] = ()


def convert_llama_swap(text: str, name: str) -> Conversion:
    """Convert the text of a configuration file.

    :param name: what errors call it.
    :raises llmproxy.errors.ConfigError: it is no configuration of llama-swap.
    """
    source, lines = read_with_lines(marked(text), name)
    if not isinstance(source.get("models"), dict) and not isinstance(source.get("peers"), dict):
        raise ConfigError(
            f"{name}: it is no configuration of llama-swap, for it has neither models nor peers"
        )
    remarks = Remarks(lines)
    document = _top(source, remarks)
    own = source.get("macros")
    macros = list(own.items()) if isinstance(own, dict) else []
    names = Names()
    models: dict[str, Model] = {}
    for model, settings in (source.get("models") or {}).items():
        if isinstance(settings, dict):
            models[str(model)] = convert_model(str(model), settings, macros, names, remarks)
        else:
            remarks.add(f"models.{model}", "left out", "it is no mapping of settings")
    share_gpus(source, models, remarks)
    _preload(source.get("hooks"), models, remarks)
    _selectors(source.get("selectors"), models, names, remarks)
    routing = source.get("routing")
    if isinstance(routing, dict) and routing.get("scheduler"):
        remarks.add(
            "routing.scheduler",
            "left out",
            "who waits the longest goes first; keys have a priority of their own",
        )
    backends = {model.route: model.fields for model in models.values()}
    backends.update(_peers(source.get("peers"), macros, names, remarks))
    document["backends"] = backends
    keys = _keys(source.get("apiKeys"), macros, remarks)
    if keys:
        document["keys"] = keys
    wanted = variables(document)
    return Conversion(
        written(document),
        tuple(remarks),
        tuple(dict.fromkeys([*wanted, *(key["secret_env"] for key in keys if "secret_env" in key)])),
    )


def _top(source: Mapping[str, Any], remarks: Remarks) -> dict[str, Any]:
    document: dict[str, Any] = {}
    # llama-swap stops nothing by itself unless it is told to.
    defaults: dict[str, Any] = {"idle": _number(source.get("globalTTL")) or 0}
    timeout = _number(source.get("healthCheckTimeout"))
    if timeout is not None:
        defaults["start_timeout"] = max(timeout, _LONGEST_START)
    grace = _number(source.get("unloadTimeout"))
    if grace:
        defaults["stop_grace"] = grace
    level = source.get("logLevel")
    if level in _LOG_LEVELS and level != "info":
        document["log"] = {"level": level}
    document["defaults"] = defaults
    for key, value in source.items():
        if key in _NOT_NEEDED and value not in (None, "", [], {}):
            remarks.add(str(key), "left out", _NOT_NEEDED[key])
        elif key not in _NOT_NEEDED and key not in _READ:
            remarks.add(str(key), "left out", "llmproxy has nothing that is like it")
    return document


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _preload(hooks: Any, models: Mapping[str, Model], remarks: Remarks) -> None:
    startup = hooks.get("on_startup") if isinstance(hooks, dict) else None
    if not isinstance(startup, dict):
        return
    for name in listed(startup.get("preload")):
        model = next((one for one in models.values() if _is_called(one, str(name).strip())), None)
        if model is None:
            remarks.add("hooks.on_startup.preload", "left out", f"there is no model {name!r}")
        else:
            model.fields["prewarm"] = True
    for key in startup:
        if key != "preload":
            remarks.add(f"hooks.on_startup.{key}", "left out", "llmproxy has nothing that is like it")


def _is_called(model: Model, name: str) -> bool:
    return name == model.name or name in model.fields.get("aliases", ())


def _selectors(selectors: Any, models: Mapping[str, Model], names: Names, remarks: Remarks) -> None:
    for name, settings in (selectors if isinstance(selectors, dict) else {}).items():
        place = f"selectors.{name}"
        settings = settings if isinstance(settings, dict) else {}
        targets = [str(target) for target in listed(settings.get("targets"))]
        found = [one for target in targets for one in models.values() if _is_called(one, target)]
        pinned = settings.get("strategy") == "pin"
        if not found or names.claim(str(name), found[0].name) is not None:
            remarks.add(place, "left out", "its first target is no model of this file")
            continue
        found[0].fields.setdefault("aliases", []).append(str(name))
        if not pinned:
            others = ", ".join(one.route for one in found[1:]) or "none"
            remarks.add(
                place,
                "changed",
                f"a name of its first target alone; with `fallback: [{others}]` another one answers while it"
                " is cold, whatever name it was asked by",
            )


def _peers(peers: Any, macros: list[tuple[str, Any]], names: Names, remarks: Remarks) -> dict[str, Any]:
    found = {}
    for name, settings in (peers if isinstance(peers, dict) else {}).items():
        place = f"peers.{name}"
        peer = expanded(settings, macros) if isinstance(settings, dict) else {}
        url = str(peer.get("proxy") or "")
        if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", url):
            remarks.add(f"{place}.proxy", "left out", "a peer needs a URL without user, query and fragment")
            continue
        if peer.get("apiKey"):
            remarks.add(
                place,
                "left out",
                "llmproxy has one key for all backends, VLLM_API_KEY, and would send that: ask it directly,"
                " or through something that has its key",
            )
            continue
        owner = f"peer {name}"
        models = []
        for model in map(str, listed(peer.get("models"))):
            other = names.claim(model, owner)
            if other is None:
                models.append(model)
            else:
                remarks.add(f"{place}.models", "left out", f"{model!r} is a name of {other} already")
        fields: dict[str, Any] = {
            "runtime": "url",
            "engine": "generic",
            "url": url.rstrip("/"),
            "models": models,
        }
        overrides = request_overrides(f"{place}.filters", peer.get("filters"), "", False, remarks)
        if overrides:
            fields["request_overrides"] = overrides
        if peer.get("timeouts"):
            remarks.add(f"{place}.timeouts", "left out", "an answer may take as long as it takes")
        remarks.add(
            f"{place}.proxy",
            "check",
            "requests to it carry the key in VLLM_API_KEY; and a path there must answer 2xx: set `health`",
        )
        found[names.route(str(name))] = fields
    return found


def _keys(keys: Any, macros: list[tuple[str, Any]], remarks: Remarks) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    seen = set()
    for value in listed(keys):
        secret = str(expanded(value, macros))
        if secret in seen or not secret:
            continue
        seen.add(secret)
        key: dict[str, Any] = {"name": f"key-{len(found) + 1}"}
        whole = list(variables(secret))
        if len(whole) == 1 and secret == f"\ue000{whole[0]}\ue001":
            key["secret_env"] = whole[0]
        elif has_variable(secret):
            key["secret"] = secret
        else:
            # What is compared is the digest: the secret itself need not stand in the new file.
            key["hash"] = f"sha256:{sha256(secret.encode()).hexdigest()}"
        found.append(key)
    if found:
        remarks.add(
            "apiKeys",
            "changed",
            "they may use models; `admin: true` for one of them, or LLMPROXY_ADMIN_KEY, opens /api and /ui/",
        )
    return found
