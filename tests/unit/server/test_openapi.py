"""The description names every route, and its schemas stand."""

from __future__ import annotations

import json

import jsonschema

from datong.server.app import ROUTES
from datong.server.openapi import document

FOUND = json.loads(document(("tiny",)))


def test_every_route_is_described() -> None:
    described = {(method.upper(), path) for path, row in FOUND["paths"].items() for method in row}
    for route in ROUTES:
        for method in (route.methods or set()) - {"HEAD"}:
            assert (method, route.path) in described


def test_the_models_are_named() -> None:
    assert FOUND["components"]["schemas"]["ChatRequest"]["properties"]["model"] == {"enum": ["tiny"]}


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(FOUND)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names and names <= FOUND["components"]["schemas"].keys()
    for schema in FOUND["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
