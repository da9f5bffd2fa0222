"""Errors as the OpenAI API writes them: `{"error": {"message", "type", "param", "code"}}`.

https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from datong.errors import (
    Cancelled,
    ContextOverflow,
    DatongError,
    DtypeError,
    InvalidRequest,
    ShapeError,
    TemplateError,
    TokenizerError,
    Unsupported,
)

_PATH = re.compile(r" - at `(?:key in )?\$?\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]+)`")
_FIRST_WORD = re.compile(r"^([a-z][a-z_]*)\b")


class ApiError(Exception):
    """What a client did wrong, or why it cannot be served now."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON document."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The same as bytes."""
        return msgspec.json.encode(self.body())


def unsupported(param: str, wanted: str) -> ApiError:
    """A part of the API that this server does not have, or not for this model."""
    return ApiError(400, wanted, code="unsupported_parameter", param=param)


def invalid(param: str, wanted: str) -> ApiError:
    """A value that is out of its range."""
    return ApiError(400, wanted, code="invalid_value", param=param)


def no_model(name: str, known: list[str]) -> ApiError:
    """404; `known` are the names that a client may use."""
    text = f"The model `{name[:80]}` does not exist; models: {', '.join(known)}"
    return ApiError(404, text, code="model_not_found", param="model")


def busy(retry_after: int) -> ApiError:
    """429: the queue is full."""
    text = f"The server's queue is full; try again in {retry_after} s"
    return ApiError(429, text, code="queue_full", kind="rate_limit_error", headers={"Retry-After": str(retry_after)})


def draining() -> ApiError:
    """503: the server is going down."""
    text = "The server is shutting down and takes no new requests"
    return ApiError(503, text, code="shutting_down", headers={"Retry-After": "5", "Connection": "close"})


def deadline(seconds: float) -> ApiError:
    """408: nothing was generated in time. Another try would take as long, so the official client must not make one."""
    text = f"No token was generated within `timeout_s` = {seconds:g} s; the work was dropped"
    return ApiError(408, text, code="deadline_exceeded", param="timeout_s", headers={"x-should-retry": "false"})


def from_validation(error: Exception) -> ApiError:
    """Of msgspec: what is wrong with a body, and where."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return ApiError(400, f"The body should be JSON in UTF-8: {text}", code="invalid_json")
    at = _PATH.search(text)
    path = at.group(1) if at else ""
    field = _FIELD.search(text)
    code = "invalid_type"
    if field:
        path = f"{path}.{field.group(1)}" if path else field.group(1)
        code = "unknown_parameter" if "unknown" in text else "missing_required_parameter"
    path = path.replace("[...]", "[]")
    message = _PATH.sub("", text)
    return ApiError(400, f"{path}: {message}" if path else message, code=code, param=path or None)


def from_engine(error: BaseException, prompt: str = "messages") -> ApiError:
    """Of the engine: whose fault it is decides on 400 or 500. `prompt`: the field that a prompt came in."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, DatongError):
        return ApiError(500, "The server failed; its log says why", code="internal_error")
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    if isinstance(error, ContextOverflow):
        return ApiError(400, text, code="context_length_exceeded", param=prompt)
    if isinstance(error, TemplateError):
        return ApiError(400, f"chat template: {text}", code="invalid_messages", param="messages")
    if isinstance(error, (InvalidRequest, ShapeError, DtypeError, TokenizerError, Unsupported)):
        word = _FIRST_WORD.match(error.message)
        param = word.group(1) if word and ("_" in word.group(1) or word.group(1) in _SHORT) else None
        return ApiError(400, text, code="invalid_value", param=param)
    if isinstance(error, Cancelled):
        return ApiError(499, text, code="cancelled")
    return ApiError(500, text, code="device_error")


_SHORT = frozenset({"temperature", "seed", "stop", "logprobs", "n", "tools", "messages"})
