from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from datong.engine import batch
from datong.engine.blocks import BlockPool
from datong.engine.runner import Runner
from datong.engine.scheduler import Scheduler, Work
from datong.engine.sequence import Sequence
from datong.errors import BackendMissing, DeviceError
from datong.spec.backend import CacheLayout, Placed
from datong.spec.caches import check_step
from datong.spec.program import CacheSpec, Part, Program


class Stage:
    """A part that notes what it was given and adds one."""

    def __init__(self, block_size: int, output: str, window_blocks: bool = False) -> None:
        self.block_size, self.output, self.seen = block_size, output, []
        self.window_blocks, self.copied = window_blocks, []

    def compile(self, part, package, options):
        self.options = dict(options)
        return self

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0):
        size = 10 * self.block_size
        layout = CacheLayout(self.block_size, "f32", size, size if self.window_blocks else 0, 100 if states else 0)
        self.cache = SimpleNamespace(
            blocks=blocks, layout=layout, copy_state=lambda *places: self.copied.append(places)
        )
        self.asked = (blocks, window_blocks, states)
        return self.cache

    def run(self, step, cache, inputs: Mapping[str, np.ndarray]):
        self.seen.append((step, cache, dict(inputs)))
        start = next(iter(inputs.values())) if inputs else np.zeros((len(step.rows), 4), np.float32)
        return {self.output: start + 1}

    def placement(self):
        return [Placed(f"to {self.output}", "linear", "null")]

    def memory(self):
        return {"weights_mapped": 3, "arena": 1}


class Backend:
    api_version = (1, 0)

    def __init__(self, name: str, stage: Stage) -> None:
        self.name, self.compile = name, stage.compile


CACHE = CacheSpec(0, "full", 1, 1, 1)


def part(backend: str, inputs=("ids",), outputs=("logits",), caches=(CACHE,)) -> Part:
    return Part(backend, {}, (), inputs, outputs, caches)


def two(a: Stage, b: Stage, tokens: int = 100) -> Runner:
    parts = (part("a", outputs=("hidden",)), part("b", ("hidden", "rows")))
    return Runner(Program("", parts, 4, 64), [Backend("a", a), Backend("b", b)], tokens, {"threads": "2"})


def step(blocks=(3, 1), tokens=5):
    s = Sequence(list(range(tokens)), 50)
    s.blocks = list(blocks)
    return batch.build([Work(s, tokens, 1)])


def test_parts_run_in_order_and_hand_on_their_outputs():
    a, b = Stage(4, "hidden"), Stage(4, "logits")
    runner = two(a, b)
    assert (runner.run(step()) == 2).all()
    assert list(b.seen[0][2]) == ["hidden"] and a.seen[0][2] == {}
    assert a.options == {"threads": "2"}
    assert [(where, p.node) for where, p in runner.placement()] == [("a", "to hidden"), ("b", "to logits")]
    assert runner.memory() == {"weights_mapped": 6, "arena": 2, "cache": 2 * 25 * 40}


def test_each_backend_is_given_the_options_that_it_knows():
    a, b = Stage(4, "hidden"), Stage(4, "logits")
    backends = [Backend("a", a), Backend("b", b)]
    backends[0].option_names = {"isa", "threads"}
    parts = (part("a", outputs=("hidden",)), part("b", ("hidden", "rows")))
    Runner(Program("", parts, 4, 64), backends, 10, {"isa": "ref", "compute_dtype": "bf16"})
    assert a.options == {"isa": "ref"} and b.options == {"isa": "ref", "compute_dtype": "bf16"}


def test_blocks_of_different_sizes_are_spread():
    a, b = Stage(4, "hidden"), Stage(6, "logits")
    runner = two(a, b, tokens=30)
    assert (runner.block_size, runner.blocks) == (12, 3)
    assert (a.cache.blocks, b.cache.blocks) == (9, 6)
    runner.run(step((2, 0), 13))
    assert a.seen[0][0].block_tables.tolist() == [[6, 7, 8, 0, 1, 2]]
    assert b.seen[0][0].block_tables.tolist() == [[4, 5, 0, 1]]
    assert a.seen[0][0].block_tables.dtype == np.int32


def test_unused_entries_stay_unused_when_spread():
    a, b = Stage(4, "hidden"), Stage(8, "logits")
    long, short = Sequence(list(range(9)), 50), Sequence([1], 50)
    long.blocks, short.blocks = [0, 1], [2]
    two(a, b).run(batch.build([Work(long, 9, 1), Work(short, 1, 1)]))
    assert a.seen[0][0].block_tables.tolist() == [[0, 1, 2, 3], [4, 5, -1, -1]]


def test_block_sizes_without_a_common_multiple_are_refused():
    with pytest.raises(DeviceError, match="common multiple up to 4096, they have a 97, b 89"):
        two(Stage(97, "hidden"), Stage(89, "logits"))


def test_a_part_without_attention_gets_no_cache():
    stage = Stage(4, "logits")
    runner = Runner(Program("", (part("a", caches=()),), 4, 64), [Backend("a", stage)], 100)
    runner.run(step())
    assert stage.seen[0][1] is None and runner.memory()["cache"] == 0


def test_a_missing_backend_is_named():
    with pytest.raises(BackendMissing, match="a part wants backend `a`, there are b"):
        Runner(Program("", (part("a"),), 4, 64), [Backend("b", Stage(4, "x"))], 10)


def test_a_last_part_without_logits_is_refused():
    with pytest.raises(DeviceError, match="should give the logits, it gives x, y"):
        Runner(Program("", (part("a", outputs=("x", "y")),), 4, 64), [Backend("a", Stage(4, "x"))], 10)


# ---- windows and states ----------------------------------------------------------------------------------------------

