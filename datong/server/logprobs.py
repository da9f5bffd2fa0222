"""Log-probabilities in the two forms that the API has: objects for messages, parallel lists for completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from datong.engine.sampler import Sampled
from datong.engine.tokenizer import Tokenizer
from datong.server.answers import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What one token stands for, special ones included."""
    table = tokenizer.token_bytes
    return table.get(token, False) if table else tokenizer.decode([token], skip_special=False).encode()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""The same as text; half characters as `bytes:\xe5`, as OpenAI writes them."""
    data = token_bytes(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, sampled: Iterable[Sampled] | None) -> ChatLogprobs | None:
    """Of a message or a piece of one; None where they were not asked for."""
    if sampled is None:
        return None
    content = []
    for one in sampled:
        top = [TopLogprob(*_named(tokenizer, token, logprob)) for token, logprob in one.top]
        content.append(TokenLogprob(*_named(tokenizer, one.token, one.logprob or 0.0), top))
    return ChatLogprobs(content)


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    return token_text(tokenizer, token), logprob, list(token_bytes(tokenizer, token))


def text_logprobs(tokenizer: Tokenizer, sampled: Sequence[Sampled | int], offset: int, top: int) -> TextLogprobs:
    """Of a completion.

    Args:
        tokenizer: of the model.
        sampled: in order; a bare id is a token without a value, as the first of a prompt.
        offset: characters of the text before.
        top: how many alternatives were asked for; the chosen token is added to them.
    """
    found = TextLogprobs([], [], [] if top else None, [])
    for one in sampled:
        token = one if isinstance(one, int) else one.token
        text = token_text(tokenizer, token)
        found.tokens.append(text)
        found.text_offset.append(offset)
        offset += len(text)
        if isinstance(one, int):
            found.token_logprobs.append(None)
            alternatives = None
        else:
            found.token_logprobs.append(one.logprob)
            alternatives = {token_text(tokenizer, t): logprob for t, logprob in reversed(one.top)}
            alternatives.setdefault(text, one.logprob or 0.0)
        if found.top_logprobs is not None:
            found.top_logprobs.append(alternatives)
    return found
