"""The loop over a device without arithmetic: its answers depend on every token that it finds in the cache."""

import sys
import threading

import numpy as np
import pytest

from datong.engine.detokenizer import Detokenizer
from datong.engine.request import Request, Score
from datong.engine.sampler import SamplingParams
from datong.errors import Cancelled, ContextOverflow, DeviceError, InvalidRequest


def ask(tokens, new=8, **params) -> Request:
    return Request(list(tokens), len(tokens) + new, SamplingParams(**params))


def run(engine, *requests) -> list[list[int]]:
    for _ in engine.chunks(requests):
        pass
    return [request.result.tokens for request in requests]


def expected(engine, tokens, new=8) -> list[int]:
    """Greedy, computed without any cache."""
    context = list(tokens)
    for _ in range(new):
        context.append(int(engine.null.logits_of(context).argmax()))
    return context[len(tokens) :]


PROMPTS = [[1, 2, 3], [5], list(range(30)), [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]]


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_alone(make_engine, prompt):
    engine = make_engine()
    assert run(engine, ask(prompt)) == [expected(engine, prompt)]
    assert engine.pool.held == 0


@pytest.mark.parametrize("tokens", [40, 64, 400])
@pytest.mark.parametrize("max_tokens", [1, 7, 512])
def test_greedy_in_a_batch_equals_alone_even_when_the_cache_is_short(make_engine, tokens, max_tokens):
    engine = make_engine(tokens, max_tokens=max_tokens)
    assert run(engine, *map(ask, PROMPTS)) == [expected(engine, p) for p in PROMPTS]
    assert engine.pool.held == 0


def test_preemption_really_happens(make_engine):
    engine = make_engine(32)
    prompts = [[i, i + 1, i + 2] for i in range(6)]
    assert run(engine, *(ask(p, 20) for p in prompts)) == [expected(engine, p, 20) for p in prompts]
    assert engine.scheduler.preemptions > 0


def test_sampling_with_a_seed_is_the_same_alone_and_in_a_batch(make_engine):
    engine = make_engine(400)
    requests = lambda: [ask(p, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]  # noqa: E731
    together = run(engine, *requests())
    assert together == [run(engine, request)[0] for request in requests()]
    assert together != [expected(engine, p) for p in PROMPTS]


def test_a_second_turn_computes_only_what_is_new(make_engine):
    engine = make_engine()
    first = ask(list(range(20)), 5)
    run(engine, first)
    prompt = [*first.sequence.tokens, 50, 51]
    second = ask(prompt, 3)
    engine.null.steps.clear()
    assert run(engine, second) == [expected(engine, prompt, 3)]
    assert second.result.cached_tokens == 24 and second.result.timings.prefill_tokens == 3
    assert len(engine.null.steps[0].ids) == 3


def test_closing_the_iterator_returns_the_blocks(make_engine):
    engine = make_engine()
    request = ask([1, 2, 3], 50)
    chunks = engine.chunks([request])
    next(chunks)
    assert engine.pool.held > 0
    chunks.close()
    assert engine.pool.held == 0 and not engine.scheduler.running
    assert isinstance(request.error, Cancelled) and request.result.finish_reason is None


def test_two_iterators_read_in_turn_share_steps(make_engine):
    engine = make_engine()
    requests = ask([1, 2, 3]), ask([4, 5])
    a, b = (engine.chunks([r]) for r in requests)
    for _ in zip(a, b, strict=True):
        pass
    assert [r.result.tokens for r in requests] == [expected(engine, [1, 2, 3]), expected(engine, [4, 5])]
    assert any(len(step.context_lens) == 2 for step in engine.null.steps)


def test_threads_share_one_engine(make_engine):
    engine = make_engine(400)
    answers: dict[int, list[int]] = {}

    def work(i: int) -> None:
        answers[i] = run(engine, ask(PROMPTS[i], 12))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: expected(engine, p, 12) for i, p in enumerate(PROMPTS)}


@pytest.mark.parametrize("sizes", [{}, {"max_tokens": 5}, {"max_rows": 3}, {"max_tokens": 1}], ids=str)
def test_scores_are_the_logits_of_every_token(make_engine, sizes):
    engine = make_engine(64, **sizes)
    scores = [Score(list(p), engine.vocab) for p in PROMPTS]
    engine.run(scores)
    for prompt, score in zip(PROMPTS, scores, strict=True):
        want = [engine.null.logits_of(prompt[: i + 1]) for i in range(len(prompt))]
        assert np.array_equal(score.logits, np.stack(want))
    assert engine.pool.held == 0


def test_scores_beside_answers_with_a_short_cache(make_engine):
    engine = make_engine(44, max_rows=4)
    request, score = ask([1, 2, 3], 30), Score(list(range(30)), engine.vocab)
    chunks = engine.chunks([request])
    next(chunks)
    engine.run([score])
    for _ in chunks:
        pass
    assert request.result.tokens == expected(engine, [1, 2, 3], 30)
    assert np.array_equal(score.logits[29], engine.null.logits_of(list(range(30))))


def test_a_prompt_longer_than_the_context_says_by_how_much(make_engine):
    engine = make_engine(64, context=16)
    with pytest.raises(
        ContextOverflow,
        match=r"16 tokens and an answer of at least 1 should fit a context of 16\nhint: the model allows 4096",
    ):
        engine.check(list(range(16)), 1)
    engine.check(list(range(15)), 1)
    engine.check(list(range(16)), 0)


