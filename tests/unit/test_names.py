"""Which backend serves a model: the index against a look at all backends."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llmproxy.backend.backend import Backend
from llmproxy.config.model import BackendSpec, Config
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import Facts
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers

NAMES = st.sampled_from(["a", "b", "c", "m", "n"])
ROUTES = ("a", "b", "c")

SPECS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(ROUTES),
    st.builds(
        dict,
        models=st.none() | st.lists(NAMES, max_size=2).map(tuple),
        aliases=st.lists(NAMES, max_size=2).map(tuple),
        port=st.sampled_from([1, 2]),
    ),
)
"""Settings by route; names overlap at will, as those that are read from containers may."""

STEPS = st.lists(
    SPECS | st.tuples(st.sampled_from(ROUTES), st.lists(NAMES, min_size=1, max_size=2)), max_size=8
)
"""What happens: the configuration is another one, or a container says what it serves."""


def linear(fleet: Fleet, model: str) -> Backend | None:
    """The rule itself: the first with that name of its own, else the last with that alias, else the route."""
    by_alias = None
    for backend in fleet.backends.values():
        if model in backend.models:
            return backend
        if model in backend.spec.aliases:
            by_alias = backend
    return by_alias or fleet.route(model)


@settings(deadline=None)
@given(STEPS)
def test_a_model_is_found_whatever_happened_before(steps: list[object]) -> None:
    """After every change of the configuration and every name that is learnt, the index follows the rule."""
    world = FakeController()
    config = Config()
    fleet = Fleet(Clock(), Servers().connect, {"docker": FakeRuntime(world)}, config)
    fleet.start()
    for step in steps:
        if isinstance(step, dict):
            specs = {
                route: BackendSpec(route=route, container=route, **given) for route, given in step.items()
            }
            config = evolve(config, backends=specs)
            fleet.apply(config)
        else:
            assert isinstance(step, tuple)
            route, names = step
            world.set_facts(route, Facts(("vllm", "serve", "--served-model-name", *names)))
            world.change(route)
        for model in ("a", "B", "b", "c", "m", "n", "other"):
            assert fleet.serving(model) is linear(fleet, model)
