"""Names for the shell to complete: from the running proxy, quickly, and silently when it is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from llmproxy.cli.client import Api, ApiError, connect

__all__ = ["backend_names", "lease_names"]

# Whoever presses the tabulator key waits for it.
PATIENCE = 0.7


def _names(
    context: click.Context, incomplete: str, ask: Callable[[Api], list[dict[str, Any]]], field: str
) -> list[str]:
    try:
        api = connect(context.find_root().params.get("url"), timeout=PATIENCE)
        found = [str(each[field]) for each in ask(api)]
    except (ApiError, KeyError, TypeError):
        return []
    given = context.params.get("names") or ()
    return [name for name in found if name.startswith(incomplete) and name not in given]


def backend_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Backends that are not named yet."""
    return _names(context, incomplete, Api.backends, "name")


def lease_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Leases that are not named yet."""
    return _names(context, incomplete, Api.leases, "id")
