"""Which of llama-swap's models may run at a time: its groups and its matrix, as shares of a GPU.  Pure.

llama-swap is told which models fit together; llmproxy looks at what each needs of a GPU. Where a command does
not tell that, a model gets the share that has the same come of it as its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmproxy.importing.models import ALONE, Model
from llmproxy.importing.reading import listed
from llmproxy.importing.remarks import Remarks

__all__ = ["share_gpus"]

_BETTER = "give gpu_memory what they really need, as in 6GiB, and llmproxy runs side by side what fits"


def share_gpus(document: Mapping[str, Any], models: Mapping[str, Model], remarks: Remarks) -> None:
    """Give the models what their groups mean."""
    shares = {name: ALONE for name, model in models.items() if model.shares}
    place, groups = _groups(document)
    for group, settings in groups.items():
        if isinstance(settings, dict):
            _group(f"{place}.{group}", settings, models, shares, remarks)
    matrix_place, matrix = _matrix(document)
    if matrix is not None:
        _costs(matrix_place, matrix, models, remarks)
        remarks.add(
            f"{matrix_place}.sets",
            "left out",
            f"what runs together is what fits on a GPU; until then one model at a time: {_BETTER}",
        )
    for name, share in shares.items():
        models[name].fields["gpu_memory"] = share
    if len(shares) > 1 and not groups and matrix is None:
        remarks.add("models", "check", f"one at a time, as llama-swap does without groups: {_BETTER}")


def _settings(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = document.get("routing")
    for key in ("router", "settings"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _groups(document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    for place, value in (
        ("groups", document.get("groups")),
        ("routing.router.settings.groups", _settings(document).get("groups")),
    ):
        if isinstance(value, dict) and value:
            return place, value
    return "groups", {}


def _matrix(document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    if isinstance(document.get("matrix"), dict):
        return "matrix", document["matrix"]
    routing: Any = document.get("routing")
    router = routing.get("router") if isinstance(routing, dict) else None
    inner = _settings(document).get("matrix")
    # Both may stand there; `use` says which of them counts.
    used = isinstance(router, dict) and router.get("use") == "matrix" and isinstance(inner, dict)
    return "routing.router.settings.matrix", inner if used else None


def _group(
    place: str,
    settings: Mapping[str, Any],
    models: Mapping[str, Model],
    shares: dict[str, float],
    remarks: Remarks,
) -> None:
    members = [name for name in map(str, listed(settings.get("members"))) if name in models]
    together = settings.get("swap") is False
    apart = settings.get("exclusive") is False
    unknown = [name for name in members if name in shares]
    if settings.get("persistent") is True:
        for name in members:
            models[name].fields["pinned"] = True
        if any(models[name].fields.get("idle") for name in members):
            remarks.add(
                f"{place}.persistent", "changed", "pinned models are not stopped for being idle either"
            )
    if apart:
        for name in unknown:
            shares[name] = 0
        if unknown:
            remarks.add(
                f"{place}.exclusive",
                "check",
                f"{', '.join(unknown)}: taken to need nothing of a GPU, so that they run beside the others;"
                f" {_BETTER}",
            )
        if not together and len(members) > 1:
            remarks.add(f"{place}.swap", "left out", "its members may run together: nothing keeps them apart")
    elif together and unknown:
        share = int(ALONE / len(members) * 1000) / 1000
        for name in unknown:
            shares[name] = share
        remarks.add(f"{place}.swap", "check", f"its members share a GPU, {share:g} for each; {_BETTER}")


def _costs(place: str, matrix: Mapping[str, Any], models: Mapping[str, Model], remarks: Remarks) -> None:
    costs = matrix.get("evict_costs")
    short = matrix.get("vars")
    for name, cost in (costs if isinstance(costs, dict) else {}).items():
        model = models.get(str(short.get(name, name) if isinstance(short, dict) else name))
        if model is not None and isinstance(cost, int | float):
            model.fields["priority"] = max(1, min(round(cost), 1000))
    if costs:
        remarks.add(
            f"{place}.evict_costs", "changed", "priority: of idle models the one with less leaves first"
        )
