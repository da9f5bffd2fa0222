"""The paged store gives back what was put in, wherever its blocks lie."""

import numpy as np
import pytest

from datong import dtypes
from datong.backends.onnxruntime.cache import BLOCK_SIZE, PagedStore, gather, halves, scatter
from datong.errors import DeviceError
from datong.spec.program import CacheSpec, Step

FULL, WINDOW = CacheSpec(0, "full", 2, 4, 6), CacheSpec(3, "window", 1, 8, 8, 5)
LATENT, STATE = CacheSpec(1, "latent", 1, 5, 3), CacheSpec(2, "recurrent", 2, 3, 4)
SPECS = (FULL, WINDOW)


@pytest.mark.parametrize("length", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_what_is_scattered_in_pieces_is_gathered_whole(length):
    store, rng = PagedStore(SPECS, dtypes.F32, 9), np.random.default_rng(0)
    tables = rng.permutation(9)[:8].reshape(2, 4).astype(np.int32)
    for half in (store.keys[0], store.values[0], store.keys[3]):
        tokens = rng.standard_normal((2, half.shape[1], length, half.shape[3])).astype(np.float32)
        for start in range(0, length, 7):
            scatter(half, tables, start, tokens[:, :, start : start + 7])
        assert np.array_equal(gather(half, tables, length), tokens)
        assert gather(half, tables, 0).shape == (2, half.shape[1], 0, half.shape[3])


def test_blocks_that_a_window_has_left_are_zeros():
    store = PagedStore(SPECS, dtypes.F32, 2).keys[0]
    scatter(store, np.array([[0, 1]], np.int32), 0, np.full((1, 2, 2 * BLOCK_SIZE, 4), np.nan, np.float32))
    scatter(store, np.array([[0]], np.int32), 0, np.ones((1, 2, BLOCK_SIZE, 4), np.float32))
    found = gather(store, np.array([[-1, 0]], np.int32), BLOCK_SIZE + 3)
    assert not found[:, :, :BLOCK_SIZE].any() and (found[:, :, BLOCK_SIZE:] == 1).all()


def step(lens, tables, windows, slots):
    count = len(lens)
    return Step(
        np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count + 1), np.array(lens),
        np.array(tables, np.int32), np.zeros(0, np.int64), np.array(windows, np.int32), np.array(slots, np.int32),
    )  # fmt: skip


def test_windows_and_states_have_places_of_their_own():
    store = PagedStore((FULL, WINDOW, LATENT, STATE), dtypes.F32, 3, window_blocks=2, states=4)
    assert [halves(s) for s in (FULL, WINDOW, LATENT, STATE)] == [("key", "value")] * 2 + [("key",), ("recurrent",)]
    assert len(store.keys[0]) == len(store.keys[1]) == 3 and len(store.keys[3]) == 2
    now, members = step([1, 1], [[2], [0]], [[1], [0]], [3, 0]), np.array([0, 1])
    for spec in (FULL, WINDOW):
        store.keep(spec, "key", now, members, 0, np.ones((2, spec.kv_heads, 1, spec.key_dim), np.float32))
    assert store.keys[0][[0, 2], :, 0].all() and not store.keys[0][1].any() and store.keys[3][:2, :, 0].all()
    states = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4) + 1
    store.keep(STATE, "recurrent", now, members, 0, states)
    assert np.array_equal(store.past(STATE, "recurrent", now, members, 1), states)
    assert not store.past(STATE, "recurrent", now, members, 0).any()  # a sequence that begins
    store.copy_state(0, 1)
    assert np.array_equal(store.states[2, "recurrent"][1], states[1])
    with pytest.raises(DeviceError, match=r"target state should lie in 0\.\.3, is 4"):
        store.copy_state(0, 4)


def test_a_copied_block_is_a_copy_in_every_layer():
    store, table = PagedStore(SPECS, dtypes.BF16, 3), np.array([[2]], np.int32)
    for half in (store.keys[0], store.keys[3]):
        scatter(half, table, 0, np.full((1, half.shape[1], 5, half.shape[3]), 1.5, np.float32))
    store.copy_block(2, 0)
    scatter(store.keys[3], table, 0, np.zeros((1, 1, 5, 8), np.float32))
    for half in (store.keys[0], store.keys[3]):
        assert (gather(half, np.array([[0]], np.int32), 5) == 1.5).all()
    with pytest.raises(DeviceError, match=r"target block should lie in 0\.\.2, is 3"):
        store.copy_block(0, 3)


def test_the_layout_says_what_a_block_costs():
    layout = PagedStore((*SPECS, LATENT, STATE), dtypes.F16, 0).layout
    assert layout.bytes_per_block == BLOCK_SIZE * (2 * (4 + 6) + 5) * 2
    assert layout.bytes_per_window_block == BLOCK_SIZE * 16 * 2 and layout.bytes_per_state == 2 * 3 * 4 * 4
    with pytest.raises(DeviceError, match="at least 0 blocks"):
        PagedStore(SPECS, dtypes.F32, -1)
    with pytest.raises(DeviceError, match="a cache of 1000000000000 blocks needs"):
        PagedStore(SPECS, dtypes.F32, 10**12)
