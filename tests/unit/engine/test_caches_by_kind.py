"""Windows and states through the whole engine: reuse gives the same answers, and nothing grows with the context.

The null device of conftest.py checks in every step that each window and each state holds the tokens that it should.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datong.engine.request import Request
from datong.engine.sampler import SamplingParams
from datong.engine.states import StatePool
from datong.engine.windows import WindowPool, enough
from datong.errors import DeviceError, OutOfBlocks

KINDS = [("full",), ("window",), ("full", "window"), ("recurrent",), ("full", "recurrent"), ("window", "recurrent")]
SMALL = {"sequences": 2, "step_tokens": 8}


def ask(prompt: list[int], count: int = 6) -> Request:
    return Request(list(prompt), len(prompt) + count, SamplingParams())


def run(engine, *requests) -> list[list[int]]:
    for _ in engine.chunks(requests):
        pass
    return [request.result.tokens for request in requests]


def expected(engine, prompt: list[int], count: int = 6) -> list[int]:
    context = list(prompt)
    for _ in range(count):
        context.append(int(engine.null.logits_of(context).argmax()))
    return context[len(prompt) :]


def held(engine) -> tuple[int, int, int]:
    return engine.pool.held, engine.windows.held if engine.windows else 0, engine.states.held if engine.states else 0


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_a_second_turn_goes_on_where_the_first_prompt_ended(make_engine, kinds):
    engine = make_engine(256, kinds=kinds, window=6 * ("window" in kinds), runner=SMALL)
    assert (engine.windows is not None) == ("window" in kinds) and (engine.states is not None) == ("recurrent" in kinds)
    first = ask(list(range(22)), 5)
    assert run(engine, first) == [expected(engine, list(range(22)), 5)]
    prompt = [*first.sequence.tokens, 50, 51]
    second = ask(prompt, 3)
    assert run(engine, second) == [expected(engine, prompt, 3)]
    # 26 tokens are cached; a state is known at the last full block border of the first prompt alone
    assert second.result.cached_tokens == (20 if "recurrent" in kinds else 24)
    other = ask([*range(21), 60, 61], 3)
    assert run(engine, other) == [expected(engine, [*range(21), 60, 61], 3)]
    assert other.result.cached_tokens == 20 and held(engine) == (0, 0, 0)


def test_a_window_that_was_taken_for_other_tokens_is_not_reused(make_engine):
    engine = make_engine(1000, kinds=("full", "window"), window=6, runner=SMALL)
    first = list(range(40))
    run(
        engine,
        ask(first, 2),
    )
    run(engine, ask(list(range(100, 340)), 2))  # more than the window's pool holds, far less than the other
    again = ask(first, 2)
    assert run(engine, again) == [expected(engine, first, 2)]
    assert again.result.cached_tokens == 0 and again.result.timings.prefill_tokens == 40


def test_the_third_prompt_with_a_common_beginning_takes_its_state_over(make_engine):
    engine = make_engine(256, kinds=("full", "recurrent"), runner=SMALL)
    prompts = [[*range(14), *range(100 * i, 100 * i + 9)] for i in (1, 2, 3)]
    cached = []
    for prompt in prompts:
        request = ask(prompt, 3)
        assert run(engine, request) == [expected(engine, prompt, 3)]
        cached.append(request.result.cached_tokens)
    assert cached == [0, 0, 12]  # the second one was cut where it left the first


def test_snapshots_give_way_oldest_use_first(make_engine):
    engine = make_engine(1000, kinds=("recurrent",), runner={"sequences": 1, "step_tokens": 8})
    assert engine.states.slots == 2
    a, b = list(range(9)), list(range(100, 109))
    for prompt, cached in ((a, 0), (a, 8), (b, 0), (b, 8), (a, 0)):
        request = ask(prompt, 2)
        assert run(engine, request) == [expected(engine, prompt, 2)]
        assert request.result.cached_tokens == cached


def test_after_a_device_error_no_state_and_no_window_is_trusted(make_engine):
    engine = make_engine(256, kinds=("window", "recurrent"), window=6, runner=SMALL)
    run(engine, ask(list(range(20)), 2))
    engine.null.fail_at = len(engine.null.steps)
    with pytest.raises(DeviceError):
        run(engine, ask(list(range(20)), 2))
    again = ask(list(range(20)), 2)
    assert run(engine, again) == [expected(engine, list(range(20)), 2)]
    assert again.result.cached_tokens == 0 and held(engine) == (0, 0, 0)


request = st.tuples(
    st.integers(1, 30),  # prompt
    st.integers(1, 10),  # answer
    st.integers(0, 3),  # where it leaves the common beginning
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.sampled_from(KINDS),
    window=st.integers(1, 9),
    block_size=st.sampled_from([1, 2, 4]),
    blocks=st.integers(0, 8),
    sequences=st.integers(1, 4),
    step_tokens=st.integers(2, 9),
    waves=st.lists(st.lists(request, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_random_requests_get_the_answers_of_a_fresh_engine(
    make_engine, kinds, window, block_size, blocks, sequences, step_tokens, waves
):
    engine = make_engine(
        40 + blocks * block_size,  # little more than the longest: preemptions
        block_size=block_size,
        kinds=kinds,
        window=window if "window" in kinds else 0,
        runner={"sequences": sequences, "step_tokens": step_tokens},
    )
    for wave in waves:
        prompts = [
            [i if i < 8 * leaves else 50 * number + i for i in range(length)]
            for number, (length, _, leaves) in enumerate(wave)
        ]
        answers = [answer for _, answer, _ in wave]
        got = run(engine, *(ask(p, n) for p, n in zip(prompts, answers, strict=True)))
        assert got == [expected(engine, p, n) for p, n in zip(prompts, answers, strict=True)]
        assert held(engine) == (0, 0, 0)


def test_a_window_pool_gives_what_it_has():
    pool = WindowPool(2, 4, 6)
    assert pool.first(5) == 0 and pool.first(9) == 1  # after 9 tokens the next sees 4 .. 9
    a, b = pool.take(), pool.take()
    with pytest.raises(OutOfBlocks, match="all 2 are held"):
        pool.take()
    pool.publish(7, a)
    pool.release([a, b])
    assert pool.covers([7]) and pool.held == 0
    assert pool.take() == b and pool.take() == a and not pool.covers([7])  # free blocks first
    pool.release([a])
    pool.drop(7)
    assert pool.take() == a


def test_a_prompt_goes_on_only_where_the_whole_window_is_known():
    pool = WindowPool(3, 4, 9)  # after 12 tokens the next sees 4 .. 12
    blocks = [pool.take() for _ in range(3)]
    for node, block in enumerate(blocks, 1):
        pool.publish(node, block)
    pool.release(blocks)
    assert pool.covers([1, 2, 3]) and pool.hold([1, 2, 3]) == (1, blocks[1:])
    pool.release(blocks[1:])
    pool.take()  # the oldest, which no window sees any more
    assert pool.covers([1, 2, 3])
    pool.take()
    assert not pool.covers([1, 2, 3])


def test_pools_forget_what_nobody_holds():
    windows, states = WindowPool(2, 4, 9), StatePool(3)
    blocks = [windows.take(), windows.take()]
    for node, block in enumerate(blocks, 1):
        windows.publish(node, block)
    windows.release(blocks[:1])
    windows.forget()
    assert not windows.covers([1]) and windows.covers([2]) and windows.held == 1
    slot = states.take()
    states.snapshot(1, slot)
    states.forget()
    assert not states.covers([1]) and states.copies == [] and states.held == 1


def test_a_state_pool_gives_what_it_has():
    pool = StatePool(2)
    slots = [pool.take(), pool.take()]
    with pytest.raises(OutOfBlocks, match="all 2 are held"):
        pool.take()
    pool.snapshot(5, slots[0])
    assert not pool.covers([5]) and pool.copies == []  # no slot left: no snapshot
    pool.release(slots[1])
    pool.snapshot(5, slots[0])
    assert pool.covers([5]) and pool.copies == [(slots[0], slots[1])] and pool.held == 1
    assert pool.resume([5]) == slots[1] and not pool.covers([5])  # the only slot: the snapshot's own
    pool.release(slots[1])
    pool.snapshot(6, slots[0])
    pool.drop(6)
    assert pool.take() == slots[1]


@pytest.mark.parametrize(("window", "size"), [(1, 1), (1, 4), (4, 4), (5, 4), (513, 16)])
def test_enough_window_blocks_for_the_worst_case(window, size):
    for start in range(1, 4 * size + window):
        for new in (1, size, 3 * size + 1):
            first = max(0, start - window + 1) // size
            assert -(-(start + new) // size) - first <= enough(1, window, new, size)


@pytest.mark.parametrize("kinds", [("window",), ("recurrent",), ("window", "recurrent")], ids="+".join)
def test_a_long_context_takes_no_more_memory(make_engine, kinds):
    """100,000 tokens: what grows with them is the list of block numbers alone."""
    length = 100_000
    window = 512 * ("window" in kinds)
    engine = make_engine(
        length + 64, block_size=16, kinds=kinds, window=window, runner={"step_tokens": 512}, context=length + 64
    )
    engine.null.run = lambda step, cache, inputs: {"logits": np.eye(len(step.rows), 340, dtype=np.float32)}
    before = engine.runner.memory()["cache"]
    request = ask([3] * length, 40)
    seen = [held(engine)[1:] for _ in engine.chunks([request])]
    assert request.sequence.computed > length
    assert max(w for w, _ in seen) <= enough(1, window, 512, 16) and max(s for _, s in seen) <= 1
    limit = 8 * (16 * enough(engine.runner.sequences, window, 512, 16) * bool(window) + engine.runner.states)
    assert engine.runner.memory()["cache"] == before <= limit < 8 * length