@pytest.mark.parametrize(
    ("tokens", "text"), [([], "at least one token"), ([3, 340], "0 to 339, got 340"), ([-1], "got -1")]
)
def test_prompts_that_are_none_are_refused(make_engine, tokens, text):
    with pytest.raises(InvalidRequest, match=text):
        make_engine().check(tokens, 1)


def test_a_device_error_ends_its_requests_and_the_engine_goes_on(make_engine):
    engine = make_engine()
    run(engine, ask(PROMPTS[2]))
    engine.null.fail_at = len(engine.null.steps) + 2
    a, b = ask([1, 2, 3]), ask([4])
    with pytest.raises(DeviceError, match="fell over"):
        run(engine, a, b)
    assert engine.pool.held == 0 and a.error is not None and b.error is not None
    again = ask(PROMPTS[2])
    assert run(engine, again) == [expected(engine, PROMPTS[2])]
    assert again.result.cached_tokens == 0  # nothing in the cache is trusted after an error


def test_logits_that_are_no_numbers_end_their_own_request_only(make_engine):
    engine = make_engine()
    engine.null.poison = 300
    good, bad = ask([1, 2, 3]), ask([300])
    chunks = engine.chunks([good])
    next(chunks)
    with pytest.raises(DeviceError, match="logits should be finite"):
        run(engine, bad)
    for _ in chunks:
        pass
    assert len(good.result.tokens) == 8 and engine.pool.held == 0


def test_ctrl_c_leaves_nothing_behind(make_engine, monkeypatch):
    engine = make_engine()
    run(engine, ask(PROMPTS[2]))
    request = ask([1, 2, 3], 20)
    chunks = engine.chunks([request])
    next(chunks)
    real = engine.runner.run
    monkeypatch.setattr(engine.runner, "run", lambda step: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        next(chunks)
    monkeypatch.setattr(engine.runner, "run", real)
    assert engine.pool.held == 0
    after = ask(PROMPTS[2])
    run(engine, after)
    assert after.result.cached_tokens > 0  # what earlier turns computed is still good


def test_a_decode_step_is_as_little_work_at_any_context(make_engine, monkeypatch):
    """Counted in calls, of Python and of C functions; in microseconds: bench/step_overhead.py."""
    engine = make_engine(4096, block_size=32)
    logits = np.random.default_rng(0).standard_normal((1, engine.vocab)).astype(np.float32)
    monkeypatch.setattr(engine.null, "run", lambda step, cache, inputs: {"logits": logits})
    chunks = engine.chunks([ask([1, 2, 3], 3000)])

    def calls_of_32_steps() -> int:
        counted = [0]

        def count(frame: object, event: str, argument: object) -> None:
            counted[0] += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for _ in range(32):
                next(chunks)
        finally:
            sys.setprofile(None)
        return counted[0]

    next(chunks)
    early = calls_of_32_steps()
    for _ in range(2800):
        next(chunks)
    late = calls_of_32_steps()
    chunks.close()
    assert late <= early + 32
    assert early < 32 * 100


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(make_engine, exact_tokenizers, monkeypatch):
    """`scripted(text, …)` -> the finished request of a model that says `text` and then ends."""
    tokenizer = exact_tokenizers["byte_level"]

    def make(text: str, new: int = 100, stop=(), stop_ids=frozenset({0})) -> Request:
        engine = make_engine(400)
        script = [*tokenizer.encode(text), 0]
        monkeypatch.setattr(
            engine.null,
            "logits_of",
            lambda context: np.eye(1, 340, script[min(len(context) - 1, len(script) - 1)])[0].astype("f4"),
        )
        request = Request([1], 1 + new, SamplingParams(), Detokenizer(tokenizer), stop, stop_ids)
        request.pieces = [chunk.text for chunk in engine.chunks([request])]
        return request

    return make


def test_an_end_token_ends_the_answer_and_is_no_text(scripted):
    request = scripted("hello 🎉")
    assert request.result.text == "hello 🎉" == "".join(request.pieces)
    assert request.result.finish_reason == "stop" and request.result.tokens[-1] == 0


def test_the_limit_shows_what_was_held_back(scripted):
    request = scripted("ab###", new=4, stop=["#####"])
    assert request.result.finish_reason == "length" and request.pieces == ["ab", "", "", "###"]
    half = scripted("🎉", new=2)
    assert half.result.text == "�" and half.pieces == ["", "�"]


def test_a_stop_string_ends_the_answer_and_is_no_text(scripted):
    request = scripted("hello world, hello there", stop=["ld, he", "zzz"])
    assert request.result.text == "hello wor" and request.result.finish_reason == "stop"
    assert len(request.result.tokens) < 20


def test_results_of_chunks_add_up(make_engine):
    engine = make_engine()
    request = ask([1, 2, 3], 6, logprobs=2)
    chunks = list(engine.chunks([request]))
    assert [t for c in chunks for t in c.tokens] == request.result.tokens
    assert [c.finish_reason for c in chunks] == [None] * 5 + ["length"]
    assert all(len(c.logprobs[0].top) == 2 and c.logprobs[0].top[0][0] == c.tokens[0] for c in chunks)
    timings = request.result.timings
    assert (timings.prefill_tokens, timings.decode_tokens) == (3, 5)
    assert timings.prefill_rate > 0 and timings.decode_rate > 0 and timings.time_to_first_token > 0
