"""Request bodies. Names and meanings are OpenAI's; what goes beyond is marked so.

https://platform.openai.com/docs/api-reference/chat/create · …/completions/create
An unknown field is refused by name, so that a misspelt one is not silently without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Id = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all bodies."""


class StreamOptions(_Body):
    """https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(_Body, kw_only=True):
    """What every generation may say. Ranges are checked by the engine (SamplingParams)."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None  # these seven are accepted and have no effect here
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # beyond OpenAI's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0  # larger ones start first
    timeout_s: Seconds | None = None  # the work is dropped when it has passed


class ChatRequest(Sampling, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # beyond OpenAI's, as in vLLM: variables for the template
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    verbosity: str | None = None
    functions: Any = None
    function_call: Any = None


Ids = list[Id]


class CompletionRequest(Sampling, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | Id | Ids]
    max_tokens: Annotated[int, Meta(ge=0)] | None = 16
    logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    echo: bool | None = None
    best_of: Count | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None  # beyond OpenAI's: as for chat


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str
    input: str | list[str | Id | Ids]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None  # has no effect here
    # beyond OpenAI's
    pooling: Literal["mean", "last"] | None = None  # None: as the package says, else mean
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    timeout_s: Seconds | None = None


class ResponsesRequest(_Body):
    """`POST /v1/responses`."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    include: list[str] | None = None  # of what it may ask for, there are log-probabilities here
    top_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    max_tool_calls: int | None = None  # of tools that OpenAI runs; this one and the next ones have no effect here
    metadata: dict[str, str] | None = None
    store: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # beyond OpenAI's
    seed: int | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    timeout_s: Seconds | None = None


class TokenizeRequest(_Body):
    """`POST /tokenize`; not OpenAI's. A text, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Body):
    """`POST /detokenize`; not OpenAI's."""

    tokens: Ids
    model: str | None = None
    skip_special_tokens: bool = False


def chat_limit(body: ChatRequest) -> int | None:
    """The newer name counts."""
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        *(ChatRequest, CompletionRequest, EmbeddingRequest),
        *(ResponsesRequest, TokenizeRequest, DetokenizeRequest),
    )
}
