"""The published schema and the parser of llmproxy.yaml take the same documents.

What the schema cannot say, and these documents therefore leave out or allow for: ``${NAME}``; a key that
stands twice; routes that differ only in case; dates that no calendar has; two keys with one name or secret,
and a ``secret_env`` that is not set; and all that only looking at several fields or backends can tell.
"""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.config.fields import FIELDS
from llmproxy.config.file import SECTIONS, TOP, read_file
from llmproxy.config.keys import KEY_FIELDS, PREVIOUS_FIELDS
from llmproxy.config.schema import schema
from llmproxy.errors import ConfigError

VALIDATOR = jsonschema.Draft202012Validator(schema())

VALID: dict[str, Any] = {
    "listen": ["tcp:8000", "unix:/x"],
    "docker": {"host": "unix:///x", "compose_file": "c.yml"},
    "hosts": {
        "tower": {"docker": "ssh://me@tower:22/run/docker.sock", "gpus": {"0": {"memory": "24GiB"}}},
        "rack": {
            "docker": "tcp://10.0.0.5:2376",
            "tls": {"ca": "/c/ca.pem", "cert": "~/cert.pem", "key": "/c/key.pem"},
            "address": "10.0.0.5",
        },
    },
    "gpus": {"0": {"memory": "24GiB", "reserve": 1}, "1": None},
    "host_memory_for_sleep": "32GiB",
    "scheduler": {"max_wait_before_drain": "30s"},
    "limits": {"max_body": "64MiB", "max_connections": 10, "max_held": 1},
    "cors": {"origins": ["https://a.example:1", "*"]},
    "probes": {"user_agents": ["kube-probe"], "paths": ["/v1/models"], "health_completions": "refuse"},
    "default_route": "coder",
    "drain": 30,
    "stop_backends_on_exit": False,
    "state_dir": "/x",
    "defaults": {"idle": "10m", "gpu_memory": 0.5},
    "backends": {
        "coder": {"container": "x", "port": 8001, "models": ["a", 1], "sleep": False, "max_wait": None},
        "chat": {"image": "i", "args": ["--x", 0.5], "environment": {"A": None, "B": True}, "priority": -3},
        "far": {"runtime": "url", "url": "http://x", "request_defaults": {"a.b": [None]}, "hidden": True},
        "nothing": None,
    },
    "keys": [
        {"name": "a", "secret": "s", "admin": True, "routes": ["x"], "expires": "2030-01-31", "streams": 2},
        {"name": "b", "secret_env": "SET", "priority": -1, "may_evict": False},
    ],
}

# Small, so that a counterexample is found and told; each is right for some field and wrong for others.
values: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            1,
            2,
            -1,
            1.0,
            0.5,
            1.5,
            65535,
            65536,
            1_000_000,
            10**7 + 1,
            10**9 + 1,
            2**61,
        ),
        *(
            "",
            " ",
            "a",
            "/h",
            "/h h",
            "90s",
            "10m",
            "-1s",
            "14GiB",
            "14G",
            "0.5",
            "1.5",
            "3",
            "3000000",
            "auto",
        ),
        *("off", "1", "docker", "process", "generic", "key", "passthrough", "true", "2030-01-31", "unix:/x"),
        *(
            [],
            [1],
            ["a"],
            [""],
            [None],
            [True],
            [[]],
            {},
            {"A": 1},
            {"A": None},
            {"A": []},
            {"A=B": "c"},
            {"": "c"},
            {"model": "c"},
            {"model.a": 1},
            {"a..b": 1},
            "https://x",
            ["https://x/y"],
            ["*"],
            "refuse",
        ),
    ]
)
names = st.sampled_from(
    sorted(
        {
            *FIELDS,
            *KEY_FIELDS,
            *PREVIOUS_FIELDS,
            *TOP,
            *SECTIONS,
            *(key for section in SECTIONS.values() for key in section),
        }
        | {"memory", "odd", "coder", "V1", "a b", "Coder.x", "-a", "gpus", "backends", "defaults", "keys"}
    )
)


def _places(document: Any) -> list[Any]:
    """Every mapping and list of a document, itself included."""
    inner = (
        document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    )
    found = [place for item in inner for place in _places(item)]
    return [document, *found] if isinstance(document, dict | list) else []


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """The valid document with up to three things changed, added or taken away."""
    document = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(_places(document)))
        if isinstance(place, list):
            place.append(copy.deepcopy(draw(values)))
            continue
        key = draw(st.sampled_from(sorted(place)) if place and draw(st.booleans()) else names)
        if draw(st.integers(0, 4)):
            place[key] = copy.deepcopy(draw(values))
        else:
            place.pop(key, None)
    return document


TOGETHER = (
    "have the same secret",
    "which another one has",
    "is not set in the environment",
    "stands there twice",
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_schema_and_parser_take_the_same(document: dict[str, Any]) -> None:
    """A document is valid exactly when it can be read."""
    valid = VALIDATOR.is_valid(document)
    try:
        read_file(yaml.safe_dump(document), "llmproxy.yaml", {"SET": "x"})
    except ConfigError as error:
        told = str(error)
        assert not valid or any(words in told for words in TOGETHER), told
        assert "\n" not in told
    else:
        assert valid, [error.message for error in VALIDATOR.iter_errors(document)]


def test_dates() -> None:
    """A key expires at a date or at a moment, in UTC where it does not say otherwise, quoted or not."""

    def expires(written: str) -> float | None:
        text = f"keys: [{{name: a, secret: s, expires: {written}}}]"
        return read_file(text, "llmproxy.yaml", {}).keys[0].expires

    midnight = 1_893_456_000.0
    assert {expires("2030-01-01"), expires("'2030-01-01'"), expires("2030-01-01T00:00:00Z")} == {midnight}
    assert expires("'2030-01-01 01:00+01:00'") == midnight
    for wrong in ("soon", "'2030-13-01'", "1893456000", "'20300101'"):
        with pytest.raises(ConfigError, match="as in 2027-01-31"):
            expires(wrong)
