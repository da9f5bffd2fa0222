"""The shapes of the largest models, as sparse checkpoints of full size: sizes and memory formula by hand.

bench/flagships.py has the counts, and measures time and memory.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from datong.package.create import import_checkpoint

BENCH = Path(__file__).resolve().parents[2] / "bench"
QUICK = ["Step-3", "Step-3.5-Flash", "MiniMax-M1", "SenseNova-U1-A3B"]  # the others have 45,000 tensors: in the bench


@pytest.fixture(scope="module")
def flagships() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("flagships", BENCH / "flagships.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["flagships"] = module  # dataclasses look it up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH))


@pytest.mark.parametrize("name", QUICK)
def test_full_size(flagships: ModuleType, tmp_path: Path, name: str) -> None:
    model = flagships.MODELS[name]
    length = flagships.write(tmp_path, model)
    assert length > 50e9 and (tmp_path / "model.safetensors").stat().st_blocks * 512 < 64 << 20, "sparse"
    manifest = import_checkpoint(tmp_path).manifest
    assert manifest.weights.parameters == pytest.approx(model.parameters * 1e9, rel=0.01)
    assert manifest.weights.bytes == 2 * manifest.weights.parameters
    per_token = sum(use.layers * use.values_per_token for use in manifest.memory.cache)
    assert per_token == pytest.approx(model.per_token, rel=0.01)
    assert manifest.memory.state_bytes == pytest.approx(model.state_bytes, rel=0.01)
    assert len(manifest.speculation) == model.config.get("num_nextn_predict_layers", 0)
    assert any(use.op == "MoE" for use in manifest.operator_set.operators)
