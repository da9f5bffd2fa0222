"""From a request body to a Job: token ids, sampling parameters, limits. Runs in a worker thread: texts can be long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datong.engine.defaults import sampling
from datong.engine.guide import Guide
from datong.engine.model import Model
from datong.engine.request import Request
from datong.engine.sampler import SamplingParams
from datong.errors import DatongError, InvalidRequest
from datong.server.errors import from_engine, invalid
from datong.server.hosts import Host
from datong.server.job import Job
from datong.server.log import log
from datong.server.messages import for_template, tools_asked
from datong.server.schemas import ChatRequest, CompletionRequest, Sampling, chat_limit
from datong.server.scoring import PromptScore
from datong.server.settings import Settings
from datong.server.structured import call_guides, format_guides
from datong.server.tools import described, generic
from datong.spec.dialogue import Dialogue

OPENAI = {"temperature": 1.0}  # what the API documents for a request, and a package, that say nothing
_GIVEN = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
SEEDS = 2**64


@dataclass(slots=True)
class Prepared:
    """A job, and what formatting its answer needs."""

    job: Job
    choices: int  # per prompt
    text: str = ""  # a conversation as the template wrote it
    tools: list[dict[str, Any]] | None = None
    dialogue: Dialogue | None = None


def chat_job(host: Host, body: ChatRequest, settings: Settings) -> Prepared:
    """Raises ApiError, DatongError."""
    model = host.model
    tools = tools_asked(body.tools, body.tool_choice)
    dialogue, text = conversation(model, body, tools)
    tokens = model.tokenizer.encode(text, add_special=False)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs `logprobs`: true")
    count = _choices(body.n or 1, settings)
    model.engine.check(tokens, 1)
    limit = _limit(host, tokens, chat_limit(body))
    guides = _chat_guides(model, body, dialogue, tools, count, text)
    requests = [
        model.request(
            tokens[:], limit, _params(host, body, logprobs, i), _stops(body), body.ignore_eos, True, i, True, guides[i]
        )
        for i in range(count)
    ]
    return Prepared(_job(requests, [], body, settings), count, text, tools or None, dialogue)


def conversation(model: Model, body: ChatRequest, tools: list[dict[str, Any]]) -> tuple[Dialogue | None, str]:
    """How the answer is to be read, and the text that it continues. Raises ApiError, TemplateError."""
    messages = for_template(body.messages)
    extra = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", body.reasoning_effort)
    dialogue = model.dialogue
    own = dialogue is not None and dialogue.calls
    if tools and not own:
        dialogue = generic(dialogue.reasoning if dialogue else None)
        messages = described(messages, tools)
    given = tools if own and tools else None
    return dialogue, model.chat_template(bool(given)).render(messages, tools=given, **extra)


def _chat_guides(
    model: Model, body: ChatRequest, dialogue: Dialogue | None, tools: list[dict[str, Any]], count: int, text: str
) -> list[Guide | None]:
    """Of `tool_choice`, or of `response_format`."""
    choice = body.tool_choice
    if isinstance(choice, dict) or choice == "required":
        assert dialogue is not None  # there are tools
        if isinstance(choice, dict):
            tools = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
        many = choice == "required" and body.parallel_tool_calls is not False
        return call_guides(model, dialogue, tools, many, count, text)
    return format_guides(model, body.response_format, count, text)


def completion_job(host: Host, body: CompletionRequest, settings: Settings) -> Prepared:
    """Raises ApiError, DatongError."""
    model = host.model
    prompts = [model.encode(prompt) for prompt in prompts_of(body.prompt)]
    try:
        for tokens in prompts:
            model.engine.check(tokens, int(body.max_tokens != 0))
    except DatongError as error:
        raise from_engine(error, "prompt") from None
    count = max(body.n or 1, body.best_of or 0)
    _choices(count * len(prompts), settings)
    best = body.best_of is not None and body.best_of > (body.n or 1)
    logprobs = 0 if best and body.logprobs is None else body.logprobs
    requests: list[Request] = []
    scores: list[PromptScore] = []
    guides = format_guides(model, body.response_format, count * len(prompts))
    for at, tokens in enumerate(prompts):
        if body.echo and (body.logprobs is not None or body.max_tokens == 0):
            scores.append(PromptScore(tokens, body.logprobs or 0))
        if body.max_tokens == 0:
            continue
        limit = _limit(host, tokens, body.max_tokens)
        for i in range(count):
            params = _params(host, body, logprobs, i)
            index = at * count + i
            guide = guides[index]
            requests.append(
                model.request(tokens[:], limit, params, _stops(body), body.ignore_eos, False, index, guide=guide)
            )
    return Prepared(_job(requests, scores, body, settings), count)


def prompts_of(prompt: str | Sequence[Any], name: str = "prompt") -> list[str | list[int]]:
    """A text, a list of texts, one list of ids, or several. Raises ApiError 400."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid(name, f"{name} should hold at least one text or token, it is empty")
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
        raise invalid(name, f"{name} should be texts, token ids or lists of token ids, not a mixture")
    if kinds == {int}:
        return [[int(token) for token in prompt]]
    texts_or_ids: list[str | list[int]] = [*prompt]
    return texts_or_ids


def check_completion(body: CompletionRequest) -> None:
    """What does not depend on the model. Raises ApiError 400."""
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise invalid("best_of", f"best_of should be at least `n` = {body.n or 1}, got {body.best_of}")
    if body.best_of is not None and body.best_of > (body.n or 1) and body.stream:
        raise invalid("best_of", "best_of cannot be streamed: the best is known at the end")
    if body.suffix:
        raise invalid("suffix", "suffix is not supported: models here continue a text at its end")
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens", "max_tokens should be at least 1, or `echo` true")


def _choices(count: int, settings: Settings) -> int:
    if count > settings.max_choices:
        raise invalid("n", f"at most {settings.max_choices} answers per request were expected, got {count}")
    return count


def _limit(host: Host, tokens: list[int], asked: int | None) -> int:
    """Tokens of the sequence at most."""
    return min(host.model.context, len(tokens) + (asked or host.model.context))


def _stops(body: Sampling) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _params(host: Host, body: Sampling, logprobs: int | None, choice: int) -> SamplingParams:
    given = {name: getattr(body, name) for name in _GIVEN}
    seed = None if body.seed is None else (body.seed + choice) % SEEDS
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise invalid("logit_bias", "logit_bias should have token ids as keys") from None
    if bias and not 0 <= max(bias) < host.model.vocab_size:
        raise InvalidRequest("sample", f"logit_bias token should be below {host.model.vocab_size}, got {max(bias)}")

    def warn(text: str) -> None:
        log("package", model=host.name, warning=text)

    settings = sampling(host.model.package, given, OPENAI, warn)
    return SamplingParams(**settings, seed=seed, logit_bias=bias, logprobs=logprobs)


def _job(requests: list[Request], scores: list[PromptScore], body: Sampling, settings: Settings) -> Job:
    seconds = min(body.timeout_s or settings.timeout_s, settings.timeout_s)
    return Job(requests, scores, seconds=seconds, priority=body.priority)
