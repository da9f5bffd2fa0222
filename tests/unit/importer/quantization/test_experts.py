"""Experts in published formats, one by one and stacked: the logits are those of the values that the codes stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import datong
from datong.errors import CheckpointError
from tests.unit.importer.quantization.test_float import Tensors, _nvfp4, fp8, modelopt, mxfp4, mxfp8
from tests.unit.importer.quantization.test_integer import ct, packed_int4

GOLDENS = Path(__file__).parents[3] / "data" / "goldens"
DEVICES = ["reference", "cpu", "torch:cpu", "onnxruntime"]
BOUND = 2e-4  # both sides have the same values: only the order of sums differs
One = Callable[[str, np.ndarray], tuple[Tensors, np.ndarray]]


def nvfp4_ct(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """As compressed-tensors names it: scales are divided by the global one."""
    factor = np.float32(np.abs(w).max() / 6 / 448)
    codes, scale, values = _nvfp4(w, factor)
    return {f"{name}_packed": codes, f"{name}_scale": scale, f"{name}_global_scale": torch.tensor(1 / factor)}, values


def mxfp4_ct(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    made, values = mxfp4(name, w)
    packed, scale = made.values()
    return {f"{name}_packed": packed.flatten(1), f"{name}_scale": scale}, values


def stacked(one: One) -> One:
    """Each expert by `one`, the tensors of all stacked; numbers become a vector [E]."""

    def pack(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        every = [one(name, part) for part in w]
        return {k: torch.stack([made[k] for made, _ in every]) for k in every[0][0]}, np.stack([v for _, v in every])

    return pack


def apart(one: One) -> One:
    """Each expert by `one`, under a name of its own."""

    def pack(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        before, after = name.replace("moe.", "moe.experts.").split("experts.")
        tensors: Tensors = {}
        values = []
        for i, part in enumerate(w):
            made, value = one(f"{before}experts.{i}.{after}", part)
            tensors |= made
            values.append(value)
        return tensors, np.stack(values)

    return pack


def turned(one: One) -> One:
    """Stacks that a checkpoint without blocks stores as [E, in, out]."""

    def pack(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        made, values = one(name, w.transpose(0, 2, 1))
        return made, values.transpose(0, 2, 1)

    return pack


def plain(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    return {name: torch.from_numpy(w)}, w


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CASES: dict[str, tuple[str, One, Any]] = {
    "stacked fp8": ("step3p5", stacked(fp8), FP8),
    "stacked mxfp8": ("step3p5", stacked(mxfp8), {"quant_method": "mxfp8", "weight_block_size": [1, 32]}),
    "stacked nvfp4": ("step3p5", stacked(modelopt), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "stacked mxfp4": ("gpt_oss", turned(stacked(mxfp4)), {"quant_method": "mxfp4"}),
    "nvfp4 one by one": ("step3p5", apart(nvfp4_ct), ct("nvfp4-pack-quantized")),
    "mxfp4 one by one": ("step3p5", apart(mxfp4_ct), ct("mxfp4-pack-quantized")),
    "int4 one by one": ("step3p5", apart(packed_int4), ct("pack-quantized")),
    "plain one by one": ("step3p5", apart(plain), None),
}


def write(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / "model.safetensors")
    return directory


def pair(case: str, root: Path) -> tuple[Path, Path]:
    """The quantised checkpoint, and one of the values that it stands for."""
    family, pack, stated = CASES[case]
    config = json.loads((GOLDENS / family / "config.json").read_text())
    packed, values = dict(load_file(GOLDENS / family / "model.safetensors")), {}
    for name, w in list(packed.items()):
        if w.dim() == 3:
            del packed[name]
            made, meant = pack(name, w.float().numpy())
            packed |= made
            values[name] = torch.from_numpy(meant.astype(np.float32))
    values = {k: v for k, v in packed.items() if k in load_file(GOLDENS / family / "model.safetensors")} | values
    config_packed = config if stated is None else config | {"quantization_config": stated}
    return write(root / "packed", config_packed, packed), write(root / "plain", config, values)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_values(case: str, tmp_path: Path) -> None:
    packed, values = pair(case, tmp_path)
    ids = np.arange(3, 20)
    wanted = datong.load(values, "reference", cache_dtype="f32").logits(ids)
    options = {"cpu": {"activations": "f32"}, "torch:cpu": {"compute_dtype": "f32"}}
    for device in DEVICES:
        got = datong.load(packed, device, cache_dtype="f32", **options.get(device, {})).logits(ids)
        assert np.abs(got - wanted).max() <= BOUND, device


def test_stacks_and_single_experts_of_one_model(tmp_path: Path) -> None:
    """Qwen3.5 is published stacked, and saved by transformers one by one, both under nested names and plain ones."""
    for family in ("qwen3_5_moe", "qwen3_5_moe_text"):
        config = json.loads((GOLDENS / family / "config.json").read_text())
        tensors = dict(load_file(GOLDENS / family / "model.safetensors"))
        other = _apart(tensors) if family == "qwen3_5_moe" else _together(tensors)
        model = datong.load(write(tmp_path / family, config, other), "reference", cache_dtype="f32")
        stored = load_file(GOLDENS / family / "golden.safetensors")
        assert np.abs(model.logits(stored["input_ids"][0].numpy()) - stored["logits"][0].numpy()).max() <= 1e-2


def _apart(tensors: Tensors) -> Tensors:
    made: Tensors = {}
    for name, w in tensors.items():
        parts = {"gate_proj": w[:, : w.shape[1] // 2], "up_proj": w[:, w.shape[1] // 2 :]} if "gate_up" in name else {
            "down_proj": w
        }  # fmt: skip
        if "experts." not in name:
            made[name] = w
            continue
        at = name[: name.index("experts.")]
        made |= {f"{at}experts.{i}.{k}.weight": one for k, stack in parts.items() for i, one in enumerate(stack)}
    return made


def _together(tensors: Tensors) -> Tensors:
    made: Tensors = {}
    for name, w in tensors.items():
        if ".experts." not in name:
            made[name] = w
        elif ".experts.0.down" in name or ".experts.0.gate" in name:
            at, part = name[: name.index("experts.")], "down_proj" if "down" in name else "gate_up_proj"
            rows = [
                torch.cat([tensors[f"{at}experts.{i}.{k}.weight"] for k in
                           (["down_proj"] if part == "down_proj" else ["gate_proj", "up_proj"])])
                for i in range(len([k for k in tensors if k.startswith(f"{at}experts.") and "down" in k]))
            ]  # fmt: skip
            made[f"{at}experts.{part}"] = torch.stack(rows)
    return made


@pytest.mark.parametrize(
    ("case", "lost"),
    [
        ("stacked fp8", "model.layers.3.moe.up_proj.weight_scale_inv"),
        ("stacked nvfp4", "model.layers.3.moe.up_proj.weight_scale_2"),
        ("nvfp4 one by one", "model.layers.3.moe.experts.5.up_proj.weight_global_scale"),
        ("plain one by one", "model.layers.3.moe.experts.0.gate_proj.weight"),
        ("plain one by one", "model.layers.3.moe.experts.7.down_proj.weight"),
    ],
)
def test_what_is_missing_is_named(case: str, lost: str, tmp_path: Path) -> None:
    packed, _ = pair(case, tmp_path)
    tensors = dict(load_file(packed / "model.safetensors"))
    del tensors[lost]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"`{lost}`"):
        datong.import_checkpoint(packed)
