"""Golden checkpoints stored in bf16: exact by default, and near with bf16 activations."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import datong
from datong.backends.registry import backend_for
from datong.errors import Unsupported

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
FAMILIES = ["internlm2", "internlm3", "llama3", "qwen2", "qwen3", "smollm2"]
EXACT = 2e-3  # tests/data/goldens/README.md
# A named exception: each activation moves by up to 2^-9 of itself. Measured 0.05 to 0.08,
# on logits of standard deviation 1.6.
NEAR = 0.2

has_bf16 = backend_for("cpu").devices()[0].attributes["avx512_bf16"] == "1"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def stored(request, tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A checkpoint with its weights rounded to bf16, its prompt [24], and the definition's logits [24, vocab]."""
    root = tmp_path_factory.mktemp("bf16") / request.param
    root.mkdir()
    shutil.copy(GOLDENS / request.param / "config.json", root)
    weights = load_file(GOLDENS / request.param / "model.safetensors")
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    save_file(rounded, root / "model.safetensors", metadata={"format": "pt"})
    ids = load_file(GOLDENS / request.param / "golden.safetensors")["input_ids"][0]
    return root, ids, datong.load(root, "reference", cache_dtype="f32").logits(ids)


def test_exact_by_default(stored):
    root, ids, logits = stored
    assert np.abs(datong.load(root, "cpu", cache_dtype="f32", strict=True).logits(ids) - logits).max() <= EXACT


@pytest.mark.skipif(not has_bf16, reason="this processor has no avx512_bf16")
@pytest.mark.parametrize("step_tokens", [512, 7, 1], ids=["at once", "chunks", "token by token"])
def test_near_with_bf16_activations(stored, step_tokens):
    root, ids, logits = stored
    model = datong.load(root, "cpu", cache_dtype="f32", strict=True, activations="bf16", step_tokens=step_tokens)
    assert {p.implementation for _, p in model.placement() if p.op == "linear"} == {"linear_bf16_avx512bf16"}
    worst = np.abs(model.logits(ids) - logits).max()
    assert EXACT / 100 < worst <= NEAR


def test_other_weights_are_refused():
    with pytest.raises(Unsupported, match="activations=bf16 is for weights of format bf16, these are f32"):
        datong.load(GOLDENS / "llama3", "cpu", activations="bf16")
