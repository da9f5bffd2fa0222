import numpy as np
import pytest

from datong.quantize.rounding import GRIDS, Grid, encode, pack, scales
from datong.spec.reference import dequantise

GRID = list(GRIDS.values())


def blocks(seed: int = 0, count: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float32)


def values(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return codes * scale.astype(np.float32)


@pytest.mark.parametrize("grid", GRID, ids=lambda g: g.format.name)
def test_stored_pieces_mean_what_was_encoded(grid: Grid) -> None:
    x = blocks()
    scale = scales(x, grid)
    codes = encode(x, scale, grid)
    raw = np.frombuffer(pack(codes, grid), grid.format.codes.numpy).reshape(1, 64, -1)
    read = dequantise(grid.format, {"codes": raw, "scale": scale.reshape(1, 64, 1)})
    np.testing.assert_array_equal(read.reshape(64, 32), values(codes, scale))
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high


@pytest.mark.parametrize("grid", GRID, ids=lambda g: g.format.name)
def test_no_other_scale_near_is_much_better(grid: Grid) -> None:
    x = blocks(1, 16)
    scale = scales(x, grid)
    found = np.square(x - values(encode(x, scale, grid), scale)).sum(axis=1)
    peak = np.abs(x).max(axis=1, keepdims=True)
    best = np.full(16, np.inf)
    for target in np.concatenate([np.linspace(0.7, 1.3, 400) * grid.low, np.linspace(0.7, 1.3, 400) * grid.high]):
        s = (peak / target).astype(np.float16)
        for signed in (s, -s):
            best = np.minimum(best, np.square(x - values(encode(x, signed, grid), signed)).sum(axis=1))
    usual = (peak / grid.low).astype(np.float16)
    plain = np.square(x - values(encode(x, usual, grid), usual)).sum(axis=1)
    assert found.sum() < 0.93 * plain.sum()
    assert found.sum() < 1.25 * best.sum()  # of 800 scales: int8 gains a little from each further try


def test_weights_move_the_error_to_where_it_counts_less() -> None:
    x, grid = blocks(2), GRIDS["q4_0"]
    heavy = np.where(np.arange(32) < 4, 100, 1).astype(np.float32)[None]
    plain, weighted = scales(x, grid), scales(x, grid, heavy)
    errors = [np.square(x - values(encode(x, s, grid), s))[:, :4].sum() for s in (plain, weighted)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("grid", GRID, ids=lambda g: g.format.name)
def test_blocks_at_the_edges_of_f16(grid: Grid) -> None:
    x = np.zeros((4, 32), np.float32)
    x[1] = 1e-12  # its scale is 0 in f16
    x[2, 5] = 65504 * 7  # the largest that fits, with the largest scale
    x[3] = np.linspace(-2e-7, 2e-7, 32)  # subnormal scale
    scale = scales(x, grid)
    codes = encode(x, scale, grid)
    assert np.isfinite(scale).all()
    assert not codes[:2].any()
    assert codes[2, 5] * float(scale[2, 0]) == pytest.approx(65504 * 7, rel=1e-3)
    assert np.square(x[3] - values(codes[3], scale[3])).sum() <= np.square(x[3]).sum()


def test_same_numbers_same_scales_in_any_grouping() -> None:
    x, grid = blocks(3), GRIDS["q4_0"]
    np.testing.assert_array_equal(scales(x, grid), np.concatenate([scales(x[:7], grid), scales(x[7:], grid)]))
