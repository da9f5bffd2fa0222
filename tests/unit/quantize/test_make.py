"""Quantising small checkpoints: formats by role, bytes, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import datong
from datong.errors import CheckpointError, InvalidRequest, PackageError
from datong.package.verify import verify
from datong.quantize.make import CHUNK, Made, quantise
from datong.quantize.rounding import GRIDS, encode, scales
from datong.spec.reference import dequantise

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("made")
    return {w: quantise(GOLDENS / "qwen3_moe", root / w, w) for w in ("int8", "int4")}


def formats(found: Made) -> dict[str, str]:
    return {c.matrix.name: c.format.name for c in found.choices}


@pytest.mark.parametrize(("weights", "form"), [("int8", "q8_0"), ("int4", "q4_0")])
def test_each_role_has_its_format(made: dict[str, Made], weights: str, form: str) -> None:
    found = formats(made[weights])
    assert found["model.layers.0.self_attn.q_proj.weight"] == form
    assert {f for name, f in found.items() if ".mlp.experts." in name} == {form}
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == "q8_0"
    plain = ("model.layers.1.mlp.gate.weight", "model.norm.weight", "model.layers.0.self_attn.q_norm.weight")
    assert {found[name] for name in plain} == {"f32"}


def test_every_row_is_at_its_nearest_code(made: dict[str, Made]) -> None:
    for choice in made["int4"].choices:
        if not choice.changed:
            continue
        m, package = choice.matrix, made["int4"].package
        pieces = {"codes": package.tensor(m.name), "scale": package.tensor(f"{m.name}.scale")}
        blocks = m.read(0, m.rows).reshape(-1, 32)
        grid = GRIDS[choice.format.name]
        scale = scales(blocks, grid)
        np.testing.assert_array_equal(
            dequantise(choice.format, pieces).reshape(-1, 32), encode(blocks, scale, grid) * scale.astype(np.float32)
        )


def test_the_package_is_whole_and_runs_alike_on_cpu_and_reference(made: dict[str, Made]) -> None:
    package = made["int4"].package
    verify(package)
    ids = np.arange(1, 24)
    ours = datong.load(package, activations="f32", cache_dtype="f32").logits(ids)
    assert np.abs(ours - datong.load(package, "reference").logits(ids)).max() < 1e-4
    before = datong.load(GOLDENS / "qwen3_moe", activations="f32").logits(ids)
    assert 0.01 < np.std(ours - before) / np.std(before) < 1


def test_what_is_not_rounded_is_copied(made: dict[str, Made]) -> None:
    found = made["int8"]
    for name in ("model.norm.weight", "model.layers.0.mlp.gate.weight"):
        np.testing.assert_array_equal(found.package.tensor(name), found.origin.tensor(name))
    assert found.package.read("config.json") == found.origin.read("config.json")
    assert found.package.manifest.model.source.endswith(", int8 by rtn")


def test_same_bytes_again(made: dict[str, Made], tmp_path: Path) -> None:
    again = quantise(GOLDENS / "qwen3_moe", tmp_path / "again", "int4").package
    first = made["int4"].package
    for name in ("model.safetensors", "datong.json", "graph.onnx"):
        assert (again.root / name).read_bytes() == (first.root / name).read_bytes()


def test_rows_in_small_chunks_give_the_same_bytes(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datong.quantize.make.CHUNK", 3 * 64)
    assert CHUNK > 3 * 64
    again = quantise(GOLDENS / "qwen3_moe", tmp_path / "again", "int4").package
    assert (again.root / "model.safetensors").read_bytes() == (
        made["int4"].package.root / "model.safetensors"
    ).read_bytes()


def test_matrices_that_have_no_blocks_stay_with_a_reason(tmp_path: Path) -> None:
    kept = quantise(GOLDENS / "minimax_m2", tmp_path / "made", "int4").kept()
    assert len(kept) == 16
    assert set(kept.values()) == {"rows of 48 values are no whole blocks of 32"}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts_in_one_tensor_stay_in_one(weights: str, tmp_path: Path) -> None:
    found = quantise(GOLDENS / "step3_text", tmp_path / "made", weights)
    stacks = {c.matrix.name: c for c in found.choices if len(c.matrix.shape) == 3}
    assert len(stacks) == 3
    assert {c.format.name for c in stacks.values()} == {"q8_0" if weights == "int8" else "q4_0"}
    ids = np.arange(1, 24)
    ours = datong.load(found.package, activations="f32", cache_dtype="f32").logits(ids)
    assert np.abs(ours - datong.load(found.package, "reference").logits(ids)).max() < 1e-3
    before = datong.load(GOLDENS / "step3_text", activations="f32").logits(ids)
    assert np.std(ours - before) / np.std(before) < (0.1 if weights == "int8" else 0.6)


def test_a_convolution_keeps_the_shape_it_is_stored_in(tmp_path: Path) -> None:
    found = quantise(GOLDENS / "qwen3_next", tmp_path / "made", "int8")
    shapes = {c.matrix.name: c.matrix.shape for c in found.choices}
    assert shapes["model.layers.0.linear_attn.conv1d.weight"] == (128, 1, 4)
    assert formats(found)["model.layers.0.linear_attn.conv1d.weight"] == "f32"
    assert formats(found)["model.layers.0.linear_attn.in_proj_qkvz.weight"] == "q8_0"
    assert formats(found)["model.layers.0.linear_attn.A_log"] == "f32"
    assert np.isfinite(datong.load(found.package, "reference").logits(np.arange(1, 9))).all()


def test_heads_for_speculation_come_along(tmp_path: Path) -> None:
    found = quantise(GOLDENS / "step3p5", tmp_path / "made", "int4")
    assert len(found.package.graphs()) == len(found.origin.graphs()) == 2
    assert formats(found)["model.layers.5.eh_proj.weight"] == "q4_0"
    verify(found.package)


def test_quantised_weights_are_rounded_again_only_when_asked(made: dict[str, Made], tmp_path: Path) -> None:
    source = made["int8"].package.root
    with pytest.raises(CheckpointError, match=r"quantised already, first `model.layers.0.* as q8_0"):
        quantise(source, tmp_path / "made", "int4")
    assert not (tmp_path / "made").exists()
    twice = quantise(source, tmp_path / "made", "int4", requantise=True)
    assert formats(twice) == formats(made["int4"])


def test_a_number_that_is_none_is_found(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "llama3", tmp_path / "bad")
    path = tmp_path / "bad" / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + size])["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
    data[8 + size + start + 8 : 8 + size + start + 12] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"`model.layers.1.mlp.up_proj.weight` should hold numbers up to 458528"):
        quantise(tmp_path / "bad", tmp_path / "made", "int8")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_words_and_targets_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="weights should be one of int8, int4, got `int3`"):
        quantise(GOLDENS / "llama3", tmp_path / "made", "int3")
    with pytest.raises(InvalidRequest, match=r"method should be one of rtn.*, got `magic`"):
        quantise(GOLDENS / "llama3", tmp_path / "made", "int4", method="magic")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(PackageError, match="should be a new directory, it holds files"):
        quantise(GOLDENS / "llama3", tmp_path / "full", "int4")


def test_a_package_is_not_written_over_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLDENS / "llama3", source)
    datong.import_checkpoint(source)
    with pytest.raises(PackageError, match="cannot be replaced by what is made of it"):
        quantise(source, source, "int4", force=True)
