"""Thousands of random schedules. A small model of the cache checks that what a step reads is what was written."""

from hypothesis import given, settings
from hypothesis import strategies as st

from datong.engine.blocks import BlockPool
from datong.engine.scheduler import Scheduler, Work
from datong.engine.sequence import Sequence, State


class Memory:
    """What each slot of each block holds: the token and everything before it, as real K/V would depend on it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.slots = scheduler, {}

    def run(self, work: Work) -> None:
        s, size = work.sequence, self.scheduler.pool.block_size
        assert s.state is State.RUNNING and 0 < work.count <= s.pending and work.rows <= work.count
        assert len(s.blocks) * size >= s.computed + work.count
        for position in range(s.computed):
            assert self.slots[s.blocks[position // size], position % size] == tuple(s.tokens[: position + 1])
        for position in range(s.computed, s.computed + work.count):
            self.slots[s.blocks[position // size], position % size] = tuple(s.tokens[: position + 1])
        self.scheduler.advance(work)


def check_pool(scheduler: Scheduler) -> None:
    pool = scheduler.pool
    holds: dict[int, int] = {}
    for s in scheduler.running:
        assert len(set(s.blocks)) == len(s.blocks)
        for block in s.blocks:
            holds[block] = holds.get(block, 0) + 1
    assert len(holds) == pool.held
    assert [pool._refs[b] for b in range(pool.blocks)] == [holds.get(b, 0) for b in range(pool.blocks)]
    assert all(not s.blocks for s in scheduler.waiting)
    writers = [
        s.blocks[s.computed // pool.block_size]
        for s in scheduler.running
        if s.pending and s.blocks[s.computed // pool.block_size :]
    ]
    assert all(holds[b] == 1 for b in writers), "a block that will be written is shared"


request = st.tuples(
    st.integers(1, 14),  # prompt
    st.integers(1, 10),  # answer
    st.integers(0, 2),  # alphabet: small, so that prompts share beginnings
    st.sampled_from(["run", "run", "run", "cancel", "score"]),
    st.integers(0, 8),  # arrives at this step
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    requests=st.lists(request, min_size=1, max_size=8),
    block_size=st.sampled_from([1, 2, 3, 4]),
    spare=st.integers(0, 12),
    max_tokens=st.integers(1, 12),
    max_rows=st.integers(1, 8),
    reuse=st.booleans(),
)
def test_random_schedules_leak_nothing_and_share_nothing_wrongly(
    requests, block_size, spare, max_tokens, max_rows, reuse
):
    longest = max(p + a for p, a, *_ in requests)
    pool = BlockPool(-(-longest // block_size) + spare, block_size, reuse=reuse)
    scheduler = Scheduler(pool, max_tokens=max_tokens, max_rows=max_rows)
    memory = Memory(scheduler)
    sequences = []
    todo = sorted(requests, key=lambda r: r[4])
    for step in range(3000):
        while todo and todo[0][4] <= step:
            prompt, answer, alphabet, kind, _ = todo.pop(0)
            s = Sequence(
                [i % (alphabet + 1) for i in range(prompt)], prompt + answer, score=kind == "score", owner=kind
            )
            sequences.append(s)
            scheduler.add(s)
        work = scheduler.schedule()
        if not work:
            assert not scheduler.running and not scheduler.waiting
            if not todo:
                break
            continue
        assert sum(w.count for w in work) <= max_tokens and sum(w.rows for w in work) <= max_rows
        assert len({id(w.sequence) for w in work}) == len(work)
        check_pool(scheduler)
        for w in work:
            s = w.sequence
            before = s.computed
            memory.run(w)
            if s.score:
                assert before + w.count - w.rows <= s.scored
                s.scored = max(s.scored, s.computed)
                if s.scored == s.prompt_len:
                    scheduler.remove(s)
            elif s.computed == len(s.tokens):
                assert w.rows == 1
                s.tokens.append((s.tokens[-1] + 1) % 2)
                if len(s.tokens) == s.limit or (s.owner == "cancel" and len(s.tokens) > s.prompt_len + 1):
                    scheduler.remove(s)
            else:
                assert w.rows == 0
        check_pool(scheduler)
    else:
        raise AssertionError("the schedule does not end")
    assert all(s.state is State.FINISHED and not s.blocks for s in sequences)
    assert pool.held == 0 and pool.available == pool.blocks


def scheduler(blocks=64, size=4, **options) -> Scheduler:
    return Scheduler(BlockPool(blocks, size), **options)


def run(s: Scheduler, work: list[Work]) -> None:
    for w in work:
        s.advance(w)


def test_decodes_run_beside_a_long_prompt():
    s = scheduler(max_tokens=8)
    short = Sequence([1, 2, 3], 50)
    s.add(short)
    run(s, s.schedule())
    short.tokens.append(4)
    s.add(Sequence(list(range(40)), 50))
    assert [(w.count, w.rows) for w in s.schedule()] == [(1, 1), (7, 0)]


def test_prompts_share_the_step_equally():
    s = scheduler(max_tokens=12)
    for length in (40, 3, 40):
        s.add(Sequence(list(range(length)), 50))
    assert [(w.sequence.prompt_len, w.count) for w in s.schedule()] == [(3, 3), (40, 5), (40, 4)]


def test_a_short_prompt_does_not_wait_for_long_ones():
    """They came first and would fill every step: the short one is admitted all the same, and has its share."""
    scheduler = Scheduler(BlockPool(200, 8), max_tokens=64)
    long = [Sequence([i] * 400, 410) for i in range(3)]
    for s in long:
        scheduler.add(s)
    for _ in range(2):
        for w in scheduler.schedule():
            scheduler.advance(w)
    short = Sequence([9] * 20, 40)
    scheduler.add(short)
    for _ in range(2):
        work = scheduler.schedule()
        assert sum(w.count for w in work) == 64, "what the short one leaves goes to the others"
        for w in work:
            scheduler.advance(w)
    assert short.computed == 20 and all(s.computed < 400 for s in long)


def test_the_youngest_is_preempted_and_the_oldest_goes_on():
    s = scheduler(blocks=4, size=2, max_tokens=16)
    old, young = Sequence([1, 2, 3], 8), Sequence([5], 8)
    s.add(old)
    s.add(young)
    for _ in range(3):
        run(s, work := s.schedule())
        for w in work:
            w.sequence.tokens.append(7)
    while len(old.tokens) < 8:
        run(s, work := s.schedule())
        assert any(w.sequence is old for w in work)
        for w in work:
            if w.rows:
                w.sequence.tokens.append(7)
    assert s.preemptions and young.state is State.WAITING and young.computed == 0 and not young.blocks


def test_a_second_turn_computes_only_what_is_new():
    s = scheduler(size=4)
    first = Sequence(list(range(10)), 20)
    s.add(first)
    run(s, s.schedule())
    s.remove(first)
    second = Sequence([*range(10), 77, 78], 20)
    s.add(second)
    assert [w.count for w in s.schedule()] == [4] and second.cached == 8


def test_scores_take_no_more_rows_than_there_are():
    s = scheduler(max_tokens=32, max_rows=4)
    s.add(Sequence(list(range(10)), 10, score=True))
    assert [(w.count, w.rows) for w in s.schedule()] == [(4, 4)]


def test_remove_twice_is_harmless():
    s = scheduler()
    sequence = Sequence([1], 4)
    s.add(sequence)
    s.schedule()
    s.remove(sequence)
    s.remove(sequence)
    assert s.pool.held == 0