WINDOW, STATE = CacheSpec(1, "window", 1, 1, 1, 6), CacheSpec(2, "recurrent", 2, 3, 4)


def mixed(a: Stage, b: Stage, of_b: tuple[CacheSpec, ...], **sizes) -> Runner:
    parts = (part("a", outputs=("hidden",), caches=(CACHE, WINDOW)), part("b", ("hidden", "rows"), caches=of_b))
    return Runner(Program("", parts, 4, 64), [Backend("a", a), Backend("b", b)], 400, **sizes)


def windowed_step():
    s = Sequence(list(range(13)), 50)
    s.computed, s.blocks, s.first_window, s.windows, s.slot = 12, [5, 6], 1, [0], 3
    return batch.build([Work(s, 1, 1)])


def test_each_part_gets_the_tables_that_it_looks_in():
    a, b, c = Stage(4, "hidden", True), Stage(8, "logits"), Stage(8, "logits")
    small = {"sequences": 1, "step_tokens": 4}
    runner = mixed(a, b, (WINDOW,), **small)  # all of b's blocks are a window's, though it knows none of its own
    assert (runner.block_size, runner.blocks, runner.window, runner.window_blocks) == (8, 50, 6, 5)
    assert a.asked == (100, 10, 0) and b.asked == (5, 0, 0)
    assert runner.memory()["cache"] == 100 * 40 + 10 * 40 + 5 * 80
    runner.run(windowed_step())
    own, only = a.seen[0][0], b.seen[0][0]
    assert own.block_tables.tolist() == [[10, 11, 12, 13]] and own.window_tables.tolist() == [[-1, -1, 0, 1]]
    assert only.block_tables.tolist() == [[-1, 0]] and only.window_tables is None
    mixed(a, c, (CACHE, WINDOW), **small).run(windowed_step())  # it knows none, and has others: the blocks of all
    assert c.asked == (50, 0, 0) and c.seen[0][0].block_tables.tolist() == [[5, 6]]
    assert c.seen[0][0].window_tables is None


@pytest.mark.parametrize("sizes", [{}, {"sequences": 1, "step_tokens": 4, "windows": False}])
def test_windows_share_the_blocks_where_nothing_is_saved_or_so_asked(sizes):
    a, b = Stage(4, "hidden", True), Stage(4, "logits")
    runner = mixed(a, b, (CACHE,), **sizes)
    assert runner.window == runner.window_blocks == 0 and a.asked == (100, 0, 0)
    runner.run(windowed_step())
    assert a.seen[0][0].window_tables is None and a.seen[0][0].block_tables.tolist() == [[5, 6]]


def test_states_are_sized_and_copied_where_they_are():
    a, b = Stage(4, "hidden"), Stage(4, "logits")
    runner = mixed(a, b, (STATE,))
    assert (runner.sequences, runner.states) == (8, 16)  # few tokens: few sequences, and a snapshot for each
    assert a.asked == (100, 0, 0) and b.asked == (100, 0, 16)
    assert runner.memory()["cache"] == 2 * 100 * 40 + 16 * 100
    runner.copy_state(3, 5)
    assert a.copied == [] and b.copied == [(3, 5)]
    runner.run(windowed_step())
    assert b.seen[0][0].state_slots.tolist() == [3]


# ---- steps -----------------------------------------------------------------------------------------------------------


def sequence(tokens: int, computed: int, blocks: list[int]) -> Sequence:
    s = Sequence(list(range(100, 100 + tokens)), 50)
    s.computed, s.blocks = computed, blocks
    return s


def test_a_mixed_step_obeys_the_contract():
    work = [
        Work(sequence(9, 8, [4, 0, 7]), 1, 1),
        Work(sequence(12, 3, [1, 2, 3]), 5, 0),
        Work(sequence(3, 0, [9]), 3, 3),
    ]
    step = batch.build(work)
    check_step(step, block_size=4, blocks=10)
    assert step.ids.tolist() == [108, 103, 104, 105, 106, 107, 100, 101, 102]
    assert step.positions.tolist() == [8, 3, 4, 5, 6, 7, 0, 1, 2]
    assert step.query_starts.tolist() == [0, 1, 6, 9] and step.context_lens.tolist() == [9, 8, 3]
    assert step.block_tables.tolist() == [[4, 0, 7], [1, 2, 3], [9, -1, -1]]
    assert step.rows.tolist() == [0, 6, 7, 8]


def test_one_token_takes_the_short_way_to_the_same_step():
    s = sequence(9, 8, [4, 0, 7])
    short, long = batch.build([Work(s, 1, 1)]), batch.build([Work(s, 1, 1), Work(sequence(3, 2, [5]), 1, 1)])
    check_step(short, block_size=4, blocks=10)
    assert (short.ids[0], short.positions[0], short.context_lens[0]) == (108, 8, 9)
    assert short.block_tables.tolist() == long.block_tables[:1].tolist() and short.rows.tolist() == [0]


def test_the_table_follows_the_blocks():
    s = sequence(4, 3, [4])
    batch.build([Work(s, 1, 1)])
    s.tokens.append(5)
    s.computed, s.blocks = 4, [4, 6]
    assert batch.build([Work(s, 1, 1)]).block_tables.tolist() == [[4, 6]]


def test_a_preempted_sequence_comes_back_with_its_new_blocks():
    scheduler = Scheduler(BlockPool(8, 4, reuse=False))
    s = Sequence(list(range(6)), 20)
    scheduler.add(s)
    batch.build(scheduler.schedule())
    before = s.blocks
    scheduler._preempt(s)
    scheduler.pool.take()
    step = batch.build(scheduler.schedule())
    assert step.block_tables.tolist() == [s.blocks] != [before]
