"""The document of the admin API, and what it has in common with the API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from openapi_spec_validator import validate

from llmproxy import __version__
from llmproxy.backend.effects import State
from llmproxy.web.api.answers import flag
from llmproxy.web.api.document import read_document
from llmproxy.web.api.operations import OPERATIONS, Operation
from tests.openapi import described
from tests.unit.test_api import ApiCase

DESCRIBED = described().operations()
IDS = [f"{one.method} {one.path}" for one in OPERATIONS]


def test_it_is_openapi() -> None:
    """A validator of OpenAPI 3.1 finds no fault in it."""
    document = read_document()
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_its_paths_are_those_that_are_served() -> None:
    """None is forgotten, none is invented, and each has a name of its own."""
    assert set(DESCRIBED) == {(one.method, one.path) for one in OPERATIONS}
    assert len(OPERATIONS) == len(DESCRIBED)
    names = [one["operationId"] for one in DESCRIBED.values()]
    assert len(set(names)) == len(names)
    served = described().document["servers"]
    assert [one["url"] for one in served] == ["/api"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_what_is_asked_is_described(operation: Operation) -> None:
    """The parameters of each path and its body are those that are read."""
    found = DESCRIBED[operation.method, operation.path]
    parameters = [described().resolve(one) for one in found["parameters"]]
    named = {where: [one["name"] for one in parameters if one["in"] == where] for where in ("path", "query")}
    assert sorted(named["query"]) == sorted(operation.query)
    assert named["path"] == re.findall(r"{(\w+)}", operation.path)
    assert ("requestBody" in found) == operation.body
    assert found["summary"].endswith(".")


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_refusals_are_described(operation: Operation) -> None:
    """Those that each path may answer with."""
    answers = DESCRIBED[operation.method, operation.path]["responses"]
    assert {"400", "401", "403", "500"} <= set(answers)
    if operation.path.startswith("/backends/{") or operation.path.startswith("/leases/{"):
        assert "404" in answers
    verb = operation.method == "POST" and operation.path.startswith("/backends/")
    assert not verb or {"200", "202", "503"} <= set(answers)


def test_its_words_are_those_of_the_code() -> None:
    """States are those of the lifecycle, and flags those that are understood."""
    schemas = described().document["components"]["schemas"]
    assert set(schemas["State"]["enum"]) == set(State.__args__)  # type: ignore[attr-defined]
    for said in schemas["Flag"]["enum"]:
        request: Any = type("Asked", (), {"uri": b"/?x=" + said.encode()})
        assert flag(request, b"x") is (said in ("1", "true", "yes"))


def test_it_is_loaded_when_it_is_asked_for() -> None:
    """A proxy whose API is not asked has neither that nor the document in its memory."""
    code = "import sys, llmproxy.tap; print([name for name in sys.modules if 'web.api' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class ServedTests(ApiCase):
    """The document as it is published."""

    def test_it_is_published(self) -> None:
        """As JSON, with this version in it; the length alone for HEAD."""
        status, fields, body = self.ask(b"GET", "openapi.json").answer()
        self.assertEqual((status, fields["content-type"]), (200, "application/json"))
        found = json.loads(body)
        self.assertEqual(found, read_document())
        self.assertEqual(found["info"]["version"], __version__)
        status, again, nothing = self.ask(b"HEAD", "openapi.json").answer()
        self.assertEqual((status, again["content-length"], nothing), (200, str(len(body)), b""))

    def test_it_is_for_administrators(self) -> None:
        """As the paths that it describes."""
        self.assertEqual(self.client().get(b"/api/openapi.json").answer()[0], 403)
        self.assertEqual(self.client().get(b"/api/openapi.json", b"").answer()[0], 401)

    def test_events_are_as_described(self) -> None:
        """Each is an Event: changes of state, decisions and phases."""
        self.build(coder={"sleep": "1", "idle": 60.0}, chat={})
        self.warm("coder")
        self.clock.advance(60)
        self.turn()
        self.warm("chat")
        self.warm("coder")
        self.answered(self.post("leases", {"memory": 0.3, "seconds": 5}))
        self.clock.advance(5)
        self.turn()
        status, _, body = self.ask(b"GET", "events?follow=0").answer()
        self.assertEqual(status, 200)
        events = [json.loads(one[6:]) for one in body.decode().splitlines() if one.startswith("data: ")]
        for event in events:
            described().hold_to("#/components/schemas/Event", event)
        self.assertLessEqual({"start", "reap", "evict", "lease"}, {one.get("decision") for one in events})
