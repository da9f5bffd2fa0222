import numpy as np
import pytest
import torch

from datong.backends.torch.cache import TorchCache
from datong.backends.torch.frame import Frame, Places, build, refill
from datong.backends.torch.target import cpu_target
from datong.spec.program import CacheSpec, Step

SIZE, CPU = 16, torch.device("cpu")


def step(*sequences: tuple[int, int, list[int]]) -> Step:
    """Of (tokens before, new tokens, blocks) per sequence."""
    new, lens = [n for _, n, _ in sequences], [p + n for p, n, _ in sequences]
    tables = np.full((len(sequences), max(len(b) for *_, b in sequences)), -1, np.int32)
    for row, (*_, blocks) in zip(tables, sequences, strict=True):
        row[: len(blocks)] = blocks
    positions = np.concatenate([np.arange(p, p + n) for p, n, _ in sequences])
    ids = np.arange(100, 100 + sum(new))
    return Step(ids, positions, np.cumsum([0, *new]), np.array(lens), tables, np.cumsum(new) - 1)


def made(what: Step, *, index: torch.dtype = torch.int64, loop: bool = True, **options: object) -> Frame:
    specs = (CacheSpec(0, "full", 1, 4, 4), CacheSpec(1, "window", 1, 4, 4, 20), CacheSpec(2, "conv", 1, 4, 3))
    cache = TorchCache(specs, cpu_target(), CPU, "f32", 8, 4, 2)
    return build(what, cache, Places(CPU, index, SIZE, specs, loop), **options)


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_one_upload_holds_everything(index: torch.dtype) -> None:
    frame = made(step((14, 4, [5, 2])), index=index)
    assert frame.ids.tolist() == [100, 101, 102, 103] and frame.positions.tolist() == [14, 15, 16, 17]
    assert frame.whole is not None and frame.whole.slots.dtype is index
    assert frame.whole.slots.tolist() == [94, 95, 32, 33]  # block 5 to its end, then block 2
    assert frame.whole.slot_blocks.tolist() == [5, 5, 2, 2] and frame.whole.slot_offsets.tolist() == [14, 15, 0, 1]
    tensors = [frame.ids, frame.positions, frame.rows, frame.whole.slots, frame.whole.block_tables]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == (2 if index is torch.int64 else 1)


def test_kinds_of_sequences() -> None:
    decoding = made(step((3, 1, [0]), (20, 1, [1, 2])))
    assert decoding.decode is decoding.whole and decoding.prefill is None and decoding.decode_rows is None
    filling = made(step((0, 3, [0]), (20, 2, [1, 2])))
    assert filling.prefill is filling.whole and filling.decode is None
    mixed = made(step((3, 1, [0]), (0, 2, [3]), (20, 1, [1, 2])))
    assert mixed.decode is not None and mixed.decode.contexts == (4, 21) and mixed.decode.new == (1, 1)
    assert mixed.decode_rows is not None and mixed.decode_rows.tolist() == [0, 3]
    assert mixed.prefill_rows is not None and mixed.prefill_rows.tolist() == [1, 2]
    assert mixed.prefill is not None and mixed.prefill.slots.tolist() == [48, 49]


def test_blocks_in_a_row_are_read_in_place() -> None:
    (reach,) = made(step((30, 2, [4, 5]))).reaches[0]
    assert (reach.start, reach.length, reach.table) == (64, 32, None)
    (reach,) = made(step((30, 2, [5, 4]))).reaches[0]
    assert reach.table is not None and reach.table.tolist() == [[5, 4]] and reach.length == 32


def test_a_window_reads_no_more_than_it_sees() -> None:
    frame = made(step((40, 2, [-1, 4, 5])))
    (reach,) = frame.reaches[20]
    assert (reach.first, reach.length) == (21, 21)  # query 40 sees 21 .. 40, query 41 one more
    assert reach.start == 4 * SIZE + 5


def test_padding_goes_to_the_scratch_block() -> None:
    frame = made(step((0, 3, [1])), tokens=8)
    assert frame.tokens == 8 and frame.whole is not None
    assert frame.whole.slots.tolist() == [16, 17, 18] + [8 * SIZE] * 5  # of 8 blocks the scratch block is number 8
    assert frame.prefill_rows is not None and frame.prefill_rows.tolist() == [0, 1, 2]


def test_a_static_frame_takes_the_next_step() -> None:
    frame = made(step((3, 1, [0]), (20, 1, [1, 2])), static=True, replayed=True)
    before = frame.ids.data_ptr()
    assert frame.cache is not None and frame.whole is not None
    refill(
        frame,
        step((7, 1, [6]), (17, 1, [3, 1])),
        Places(CPU, torch.int64, SIZE, (CacheSpec(0, "full", 1, 4, 4),), True),
    )
    assert frame.ids.data_ptr() == before and frame.positions.tolist() == [7, 17]
    assert frame.whole.context_lens.tolist() == [8, 18] and frame.whole.block_tables.tolist() == [[6, 8], [3, 1]]
    assert frame.whole.contexts == (32, 32)  # what the tables could hold, not what this step has


def test_window_tables_make_a_frame_of_their_own() -> None:
    what = step((20, 1, [5, 6]), (0, 2, [3]))
    what.window_tables, what.state_slots = np.array([[-1, 1], [3, -1]], np.int32), np.array([1, 0], np.int32)
    frame = made(what)
    own = frame.of("window")
    assert frame.of("full") is frame.of("latent") is frame and own is frame.windowed and own is not None
    assert frame.whole is not None and frame.whole.slots.tolist() == [6 * SIZE + 4, 48, 49]
    assert own.whole is not None and own.whole.slots.tolist() == [SIZE + 4, 48, 49]
    assert own.whole.block_tables.tolist() == [[4, 1], [3, 4]]  # scratch is the last of the window's own blocks
    assert list(frame.reaches) == [0] and list(own.reaches) == [20]
    assert frame.slots is not None and frame.slots.tolist() == [1, 0]
    assert frame.began is not None and frame.began.tolist() == [1, 0]
