"""The inputs of linear layers, gathered by the engine, against the reference backend's own."""

from pathlib import Path

import numpy as np
import pytest

from datong.compiler.pipeline import lower
from datong.engine.load import load
from datong.errors import InvalidRequest, TokenizerError
from datong.package.reader import Package
from datong.package.store import resolve
from datong.quantize import calibrate, source, texts
from datong.quantize.make import quantise

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"
TEXTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def package() -> Package:
    return resolve(GOLDENS / "qwen3_moe")


def values(package: Package) -> list[str]:
    draft = lower(package.graph(), package.weights_root)
    return [m.value for m in source.matrices(package, [draft]) if m.role == source.LINEAR]


def test_inputs_of_the_first_layer_are_the_normed_embedding(package: Package) -> None:
    found = calibrate.Inputs(package, lambda: TEXTS).gram("model.layers.0.self_attn.q_proj.weight")
    x = package.tensor("model.embed_tokens.weight")[[*TEXTS[0], *TEXTS[1]]].astype(np.float64)
    x = (
        x
        / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-6)
        * package.tensor("model.layers.0.input_layernorm.weight")
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(found, x.T @ x / len(x), atol=1e-5)


def test_a_small_budget_gives_the_same_sums_in_more_runs(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    names = values(package)
    whole = calibrate.Inputs(package, lambda: TEXTS)
    first = [np.array(whole.gram(name)) for name in names]
    monkeypatch.setattr(calibrate, "BUDGET", 3 * 64 * 64 * 4)
    inner = calibrate.Inputs._gather
    monkeypatch.setattr(calibrate.Inputs, "_gather", lambda self, ns: (runs.append(len(ns)), inner(self, ns))[1])
    parts = calibrate.Inputs(package, lambda: TEXTS)
    for name, gram in zip(names, first, strict=True):
        np.testing.assert_array_equal(parts.gram(name), gram)
    assert len(runs) > 1
    assert max(runs) <= 3


def test_matrices_of_experts_and_of_the_vocabulary_are_not_seen(package: Package) -> None:
    inputs = calibrate.Inputs(package, lambda: TEXTS)
    assert inputs.gram("model.layers.0.mlp.experts.0.gate_proj.weight") is None
    assert inputs.gram("lm_head.weight") is None


def test_a_calibrated_package_keeps_the_logits_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LENGTH", 32)
    ids = np.random.default_rng(0).integers(0, 128, 60)
    before = load(GOLDENS / "llama3", activations="f32", cache_dtype="f32").logits(ids)
    errors = {}
    for method in ("rtn", "gptq"):
        made = quantise(GOLDENS / "llama3", tmp_path / method, "int4", method=method)
        after = load(made.package, activations="f32", cache_dtype="f32").logits(ids)
        errors[method] = float(np.square(after - before).mean())
    assert errors["gptq"] < 0.8 * errors["rtn"]
    again = quantise(GOLDENS / "llama3", tmp_path / "again", "int4", method="gptq").package
    assert (again.root / "model.safetensors").read_bytes() == (tmp_path / "gptq" / "model.safetensors").read_bytes()


def test_what_the_model_writes_begins_everywhere_and_repeats(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LENGTH", 20)
    found = texts.written(package)
    assert len(found) == texts.PIECES
    assert len({piece[0] for piece in found}) > 40
    assert {len(piece) for piece in found} == {20}
    assert texts.written(package) == found


def test_a_text_for_a_method_that_reads_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a text to calibrate on was given, method `rtn` uses none"):
        quantise(GOLDENS / "llama3", tmp_path / "made", "int4", calibration="text")
    (tmp_path / "text").write_text("words")
    with pytest.raises(TokenizerError, match=r"should hold a tokenizer.json"):
        quantise(GOLDENS / "llama3", tmp_path / "made", "int4", method="gptq", calibration=tmp_path / "text")
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="should be UTF-8 text"):
        quantise(GOLDENS / "llama3", tmp_path / "made", "int4", method="gptq", calibration=tmp_path / "text")
