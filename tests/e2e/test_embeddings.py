"""Texts as vectors: transformers' last hidden states, pooled, against ours on every golden family that it opens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import datong
from datong.errors import InvalidRequest

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
PROMPTS = [list(range(3, 41)), [7], [90, 5, 33, 2, 61]]


def states(model: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    """[T, n] f64 after the last norm."""
    with torch.no_grad():
        return model.model(torch.tensor([ids])).last_hidden_state[0].double().numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("device", ["cpu", "reference", "torch:cpu"])
@pytest.mark.parametrize("family", ["llama3", "glm4", "gpt_oss"])
def test_transformers_gives_the_same_vectors(family: str, device: str, tmp_path: Path) -> None:
    directory = tmp_path / family
    shutil.copytree(GOLDENS / family, directory, ignore=shutil.ignore_patterns("golden.*"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = datong.load(directory, device, hidden=True, threads=1 if device == "cpu" else None, step_tokens=16)
    for how in ("mean", "last"):
        want = [states(theirs, ids) for ids in PROMPTS]
        want = [unit(one.mean(0) if how == "mean" else one[-1]) for one in want]
        got = ours.embed(PROMPTS, pooling=how)
        assert got.shape == (3, len(want[0])) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=2e-4)
    assert ours.engine.pool.held == 0
    short = ours.embed(PROMPTS[0], pooling="last", dimensions=8)
    np.testing.assert_allclose(short, unit(want[0][:8]), atol=5e-4)
    text = ours.generate(PROMPTS[2], max_tokens=8).tokens
    assert (
        text
        == datong.load(directory, device, threads=1 if device == "cpu" else None)
        .generate(PROMPTS[2], max_tokens=8)
        .tokens
    )


def test_refusals(package_template: Path) -> None:
    with pytest.raises(InvalidRequest, match="hidden"):
        datong.load(package_template, threads=1).embed("a")
    model = datong.load(package_template, threads=1, hidden=True)
    for wrong in ({"pooling": "cls"}, {"dimensions": 0}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            model.embed("a", **wrong)


def test_a_preempted_text_has_the_same_vector(package_template: Path) -> None:
    """Answers take the cache away from under it."""
    roomy = datong.load(package_template, threads=1, hidden=True)
    model = datong.load(package_template, threads=1, hidden=True, step_tokens=4, cache_tokens=256)
    from datong.engine.embedding import Embedding

    ids = [int(t) for t in np.random.default_rng(0).integers(3, 90, 100)]
    work = Embedding(ids, "mean")
    model.engine.submit(work)
    for _ in range(4):
        model.engine.step()
    assert 0 < work.sequence.scored < 100
    model.engine.scheduler._preempt(work.sequence)
    while not work.done:
        model.engine.step()
    np.testing.assert_allclose(work.vector, roomy.embed(ids), atol=1e-5)
