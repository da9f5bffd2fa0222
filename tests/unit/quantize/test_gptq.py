import numpy as np
import pytest

from datong.quantize.gptq import factor, feed_back
from datong.quantize.rounding import GRIDS, Grid, encode, scales

GRID = list(GRIDS.values())


def inputs(seed: int, count: int = 2000, width: int = 96) -> np.ndarray:
    """Correlated, as the inputs of a layer are: sums of 24 patterns, some channels larger than others."""
    rng = np.random.default_rng(7)
    patterns = rng.standard_normal((24, width)) * np.exp(rng.standard_normal(width))
    noise = np.random.default_rng(seed)
    return (noise.standard_normal((count, 24)) @ patterns + 0.3 * noise.standard_normal((count, width))).astype(
        np.float32
    )


def gram(x: np.ndarray) -> np.ndarray:
    return x.T @ x / np.float32(len(x))


def values(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (codes.reshape(-1, 32) * scale.astype(np.float32)).reshape(codes.shape)


@pytest.mark.parametrize("grid", GRID, ids=lambda g: g.format.name)
def test_outputs_are_nearer_than_with_plain_rounding_on_other_inputs(grid: Grid) -> None:
    rows = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    h = gram(inputs(1))
    codes, scale = feed_back(rows, h, factor(h), grid)
    plain = scales(rows.reshape(-1, 32), grid)
    nearest = encode(rows.reshape(-1, 32), plain, grid).reshape(rows.shape)
    x = inputs(2)
    errors = [np.square(x @ (rows - values(*pair)).T).mean() for pair in ((codes, scale), (nearest, plain))]
    assert errors[0] < 0.6 * errors[1]
    assert grid.low <= codes.min()
    assert codes.max() <= grid.high
    np.testing.assert_array_equal(codes, np.rint(codes))


def test_without_correlations_it_is_rounding_to_nearest() -> None:
    rows, grid = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32), GRIDS["q4_0"]
    h = np.eye(64, dtype=np.float32)
    codes, scale = feed_back(rows, h, factor(h), grid)
    plain = scales(rows.reshape(-1, 32), grid)
    np.testing.assert_array_equal(scale, plain)
    np.testing.assert_array_equal(codes, encode(rows.reshape(-1, 32), plain, grid).reshape(5, 64))


def test_factor_is_the_root_of_the_inverse() -> None:
    h = gram(inputs(3))
    upper = factor(h).astype(np.float64)
    assert not np.tril(upper, -1).any()
    damped = h + np.diag(np.diag(h) + 1e-4 * np.diag(h).mean())
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(96), atol=1e-3)


def test_rows_are_independent() -> None:
    rows, h, grid = np.random.default_rng(4).standard_normal((6, 96)).astype(np.float32), gram(inputs(5)), GRIDS["q4_0"]
    whole = feed_back(rows, h, factor(h), grid)
    parts = [feed_back(rows[a:b], h, factor(h), grid) for a, b in ((0, 2), (2, 6))]
    for i in (0, 1):
        together = np.concatenate([part[i] for part in parts])
        assert (whole[i] == together).mean() > 0.99  # sums of another shape may round otherwise


@pytest.mark.parametrize("dead", [0, 5, 64])
def test_inputs_that_never_occur_do_no_harm(dead: int) -> None:
    x = inputs(6, width=64)
    x[:, :dead] = 0
    rows, h = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32), gram(x)
    codes, scale = feed_back(rows, h, factor(h), GRIDS["q8_0"])
    assert np.isfinite(codes).all()
    assert np.isfinite(scale).all()
