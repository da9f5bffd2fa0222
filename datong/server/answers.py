"""What the server answers: OpenAI's objects. `UNSET` fields are left out of the JSON."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Json = dict[str, Any]
Finish = str | None  # stop, length, tool_calls; `timeout` beyond OpenAI's


class PromptDetails(Struct):
    """Of the prompt's tokens."""

    cached_tokens: int = 0


class CompletionDetails(Struct):
    """Of the answer's tokens."""

    reasoning_tokens: int = 0


class Usage(Struct):
    """Tokens of one call; choices share their prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct):
    """One alternative; `bytes` is its UTF-8, which a single token need not fill whole characters with."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct):
    """A chosen token and its alternatives, likeliest first."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Of a message."""

    content: list[TokenLogprob] | None
    refusal: None = None


class Function(Struct):
    """A call's name and arguments; in a stream both may come in pieces."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(Struct):
    """One call of a tool; `index` only in streams."""

    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Message(Struct):
    """What the assistant said."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(Struct):
    """One answer."""

    index: int
    message: Message
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None


class Chat(Struct):
    """https://platform.openai.com/docs/api-reference/chat/object."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class Delta(Struct):
    """What is new in a message."""

    content: str | UnsetType | None = UNSET
    role: Literal["assistant"] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(Struct):
    """Of a stream."""

    index: int
    delta: Delta
    finish_reason: Finish = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct):
    """https://platform.openai.com/docs/api-reference/chat/streaming."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None


class TextLogprobs(Struct):
    """Of a completion; parallel lists, one entry per token. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Struct):
    """One completion."""

    index: int
    text: str
    finish_reason: Finish = None
    logprobs: TextLogprobs | None = None


class Text(Struct):
    """https://platform.openai.com/docs/api-reference/completions/object; also a piece of its stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None


class OutputText(Struct, tag_field="type", tag="output_text"):
    """What was said."""

    text: str
    annotations: list[Json]
    logprobs: list[TokenLogprob]


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """What was thought."""

    text: str


class OutputMessage(Struct, tag_field="type", tag="message"):
    """An item of a response."""

    id: str
    role: Literal["assistant"]
    content: list[OutputText]
    status: Literal["completed", "in_progress"]


class OutputReasoning(Struct, tag_field="type", tag="reasoning"):
    """An item of a response."""

    id: str
    summary: list[Json]
    content: list[ReasoningText]
    status: Literal["completed", "in_progress"]


class OutputCall(Struct, tag_field="type", tag="function_call"):
    """An item of a response."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "in_progress"]


class ResponseUsage(Struct):
    """The words of this part of the API."""

    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int


class IncompleteDetails(Struct):
    """Why a response is not whole."""

    reason: str  # max_output_tokens; `timeout` beyond OpenAI's


class ResponseObject(Struct):
    """https://platform.openai.com/docs/api-reference/responses/object; what the request said comes back as it was."""

    id: str
    created_at: int
    status: Literal["completed", "incomplete", "in_progress"]
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputReasoning | OutputCall]
    parallel_tool_calls: bool
    temperature: float | None
    text: Json
    tool_choice: str | Json
    tools: list[Json]
    top_p: float | None
    usage: ResponseUsage | None
    error: None = None
    object: Literal["response"] = "response"
    previous_response_id: None = None
    store: bool = False
    truncation: Literal["disabled"] = "disabled"


class Embedded(Struct):
    """One text."""

    embedding: list[float] | str
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddedUsage(Struct):
    """Tokens of all texts of a call."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    """https://platform.openai.com/docs/api-reference/embeddings/create."""

    data: list[Embedded]
    model: str
    usage: EmbeddedUsage
    object: Literal["list"] = "list"


class ModelCard(Struct):
    """https://platform.openai.com/docs/api-reference/models/object; the lower fields are ours."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    context_length: int | UnsetType = UNSET
    family: str | UnsetType = UNSET
    license: str | UnsetType | None = UNSET
    device: str | UnsetType = UNSET
    evidence: str | UnsetType = UNSET
    loaded: bool = True  # others are loaded when somebody asks them


class ModelList(Struct):
    """Of `GET /v1/models`."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokens(Struct):
    """Of `POST /tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Struct):
    """Of `POST /detokenize`."""

    prompt: str


class Status(Struct):
    """Of `/health` and `/ready`."""

    status: str
    models: list[str] | UnsetType = UNSET
