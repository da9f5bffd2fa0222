"""The paged store gives back what was put in, wherever its blocks lie."""

import numpy as np
import pytest

from datong import dtypes
from datong.backends.onnxruntime.cache import BLOCK_SIZE, PagedStore
from datong.errors import DeviceError
from datong.spec.program import CacheSpec

SPECS = (CacheSpec(0, "full", 2, 4, 6), CacheSpec(3, "window", 1, 8, 8, 5))


@pytest.mark.parametrize("length", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_what_is_scattered_in_pieces_is_gathered_whole(length):
    store, rng = PagedStore(SPECS, dtypes.F32, 9), np.random.default_rng(0)
    tables = rng.permutation(9)[:8].reshape(2, 4).astype(np.int32)
    for layer, half, heads, dim in ((0, "key", 2, 4), (0, "value", 2, 6), (3, "key", 1, 8)):
        tokens = rng.standard_normal((2, heads, length, dim)).astype(np.float32)
        for start in range(0, length, 7):
            store.scatter(layer, half, tables, start, tokens[:, :, start : start + 7])
        assert np.array_equal(store.gather(layer, half, tables, length), tokens)
        assert store.gather(layer, half, tables, 0).shape == (2, heads, 0, dim)


def test_blocks_that_a_window_has_left_are_zeros():
    store = PagedStore(SPECS, dtypes.F32, 2)
    store.scatter(0, "key", np.array([[0, 1]], np.int32), 0, np.full((1, 2, 2 * BLOCK_SIZE, 4), np.nan, np.float32))
    store.scatter(0, "key", np.array([[0]], np.int32), 0, np.ones((1, 2, BLOCK_SIZE, 4), np.float32))
    found = store.gather(0, "key", np.array([[-1, 0]], np.int32), BLOCK_SIZE + 3)
    assert not found[:, :, :BLOCK_SIZE].any() and (found[:, :, BLOCK_SIZE:] == 1).all()


def test_a_copied_block_is_a_copy_in_every_layer():
    store, table = PagedStore(SPECS, dtypes.BF16, 3), np.array([[2]], np.int32)
    for layer, heads, dim in ((0, 2, 4), (3, 1, 8)):
        store.scatter(layer, "key", table, 0, np.full((1, heads, 5, dim), 1.5, np.float32))
    store.copy_block(2, 0)
    store.scatter(3, "key", table, 0, np.zeros((1, 1, 5, 8), np.float32))
    for layer in (0, 3):
        assert (store.gather(layer, "key", np.array([[0]], np.int32), 5) == 1.5).all()
    with pytest.raises(DeviceError, match=r"target block should lie in 0\.\.2, is 3"):
        store.copy_block(0, 3)


def test_the_layout_says_what_a_block_costs():
    assert PagedStore(SPECS, dtypes.F16, 0).layout.bytes_per_block == BLOCK_SIZE * (2 * (4 + 6) + 16) * 2
    with pytest.raises(DeviceError, match="at least 0 blocks"):
        PagedStore(SPECS, dtypes.F32, -1)
    with pytest.raises(DeviceError, match="a cache of 1000000000000 blocks needs"):
        PagedStore(SPECS, dtypes.F32, 10**12)
