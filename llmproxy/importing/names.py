"""Routes for the names that models have elsewhere, and which name belongs to whom.  Pure."""

from __future__ import annotations

import re

from attrs import define, field

from llmproxy.config.layers import RESERVED

__all__ = ["Names"]


@define
class Names:
    """What is taken already.

    :ivar routes: by model.
    """

    routes: dict[str, str] = field(factory=dict)
    _owners: dict[str, str] = field(factory=dict)

    def route(self, model: str) -> str:
        """A route for a model: its own name as far as a path may be called so."""
        slug = re.sub(r"[^a-z0-9._-]+", "-", model.lower()).lstrip("._-").rstrip("-") or "model"
        if slug in RESERVED:
            slug += "-model"
        route, number = slug, 1
        while route in self.routes.values():
            number += 1
            route = f"{slug}-{number}"
        self.routes[model] = route
        return route

    def claim(self, name: str, model: str) -> str | None:
        """Have requests for a name go to a model.

        :return: the other model that has it already.
        """
        owner = self._owners.setdefault(name, model)
        return None if owner == model else owner
