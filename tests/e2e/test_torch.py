"""`torch:cpu` through the public API: goldens however they are asked for, a real model, and an operator taken away."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import datong
from datong.backends import registry
from datong.backends import torch as family
from datong.errors import FallbackWarning, Unsupported

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDENS = DATA / "goldens"
FAMILIES = sorted({path.parent.name for path in GOLDENS.glob("*/golden.safetensors")} - {"internlm3_ntk"})
BOUND = 2e-3  # tests/data/goldens/README.md
Load = Callable[..., datong.Model]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """`load(family, **options)`: on torch:cpu, one thread, kept for the module with a cache directory of its own."""
    kept: dict[object, datong.Model] = {}

    def loaded(name: str, device: str = "torch:cpu", **options: object) -> datong.Model:
        key = (name, device, *sorted(options.items()))
        if key not in kept:
            kept[key] = datong.load(GOLDENS / name, device, strict=True, threads=1, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield loaded


def answer(name: str) -> tuple[np.ndarray, np.ndarray]:
    """ids [24], logits [24, vocab]."""
    stored = load_file(GOLDENS / name / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


@pytest.mark.parametrize("step_tokens", [512, 7, 1], ids=["whole", "chunks", "token by token"])
@pytest.mark.parametrize("name", FAMILIES)
def test_goldens(load: Load, name: str, step_tokens: int) -> None:
    ids, logits = answer(name)
    got = load(name, step_tokens=step_tokens).logits(ids)
    assert got.shape == logits.shape and got.dtype == np.float32
    assert np.abs(got - logits).max() <= BOUND


@pytest.mark.parametrize("buckets", ["off", "on"])
@pytest.mark.parametrize("name", FAMILIES)
def test_goldens_in_a_batch_of_unequal_sequences(load: Load, name: str, buckets: str) -> None:
    ids, logits = answer(name)
    lengths = [24, 1, 9, 17, 2]
    for options in ({}, {"step_tokens": 10, "step_rows": 6}, {"step_tokens": 5}):
        batch = load(name, buckets=buckets, **options).logits_batch([ids[:n] for n in lengths])
        assert [len(rows) for rows in batch] == lengths
        assert max(np.abs(rows - logits[: len(rows)]).max() for rows in batch) <= BOUND


@pytest.mark.parametrize("buckets", ["off", "on"])
def test_greedy_in_a_batch_equals_alone_and_the_reference(load: Load, buckets: str) -> None:
    model, ids = load("qwen2", buckets=buckets), answer("qwen2")[0]
    prompts = [ids[:n].tolist() for n in (24, 3, 11)]
    alone = [model.generate(p, max_tokens=40).tokens for p in prompts]
    assert [r.tokens for r in model.generate(prompts, max_tokens=40)] == alone  # 40: longer than qwen2's window
    assert load("qwen2", "reference").generate(prompts[2], max_tokens=40).tokens == alone[2]


def test_a_short_cache_preempts_and_changes_nothing(load: Load) -> None:
    ids, _ = answer("smollm2")
    prompts = [ids[:n].tolist() for n in (20, 18, 16, 14)]
    want = [r.tokens for r in load("smollm2").generate(prompts, max_tokens=40)]
    short = load("smollm2", context=64, cache_tokens=96)  # blocks come back in another order: no longer in a row
    assert [r.tokens for r in short.generate(prompts, max_tokens=40)] == want
    assert short.engine.scheduler.preemptions > 0


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.1), ("f16", 0.02)])
def test_lower_precision_is_near(load: Load, dtype: str, bound: float) -> None:
    ids, logits = answer("llama3")
    got = load("llama3", compute_dtype=dtype).logits(ids)
    assert 1e-4 < np.abs(got - logits).max() <= bound * np.abs(logits).max()


# ---- an operator less ------------------------------------------------------------------------------------------------


def test_an_operator_taken_away_runs_on_the_reference_and_is_shown(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, logits = answer("llama3")
    without = {"glu", "linear_glu"}
    registry._member.cache_clear()
    monkeypatch.setattr(family, "create", lambda device: family.here(device, without=without))
    try:
        with pytest.warns(FallbackWarning, match=r"glu.*reference"):
            model = datong.load(GOLDENS / "llama3", "torch:cpu", threads=1)
        assert {(where, p.op) for where, p in model.placement() if where != "torch:cpu"} == {("reference", "glu")}
        assert np.abs(model.logits(ids) - logits).max() <= BOUND
        with pytest.raises(Unsupported, match="`glu` was taken from this backend"):
            datong.load(GOLDENS / "llama3", "torch:cpu", strict=True)
    finally:
        registry._member.cache_clear()


# ---- what a start costs ----------------------------------------------------------------------------------------------

CHILD = """
import json, sys
import datong
from datong.backends import registry
names = [info.name for info in datong.devices()]
loaded = "torch" in sys.modules
registry.backend_for("torch:cpu")
print(json.dumps([names, loaded, "torch" in sys.modules]))
"""


def test_torch_is_imported_when_asked_for_and_not_before() -> None:
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=120)
    names, before, after = json.loads(run.stdout)
    assert "torch:cpu" in names and not before and after


# ---- a real model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> "dict[str, datong.Model]":
    options = {"threads": 1, "context": 2048, "strict": True}
    return {
        "torch": datong.load("smollm2", "torch:cpu", **options),
        "bf16": datong.load("smollm2", "torch:cpu", compute_dtype="bf16", **options),
    }


@pytest.mark.smollm2
@pytest.mark.parametrize("case", range(3))
def test_smollm2_continues_as_llama_cpp_in_f32(smollm2: "dict[str, datong.Model]", case: int) -> None:
    peer = json.loads((DATA / "smollm2" / "llama_cpp_f32.json").read_text(encoding="utf-8"))["greedy"][case]
    logits = smollm2["torch"].logits(np.asarray(peer["ids"] + peer["tokens"][:-1]))[len(peer["ids"]) - 1 :]
    for ours, theirs, top in zip(logits.argmax(axis=1).tolist(), peer["tokens"], peer["top"], strict=True):
        if ours != theirs:
            known = {int(i): logit for i, logit in top}
            assert ours in known and known[theirs] - known[ours] < 0.05  # a near tie; what follows is another text
            return


@pytest.mark.smollm2
@pytest.mark.parametrize(("kind", "bound"), [("torch", 0.005), ("bf16", 0.02)])
def test_smollm2_perplexity(smollm2: "dict[str, datong.Model]", kind: str, bound: float) -> None:
    text = json.loads((DATA / "smollm2" / "llama_cpp_f32.json").read_text(encoding="utf-8"))["text"]
    ids = text["ids"]
    rows = smollm2[kind].logits(np.asarray(ids))[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    likelihood = rows[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(rows).sum(axis=1))
    assert float(np.exp(-likelihood.mean())) == pytest.approx(text["perplexity"], rel=bound)


@pytest.mark.smollm2
def test_tied_embeddings_are_one_tensor(smollm2: "dict[str, datong.Model]") -> None:
    parameters = 134_515_008  # of SmolLM2-135M, its card; the embedding counted once
    assert smollm2["torch"].memory()["weights_private"] == 4 * parameters
    assert smollm2["bf16"].memory()["weights_private"] == 2 * parameters
