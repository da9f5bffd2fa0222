"""Prompts of every kind, streams and sessions, over the device without arithmetic."""

from types import SimpleNamespace

import numpy as np
import pytest

from datong.engine.model import Model
from datong.engine.results import Result
from datong.engine.tokenizer import Tokenizer
from datong.errors import Cancelled, ContextOverflow, InvalidRequest, TemplateError

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:\n{{ m.content ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:\n' }}{% endif %}"
)


@pytest.fixture
def make_model(make_engine, exact_tokenizers):
    """`make_model(template, …)` -> a Model whose package is a tokenizer."""

    def make(template: str | None = TEMPLATE, **options) -> Model:
        package = SimpleNamespace(
            tokenizer_file="tokenizer.json", root="here", manifest=SimpleNamespace(model=SimpleNamespace(name="null"))
        )
        model = Model(package, make_engine(options.pop("tokens", 2000), **options), "null")
        model.tokenizer = Tokenizer(exact_tokenizers["byte_level"].inner, {}, template)
        return model

    return make


def test_a_text_its_ids_and_an_array_are_the_same_prompt(make_model):
    model = make_model()
    ids = model.tokenizer.encode("hello world")
    answers = [model.generate(p, max_tokens=6) for p in ("hello world", ids, np.array(ids), tuple(ids))]
    assert all(isinstance(a, Result) and a.tokens == answers[0].tokens for a in answers)


def test_lists_of_prompts_give_lists_of_answers(make_model):
    model = make_model()
    chat = [{"role": "user", "content": "hello"}]
    for prompts in (["hello", "ab"], [[1, 2], [3]], [chat, chat], [np.array([1, 2]), np.array([3])]):
        answers = model.generate(prompts, max_tokens=4)
        assert [a.tokens for a in answers] == [model.generate(p, max_tokens=4).tokens for p in prompts]


def test_a_conversation_goes_through_the_template(make_model):
    model = make_model()
    messages = [{"role": "user", "content": "hello"}]
    text = "<s>user:\nhello\n<s>assistant:\n"
    assert model.encode(messages) == model.tokenizer.encode(text, add_special=False)
    assert model.chat("hello", max_tokens=3).tokens == model.generate(messages, max_tokens=3).tokens
    assert model.encode(messages).count(model.tokenizer.inner.token_to_id("<s>")) == 2


def test_without_a_template_a_conversation_is_refused(make_model):
    with pytest.raises(TemplateError, match="should carry one, it has none\nhint: give the prompt as a text"):
        make_model(None).chat("hello")


def test_a_stream_has_the_chunks_of_all_prompts(make_model):
    model = make_model()
    with model.generate(["hello", "ab"], max_tokens=5, stream=True) as stream:
        chunks = list(stream)
    for index in (0, 1):
        mine = [c for c in chunks if c.index == index]
        assert "".join(c.text for c in mine) == stream.results[index].text
        assert [c.finish_reason for c in mine] == [None] * 4 + ["length"]
    assert {c.index for c in chunks[:2]} == {0, 1}  # they advance together


@pytest.mark.parametrize("read", [0, 2])
def test_closing_a_stream_returns_everything(make_model, read):
    model = make_model()
    stream = model.generate("hello", stream=True)
    for _ in range(read):
        next(stream)
    stream.close()
    stream.close()
    assert model.engine.pool.held == 0 and not model.engine.scheduler.waiting
    assert len(stream.result.tokens) == read and stream.result.finish_reason is None
    assert isinstance(stream._requests[0].error, Cancelled)


def test_an_abandoned_stream_returns_everything(make_model):
    model = make_model()
    stream = model.generate("hello", stream=True)
    next(stream)
    del stream
    assert model.engine.pool.held == 0


def test_without_max_tokens_the_context_is_filled(make_model):
    model = make_model(context=40)
    answer = model.generate([1, 2, 3], ignore_eos=True)
    assert len(answer.tokens) == 37 and answer.finish_reason == "length"


def test_one_bad_prompt_of_a_batch_is_refused_before_anything_runs(make_model):
    model = make_model(context=16)
    with pytest.raises(ContextOverflow):
        model.generate([[1], [1] * 16], max_tokens=2)
    with pytest.raises(InvalidRequest, match="at least one token"):
        model.generate([[1], []], max_tokens=2)
    assert model.engine.null.steps == []


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_remembers_and_computes_only_what_is_new(make_model):
    model = make_model()
    session = model.session("be kind", max_tokens=12, ignore_eos=True)
    session.say("hello there, hello world, the quick brown fox")
    computed = []
    for text in ("def f(x):", "ab ab ab"):
        prompt = len(model.encode([*session.messages, {"role": "user", "content": text}]))
        before = len(model.encode(session.messages)) - len(model.tokenizer.encode("<s>assistant:\n"))
        result = session.say(text)
        assert result.prompt_tokens == prompt
        # Text and tokens of an answer may differ where it is no UTF-8; before it everything is found again.
        computed.append(result.timings.prefill_tokens)
        assert result.cached_tokens > 0.4 * before
    assert [m["role"] for m in session.messages] == ["system", *["user", "assistant"] * 3]


def test_turns_are_found_in_the_cache_up_to_the_last_block(make_model, monkeypatch):
    model = make_model()
    word = model.tokenizer.encode("hello")[0]
    monkeypatch.setattr(model.engine.null, "logits_of", lambda context: np.eye(1, 340, word, dtype="f4")[0])
    session = model.session(max_tokens=9)
    session.say("hello")
    known = len(model.encode(session.messages[:1])) + 8  # the last token of an answer is never computed
    result = session.say("ab")
    assert result.cached_tokens == known // 4 * 4
    assert result.timings.prefill_tokens == result.prompt_tokens - result.cached_tokens


def test_a_stopped_turn_keeps_what_was_said(make_model):
    session = make_model().session(max_tokens=50)
    chunks = session.stream("hello")
    texts = [next(chunks).text for _ in range(5)]
    chunks.close()
    assert session.messages[-1] == {"role": "assistant", "content": "".join(texts)}
    assert session.last is not None and len(session.last.tokens) == 5
    assert session.model.engine.pool.held == 0


def test_a_turn_that_fails_at_once_did_not_happen(make_model):
    session = make_model(context=30).session()
    with pytest.raises(ContextOverflow):
        session.stream("hello " * 100)
    assert session.messages == []
    never_read = session.stream("hello")
    del never_read
    assert session.messages == []


def test_clear_keeps_the_system_message(make_model):
    session = make_model().session("be kind", max_tokens=2)
    session.say("hello")
    session.clear()
    assert session.messages == [{"role": "system", "content": "be kind"}] and session.last is None
