"""Holds answers of the admin API to the document that describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from llmproxy.web.api.document import read_document

__all__ = ["Described", "described"]

METHODS = ("get", "post", "put", "patch", "delete")
_BASE = "urn:document"


class Described:
    """The document, and what it says of an answer.

    Fields may be added to answers, which clients ignore; here each field has to be described.
    """

    def __init__(self) -> None:
        self.document = read_document()
        closed = _closed(deepcopy(self.document))
        resource = Resource.from_contents(closed, default_specification=DRAFT202012)
        registry: Registry[Any] = Registry().with_resource(_BASE, resource)
        self._registry = registry
        self._validators: dict[str, Draft202012Validator] = {}

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By method and path; each with the parameters of its path."""
        return {
            (method.upper(), path): {
                **item[method],
                "parameters": [*item.get("parameters", ()), *item[method].get("parameters", ())],
            }
            for path, item in self.document["paths"].items()
            for method in METHODS
            if method in item
        }

    def resolve(self, found: dict[str, Any]) -> dict[str, Any]:
        """That, or what it refers to."""
        return self.at(found["$ref"]) if "$ref" in found else found

    def at(self, pointer: str) -> dict[str, Any]:
        """What stands at a JSON pointer such as ``#/components/schemas/Backend``."""
        value: Any = self.document
        for step in pointer.removeprefix("#/").split("/"):
            value = value[step.replace("~1", "/").replace("~0", "~")]
        assert isinstance(value, dict)
        return value

    def path_of(self, target: str) -> str | None:
        """The path that a request target is of, as the document has it."""
        path = urlsplit(target).path
        if not path.startswith("/api/"):
            return None
        segments = [unquote(one) for one in path.rstrip("/").split("/")[2:]]
        for known in self.document["paths"]:
            wanted = known[1:].split("/")
            if len(wanted) == len(segments) and all(
                one.startswith("{") or one == given for one, given in zip(wanted, segments, strict=True)
            ):
                return str(known)
        return None

    def hold(self, method: str, target: str, status: int, fields: Mapping[str, str], body: bytes) -> None:
        """Hold an answer to it; nothing is said of other paths and methods.

        :param fields: header fields, names in lower case.
        :raises AssertionError: it is not as described.
        """
        path = self.path_of(target)
        method = "GET" if (head := method == "HEAD") else method
        operation = self.document["paths"].get(path, {}).get(method.lower())
        if path is None or operation is None:
            return
        about = f"{method} {target} -> {status}"
        assert str(status) in operation["responses"], f"{about} is not described"
        pointer = f"#/paths/{_escaped(path)}/{method.lower()}/responses/{status}"
        pointer = self.at(pointer).get("$ref", pointer)
        kinds = self.at(pointer)["content"]
        kind = fields["content-type"].partition(";")[0]
        assert kind in kinds, f"{about}: {kind} is not described"
        if status in (401, 405):
            assert ("www-authenticate" if status == 401 else "allow") in fields, about
        if kind == "application/json" and not head:
            self.hold_to(f"{pointer}/content/application~1json/schema", json.loads(body), about)

    def hold_to(self, pointer: str, value: Any, about: str = "") -> None:
        """Hold a value to a schema.

        :raises AssertionError: it is not as described.
        """
        validator = self._validators.get(pointer)
        if validator is None:
            schema = {"$ref": _BASE + pointer}
            validator = Draft202012Validator(schema, registry=self._registry)
            self._validators[pointer] = validator
        wrong = [f"{one.json_path}: {one.message}" for one in validator.iter_errors(value)]
        assert not wrong, f"{about or pointer}: {'; '.join(wrong)}"


def _escaped(path: str) -> str:
    return path.replace("~", "~0").replace("/", "~1")


def _closed(node: Any) -> Any:
    """The same, with objects that have no fields but those that are described."""
    if isinstance(node, dict):
        for value in node.values():
            _closed(value)
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        schemas = node.get("schemas")
        if isinstance(schemas, dict) and "Ended" in schemas:
            # Of what is made of parts, neither part is the whole.
            whole, more = deepcopy(schemas["Backend"]), schemas["Ended"]["allOf"][1]
            whole["properties"] |= more["properties"]
            whole["required"] += more["required"]
            schemas["Ended"] = whole
    elif isinstance(node, list):
        for value in node:
            _closed(value)
    return node


@cache
def described() -> Described:
    """The document, read once."""
    return Described()
