"""The delta rule in chunks against token by token in f64, where chunks are known to go wrong."""

import numpy as np
import pytest
import torch
from torch import Tensor

from datong.backends.torch.lower.state import DELTA_CHUNK, _Chunk

CHUNK = _Chunk(DELTA_CHUNK, torch.device("cpu"))
DIM, VALUE = 8, 5


def by_token(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """All [n, …], one head; f64."""
    results = []
    for t in range(len(q)):
        state = state * torch.exp(decay[t])
        state = state + torch.outer(k[t], beta[t] * (v[t] - state.T @ k[t]))
        results.append(state.T @ q[t])
    return torch.stack(results), state


def keys(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    found = rng.standard_normal((n, DIM))
    if kind == "alike":  # the inverse then has entries of 1, the powers of its matrix some of 10^9
        found[:] = found[0]
    if kind == "there and back":
        found = found[0] * np.where(np.arange(n) % 2, -1.0, 1.0)[:, None]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("decay", [0.0, -1e-3, -3.0, -200.0])
@pytest.mark.parametrize("kind", ["random", "alike", "there and back"])
@pytest.mark.parametrize("n", [2, 31, 32, 33, 200])
def test_chunks_give_what_tokens_give(n: int, kind: str, decay: float) -> None:
    rng = np.random.default_rng(n)
    q, k, v = rng.standard_normal((n, DIM)), keys(kind, n, rng), rng.standard_normal((n, VALUE))
    g, beta = np.full(n, decay) * rng.uniform(0.5, 1.0, n), np.where(rng.random(n) < 0.5, 1.0, rng.random(n))
    state = rng.standard_normal((DIM, VALUE))
    exact = [torch.tensor(x) for x in (state, q, k, v, g, beta)]
    y, after = by_token(*exact)
    state_, q_, k_, v_, g_, beta_ = (x.to(torch.float32)[None, None] for x in exact)
    got, got_after = CHUNK.walk(state_, q_, k_, v_, g_, beta_[..., None])
    assert got.shape == (1, 1, n, VALUE)
    torch.testing.assert_close(got[0, 0].double(), y, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(got_after[0, 0].double(), after, rtol=2e-4, atol=2e-5)
