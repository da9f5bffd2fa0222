"""The second independent backend: every golden through ONNX Runtime, and nothing that runs elsewhere in silence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import datong
from datong.conformance.models import run_models
from datong.errors import FallbackWarning, Unsupported

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
FAMILIES = ["internlm2", "internlm3", "llama3", "llama3_sharded", "qwen2", "qwen3", "smollm2"]
FAMILIES += ["deepseek_v3", "glm4_moe_lite"]
FAMILIES += ["minimax_text01", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"]
BOUND = 2e-3  # tests/data/goldens/README.md
AZURE = "onnxruntime:AzureExecutionProvider"  # in every wheel of PyPI; takes only nodes of its own


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def load(cache):
    """`load(family, …)` with models kept for the module."""
    kept: dict[object, datong.Model] = {}

    def loaded(family: str, **options) -> datong.Model:
        key = (family, *sorted(options.items()))
        if key not in kept:
            kept[key] = datong.load(GOLDENS / family, "onnxruntime", strict=True, threads=1, **options)
        return kept[key]

    return loaded


def answer(family: str) -> tuple[np.ndarray, np.ndarray]:
    stored = load_file(GOLDENS / family / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


@pytest.mark.parametrize("step_tokens", [512, 7, 1], ids=["whole", "chunks", "token by token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_golden_logits(load, family, step_tokens):
    ids, logits = answer(family)
    assert np.abs(load(family, step_tokens=step_tokens).logits(ids) - logits).max() <= BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_unequal_sequences(load, family):
    ids, logits = answer(family)
    lengths = [24, 1, 9, 17, 2, 9]
    for options in ({}, {"step_tokens": 10, "step_rows": 6}):
        batch = load(family, **options).logits_batch([ids[:n] for n in lengths])
        assert [len(rows) for rows in batch] == lengths
        assert max(np.abs(rows - logits[: len(rows)]).max() for rows in batch) <= BOUND


def test_windows_and_biases_of_models_made_here():
    results = list(run_models("onnxruntime"))
    assert [(r.model, r.state, r.elsewhere) for r in results if r.state != "passed" or r.elsewhere] == []
    assert any("window" in r.model for r in results)


def test_a_long_answer_leaves_the_window_as_on_the_reference(load):
    """Blocks that the window of Mistral has left are given back while it runs."""
    ids, _ = answer("qwen2")
    tokens = load("qwen2").generate(ids[:5], max_tokens=40).tokens
    forced = datong.load(GOLDENS / "qwen2", "reference").logits([*ids[:5].tolist(), *tokens])
    best = forced[4:-1].max(axis=1) - forced[np.arange(4, 4 + len(tokens)), tokens]
    assert len(tokens) == 40 and best.max() <= BOUND


def test_a_reused_beginning_and_a_batch_change_nothing(load):
    ids, _ = answer("internlm2")
    model = load("internlm2", context=128)
    long = [*ids.tolist(), *ids.tolist()]
    first = model.generate(long, max_tokens=4)
    again = model.generate(long, max_tokens=4)
    assert again.tokens == first.tokens and again.cached_tokens >= 32 > first.cached_tokens
    prompts = [ids[:n].tolist() for n in (24, 3, 11)]
    alone = [model.generate(p, max_tokens=6).tokens for p in prompts]
    assert [r.tokens for r in model.generate(prompts, max_tokens=6)] == alone


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 2e-2), ("bf16", 2e-1)])
def test_a_cache_of_sixteen_bits_is_near(load, dtype, bound):
    """Logits reach 8; bf16 keeps 8 bits of each key and value. The difference is there, so the cache is that narrow."""
    ids, logits = answer("llama3")
    worst = np.abs(load("llama3", cache_dtype=dtype, step_tokens=1).logits(ids) - logits).max()
    assert 1e-5 < worst <= bound


def test_weights_may_lie_elsewhere_than_the_graph(tmp_path):
    """An entry of the cache holds the graph, the checkpoint the weights; in a package both lie together."""
    ids, logits = answer("smollm2")
    root = tmp_path / "smollm2"
    shutil.copytree(GOLDENS / "smollm2", root)
    for model in (datong.load(root, "onnxruntime"), datong.load(datong.import_checkpoint(root), "onnxruntime")):
        assert np.abs(model.logits(ids) - logits).max() <= BOUND
        assert model.package.root.samefile(root) == (model.package.weights_root == model.package.root)


def test_what_the_provider_leaves_to_the_cpu_is_told_and_strict_refuses_it():
    ids, logits = answer("llama3")
    with pytest.warns(FallbackWarning, match=r"34 of 36 nodes run elsewhere.*CPUExecutionProvider: .*linear x15"):
        model = datong.load(GOLDENS / "llama3", AZURE)
    assert np.abs(model.logits(ids) - logits).max() <= BOUND
    with pytest.raises(Unsupported, match="run elsewhere than asked") as caught:
        datong.load(GOLDENS / "llama3", AZURE, strict=True)
    assert ("head", f"{AZURE}: runs on CPUExecutionProvider") in caught.value.reasons


def test_half_a_model_is_refused():
    with pytest.raises(Unsupported, match=r"a part should be a whole model with its graph\.onnx"):
        datong.load(GOLDENS / "llama3", "onnxruntime,reference", split=1)
