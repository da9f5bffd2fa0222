"""The definitions with a state against closed forms that keep none, and against themselves however a prompt is cut."""

from collections.abc import Callable

import numpy as np
import pytest

from datong.spec import reference_state as definition
from datong.spec.program import Step

Run = Callable[[slice, Step, np.ndarray], np.ndarray]
T = 11


def step(new: list[int], lens: list[int], slots: list[int] | None = None) -> Step:
    zeros = np.zeros(sum(new), np.int64)
    starts, tables = np.cumsum([0, *new]), np.zeros((len(new), 0), np.int32)
    return Step(zeros, zeros, starts, np.array(lens), tables, np.zeros(0, np.int64), None,
                None if slots is None else np.array(slots, np.int32))  # fmt: skip


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, W = normal(T, 3), normal(3, 4, seed=4)
Q, K, V = normal(T, 2 * 5), normal(T, 2 * 5, seed=4), normal(T, 4 * 3, seed=5)
A, B, LOG, BIAS = normal(T, 4, seed=6), normal(T, 4, seed=7), normal(4, seed=8), normal(4, seed=9)
SLOPES = np.array([0.5, 0.01], np.float32)
DELTA = {"num_k_heads": 2, "num_v_heads": 4, "scale": 0.25, "eps": 0.1}


def conv(rows: slice, step: Step, state: np.ndarray) -> np.ndarray:
    return definition.causal_conv(X[rows], W, step=step, state=state)


def delta(rows: slice, step: Step, state: np.ndarray) -> np.ndarray:
    parts = (x[rows] for x in (Q, K, V, A, B))
    return definition.gated_delta(*parts, LOG, BIAS, step=step, state=state, **DELTA)


def linear(rows: slice, step: Step, state: np.ndarray) -> np.ndarray:
    parts = (x[rows] for x in (Q, K, V))
    return definition.linear_attention(*parts, SLOPES, step=step, state=state, num_heads=2, scale=0.25)


CASES: list[tuple[Run, tuple[int, ...]]] = [(conv, (1, 3, 3)), (delta, (4, 5, 3)), (linear, (2, 5, 6))]
each = pytest.mark.parametrize(("run", "shape"), CASES, ids=["conv", "delta", "linear"])


def soiled(shape: tuple[int, ...], slots: int = 1) -> np.ndarray:
    return np.full((slots, *shape), 9.0, np.float32)


def test_conv_is_numpys() -> None:
    y = conv(slice(None), step([T], [T]), soiled((1, 3, 3)))
    for c in range(3):
        np.testing.assert_allclose(y[:, c], np.convolve(X[:, c], W[c, ::-1])[:T], rtol=1e-5, atol=1e-6)


def test_conv_adds_its_bias_before_silu() -> None:
    bias = normal(3, seed=12)
    plain = conv(slice(None), step([T], [T]), soiled((1, 3, 3))) + bias
    y = definition.causal_conv(X, W, bias, step=step([T], [T]), state=soiled((1, 3, 3)), kind="silu")
    np.testing.assert_allclose(y, plain / (1 + np.exp(-plain)), rtol=1e-5, atol=1e-6)


def test_linear_attention_is_a_sum_over_the_past() -> None:
    y = linear(slice(None), step([T], [T]), soiled((2, 5, 6))).reshape(T, 2, 6)
    q, k, v = (x.reshape(T, 2, -1).astype(np.float64) for x in (Q, K, V))
    for t in range(T):
        for h in range(2):
            terms = [np.exp(-float(SLOPES[h]) * (t - j)) * (q[t, h] @ k[j, h]) * v[j, h] for j in range(t + 1)]
            np.testing.assert_allclose(y[t, h], 0.25 * sum(terms), rtol=1e-5, atol=1e-6)


def test_gated_delta_is_a_product_of_matrices() -> None:
    y = delta(slice(None), step([T], [T]), soiled((4, 5, 3))).reshape(T, 4, 3)
    q, k, v = (x.reshape(T, h, -1).astype(np.float64) for x, h in ((Q, 2), (K, 2), (V, 4)))
    q, k = (x * (np.square(x).sum(-1, keepdims=True) + DELTA["eps"]) ** -0.5 for x in (q, k))
    for h in range(4):
        s = np.zeros((5, 3))
        for t in range(T):
            decay, beta = (1 + np.exp(A[t, h] + BIAS[h])) ** -np.exp(LOG[h]), 1 / (1 + np.exp(-B[t, h]))
            key = k[t, h // 2][:, None]
            s = decay * (np.eye(5) - beta * key @ key.T) @ s + beta * key @ v[t, h][None]
            np.testing.assert_allclose(y[t, h], 0.25 * q[t, h // 2] @ s, rtol=1e-4, atol=1e-6)


@each
@pytest.mark.parametrize("cut", [[1] * T, [4, 7], [10, 1], [1, 10]])
def test_pieces_give_what_the_whole_gives(run: Run, shape: tuple[int, ...], cut: list[int]) -> None:
    whole, state, done, parts = run(slice(None), step([T], [T]), soiled(shape)), soiled(shape, 3), 0, []
    for n in cut:
        parts.append(run(slice(done, done + n), step([n], [done + n], [1]), state))
        done += n
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)
    assert (state[[0, 2]] == 9).all()


@each
def test_sequences_do_not_meet(run: Run, shape: tuple[int, ...]) -> None:
    state = soiled(shape, 4)
    y = run(slice(None), step([4, 0, 7], [4, 5, 7], [2, 0, 3]), state)
    np.testing.assert_array_equal(y[:4], run(slice(0, 4), step([4], [4]), soiled(shape)))
    np.testing.assert_array_equal(y[4:], run(slice(4, T), step([7], [7]), soiled(shape)))
    assert (state[[0, 1]] == 9).all()  # a sequence without new tokens keeps its state
