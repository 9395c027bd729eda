"""llama-swap's filters of requests as ``request_overrides``.  Pure."""

from __future__ import annotations

import re
from typing import Any

from llmproxy.config.fields import REQUEST_PATH
from llmproxy.importing.remarks import Remarks

__all__ = ["request_overrides"]


def request_overrides(place: str, filters: Any, model: str, others: bool, remarks: Remarks) -> dict[str, Any]:
    """What is put into every request.

    :param place: where the filters stand.
    :param others: whether the model has further names.
    """
    if not isinstance(filters, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in filters.items():
        where = f"{place}.{key}"
        if key in ("stripParams", "strip_params"):
            names = [
                name.strip() for name in str(value or "").split(",") if name.strip() not in ("", "model")
            ]
            found.update(_usable(where, dict.fromkeys(names), remarks))
            if names:
                remarks.add(
                    where,
                    "changed",
                    f"{', '.join(names)}: llmproxy takes no field away; it is set to null, which vLLM and"
                    " llama.cpp take for one that is not given",
                )
        elif key == "setParams" and isinstance(value, dict):
            found.update(_usable(where, value, remarks))
        elif key == "setParamsByID" and isinstance(value, dict):
            _by_name(where, value, model, others, found, remarks)
        elif value:
            remarks.add(where, "left out", "llmproxy changes requests by route, not by what they say")
    return found


def _by_name(
    where: str, value: dict[Any, Any], model: str, others: bool, found: dict[str, Any], remarks: Remarks
) -> None:
    own = value.get(model)
    if isinstance(own, dict):
        found.update(_usable(where, own, remarks))
        if others:
            remarks.add(where, "changed", f"what it sets for {model} is set for its other names, too")
    rest = [str(name) for name in value if name != model]
    if rest:
        remarks.add(
            where,
            "left out",
            f"{', '.join(rest)}: they are names of this model here, and set nothing; a second backend with"
            " request_overrides of its own would be a second process",
        )


def _usable(where: str, fields: dict[Any, Any], remarks: Remarks) -> dict[str, Any]:
    usable = {}
    for name, value in fields.items():
        if str(name) == "model":
            continue  # llama-swap does not change it either
        if re.search(REQUEST_PATH, str(name)):
            usable[str(name)] = value
        else:
            remarks.add(where, "left out", f"{name!r} is no path to a field of a request")
    return usable
