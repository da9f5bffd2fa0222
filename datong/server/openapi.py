"""`GET /openapi.json`: the server's own description, made from the same types that read and write the bodies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from datong import __version__
from datong.server import answers, schemas

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
ERRORS = {
    "400": "The request is wrong; `param` says where.",
    "401": "An API key is needed, or it is not known.",
    "404": "There is no such model.",
    "408": "The body came too slowly, or the deadline passed before the first token.",
    "413": "The body is too large.",
    "429": "The queue is full; `Retry-After` says when to come again.",
    "500": "The server failed.",
    "503": "The server is going down.",
}
_GET_ERRORS = ("401", "404", "500")


class ErrorDetail(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """Every error has this form."""

    error: ErrorDetail


@dataclass(frozen=True)
class Operation:
    """One row of the table."""

    method: str
    path: str
    summary: str
    answer: type
    body: type | None = None
    streams: bool = False
    errors: tuple[str, ...] = _GET_ERRORS


_POST = tuple(ERRORS)
OPERATIONS = (
    Operation("get", "/v1/models", "The models", answers.ModelList),
    Operation("get", "/v1/models/{name}", "One model", answers.ModelCard),
    Operation("post", "/v1/chat/completions", "Chat", answers.Chat, schemas.ChatRequest, True, _POST),
    Operation("post", "/v1/completions", "Continue a text", answers.Text, schemas.CompletionRequest, True, _POST),
    Operation("post", "/v1/embeddings", "Texts as vectors", answers.Embeddings, schemas.EmbeddingRequest, errors=_POST),
    Operation("post", "/v1/responses", "A response", answers.ResponseObject, schemas.ResponsesRequest, True, _POST),
    Operation("post", "/tokenize", "Text to token ids", answers.Tokens, schemas.TokenizeRequest, errors=_POST),
    Operation("post", "/detokenize", "And back", answers.Detokenized, schemas.DetokenizeRequest, errors=_POST),
    Operation("get", "/health", "Does the process answer?", answers.Status, errors=("500",)),
    Operation("get", "/ready", "Are new requests taken?", answers.Status, errors=("500", "503")),
)


@cache
def document(models: tuple[str, ...]) -> bytes:
    """OpenAPI 3.1 of a server with these models."""
    kinds = [Error, *(kind for row in OPERATIONS for kind in (row.answer, row.body) if kind)]
    kinds = list(dict.fromkeys(kinds))
    references, components = msgspec.json.schema_components(kinds, ref_template=REF)
    reference = dict(zip(kinds, references, strict=True))
    for schema in components.values():
        asked = schema.get("properties", {}).get("model")
        if asked == {"type": "string"}:
            schema["properties"]["model"] = {"enum": [*models]}
    paths: Json = {}
    for row in OPERATIONS:
        paths.setdefault(row.path, {})[row.method] = _operation(row, reference, models)
    found = {
        "openapi": "3.1.0",
        "info": {"title": "Datong", "version": __version__, "description": "The OpenAI API in front of packages."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
    return msgspec.json.encode(found)


def _operation(row: Operation, reference: dict[type, Any], models: tuple[str, ...]) -> Json:
    content: Json = {"application/json": {"schema": reference[row.answer]}}
    if row.streams:
        content["text/event-stream"] = {}
    found: Json = {"summary": row.summary, "responses": {"200": {"description": "Done.", "content": content}}}
    for status in row.errors:
        schema = reference[row.answer] if row.path == "/ready" else reference[Error]
        found["responses"][status] = {
            "description": ERRORS[status],
            "content": {"application/json": {"schema": schema}},
        }
    if row.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference[row.body]}}}
    if "{name}" in row.path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"enum": [*models]}}]
    return found
