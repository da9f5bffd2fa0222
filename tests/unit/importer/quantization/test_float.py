"""Float checkpoints as they are published: FP8 and MXFP8 tiles, MXFP4, NVFP4; values by an oracle, mistakes by name."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import datong
from datong.errors import CheckpointError, ConfigError, DatongError
from datong.package.create import import_checkpoint

CONFIG = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 160, "intermediate_size": 224, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
IDS = [3, 9, 1, 33, 5, 22, 8]
Tensors = dict[str, torch.Tensor]


def plain(rng: np.random.Generator) -> dict[str, np.ndarray]:
    c, shapes = CONFIG, {}
    kv = c["num_key_value_heads"] * c["head_dim"]
    for i in range(c["num_hidden_layers"]):
        at, h, n = f"model.layers.{i}.", c["hidden_size"], c["intermediate_size"]
        shapes |= {f"{at}self_attn.q_proj.weight": (h, h), f"{at}self_attn.k_proj.weight": (kv, h)}
        shapes |= {f"{at}self_attn.v_proj.weight": (kv, h), f"{at}self_attn.o_proj.weight": (h, h)}
        shapes |= {f"{at}mlp.gate_proj.weight": (n, h), f"{at}mlp.up_proj.weight": (n, h)}
        shapes |= {f"{at}mlp.down_proj.weight": (h, n)}
        shapes |= {f"{at}input_layernorm.weight": (h,), f"{at}post_attention_layernorm.weight": (h,)}
    shapes |= {"model.embed_tokens.weight": (40, 160), "lm_head.weight": (40, 160), "model.norm.weight": (160,)}
    return {k: (rng.normal(0, 0.2, s) + (len(s) == 1)).astype(np.float32) for k, s in shapes.items()}


def tiles(w: np.ndarray, rows: int, columns: int, e8m0: bool) -> tuple[Tensors, np.ndarray]:
    """Codes by torch's own rounding, and the values that they stand for."""
    out, width = w.shape
    high, wide = -(-out // rows), -(-width // columns)
    full = np.zeros((high * rows, wide * columns), np.float32)
    full[:out, :width] = w
    top = np.abs(full.reshape(high, rows, wide, columns)).max((1, 3)) / 448
    scale = np.exp2(np.ceil(np.log2(top))).astype(np.float32) if e8m0 else top
    spread = np.kron(scale, np.ones((rows, columns), np.float32))[:out, :width]
    codes = torch.from_numpy(w / spread).to(torch.float8_e4m3fn)
    stored = torch.from_numpy((np.log2(scale) + 127).astype(np.uint8)) if e8m0 else torch.from_numpy(scale)
    return {"": codes, "_scale_inv": stored}, codes.float().numpy() * spread


def nibbles(w: np.ndarray, block: int, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes `[out, in / 2]` and values, for scales `[out, in / block]`."""
    spread = np.repeat(scale, block, -1)
    ratio = w / spread
    index = np.abs(np.abs(ratio)[..., None] - E2M1).argmin(-1).astype(np.uint8)
    values = np.where(ratio < 0, -1, 1).astype(np.float32) * E2M1[index] * spread
    codes = index | (ratio < 0).astype(np.uint8) << 3
    return codes[..., 0::2] | codes[..., 1::2] << 4, values


def fp8(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    found, values = tiles(w, 128, 128, e8m0=False)
    return {name + end: tensor for end, tensor in found.items()}, values


def fp8_e8m0(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    found, values = tiles(w, 128, 128, e8m0=True)
    return {name + end: tensor for end, tensor in found.items()}, values


def mxfp8(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    found, values = tiles(w, 1, 32, e8m0=True)
    return {name + end: tensor for end, tensor in found.items()}, values


def mxfp4(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    scale = np.exp2(np.ceil(np.log2(np.abs(w.reshape(len(w), -1, 32)).max(-1) / 6))).astype(np.float32)
    codes, values = nibbles(w, 32, scale)
    packed = torch.from_numpy(codes.reshape(len(w), -1, 16).copy())
    return {
        f"{name}_blocks": packed,
        f"{name}_scales": torch.from_numpy((np.log2(scale) + 127).astype(np.uint8)),
    }, values


def _nvfp4(w: np.ndarray, factor: np.float32) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    wanted = np.abs(w.reshape(len(w), -1, 16)).max(-1) / 6 / factor
    scale = np.maximum(wanted, 2**-9).astype(ml_dtypes.float8_e4m3fn)
    codes, values = nibbles(w, 16, scale.astype(np.float32) * factor)
    stored = torch.from_numpy(scale.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(codes.copy()), stored, values


def modelopt(name: str, w: np.ndarray) -> tuple[Tensors, np.ndarray]:
    factor = np.float32(np.abs(w).max() / 6 / 448)
    codes, scale, values = _nvfp4(w, factor)
    made = {name: codes, f"{name}_scale": scale, f"{name}_scale_2": torch.tensor(factor)}
    return made | {name.replace(".weight", ".input_scale"): torch.tensor(1.0)}, values


METHODS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
    "fp8_e8m0": (fp8_e8m0, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "mxfp8": (mxfp8, {"quant_method": "mxfp8", "weight_block_size": [1, 32]}),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
    "modelopt": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}),
}  # fmt: skip


def write(directory: Path, tensors: Tensors, stated: object = None) -> Path:
    directory.mkdir()
    config = CONFIG if stated is None else {**CONFIG, "quantization_config": stated}
    (directory / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / "model.safetensors")
    return directory


def made(method: str, root: Path) -> tuple[Tensors, Tensors]:
    """The quantised checkpoint's tensors, and those with the values that they stand for."""
    packed, values = {}, {}
    for name, w in plain(np.random.default_rng(5)).items():
        if "_proj" in name:
            tensors, meant = METHODS[method][0](name, w)
            packed |= tensors
            values[name] = torch.from_numpy(meant)
        else:
            packed[name] = values[name] = torch.from_numpy(w)
    return packed, values


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_values(method: str, tmp_path: Path) -> None:
    packed, values = made(method, tmp_path)
    source = write(tmp_path / "packed", packed, METHODS[method][1])
    before = (source / "model.safetensors").read_bytes()
    package = import_checkpoint(source)
    assert (source / "model.safetensors").read_bytes() == before
    assert len({file for file in package.root.iterdir() if file.suffix == ".safetensors"}) == 1  # in place
    wanted = datong.load(write(tmp_path / "plain", values), "reference").logits(IDS)
    for device in ("reference", "cpu", "torch:cpu", "onnxruntime"):
        options = {"compute_dtype": "f32"} if device.startswith("torch") else {}
        got = datong.load(source, device, cache_dtype="f32", **options).logits(IDS)
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max(), device


@pytest.mark.parametrize("isa", ["ref", "avx2", "avx512"])
def test_every_instruction_set_gives_them(isa: str, tmp_path: Path) -> None:
    packed, values = made("fp8", tmp_path)
    source = write(tmp_path / "packed", packed, METHODS["fp8"][1])
    wanted = datong.load(write(tmp_path / "plain", values), "reference").logits(IDS)
    try:
        got = datong.load(source, "cpu", cache_dtype="f32", isa=isa).logits(IDS)
    except DatongError as error:
        pytest.skip(str(error))
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


Q = "model.layers.0.self_attn.q_proj.weight"
MISTAKES = {
    "no scale": ("fp8", {f"{Q}_scale_inv": None}, {}, CheckpointError, f"`{Q}_scale_inv`, the scale of an FP8 weight"),
    "scale of a wrong shape": (
        "fp8", {f"{Q}_scale_inv": torch.ones(2, 1)}, {}, CheckpointError,
        r"should have shape \[2, 2\] beside a weight \[160, 160\]",
    ),
    "scale of a wrong type": (
        "fp8", {f"{Q}_scale_inv": torch.ones(2, 2, dtype=torch.float16)}, {}, CheckpointError, "should be F32 or BF16",
    ),
    "tiles of another size": ("fp8", {}, {"weight_block_size": [64, 64]}, ConfigError, "`weight_block_size` should be"),
    "unknown method": ("fp8", {}, {"quant_method": "magic"}, ConfigError, "format `magic` are not supported yet"),
    "blocks of another size": (
        "mxfp4", {f"{Q}_blocks": torch.zeros(160, 10, 8, dtype=torch.uint8)}, {}, CheckpointError, "blocks, 16",
    ),
    "scales missing": ("mxfp4", {f"{Q}_scales": None}, {}, CheckpointError, "which belongs to"),
    "scales too few": (
        "mxfp4", {f"{Q}_scales": torch.zeros(160, 4, dtype=torch.uint8)}, {}, CheckpointError, "160, 5\\] values",
    ),
    "another algorithm": ("modelopt", {}, {"quant_algo": "W4A8_AWQ"}, ConfigError, "`quant_algo` should be `NVFP4`"),
    "factor missing": ("modelopt", {f"{Q}_scale_2": None}, {}, CheckpointError, f"`{Q}_scale_2`, which belongs to"),
    "shape of another model": (
        "modelopt", {Q: torch.zeros(160, 40, dtype=torch.uint8)}, {}, CheckpointError, "for \\[160, 5\\] values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case: str, tmp_path: Path) -> None:
    method, changes, stated, error, text = MISTAKES[case]
    packed, _ = made(method, tmp_path)
    tensors = {k: v for k, v in (packed | changes).items() if v is not None}
    source = write(tmp_path / "packed", tensors, {**METHODS[method][1], **stated})
    with pytest.raises(error, match=text):
        import_checkpoint(source)
    assert not (source / "datong.json").exists()


def test_modelopt_in_a_file_of_its_own(tmp_path: Path) -> None:
    packed, values = made("modelopt", tmp_path)
    source = write(tmp_path / "packed", packed)
    stated = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]}
    whole = {"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": stated}
    (source / "hf_quant_config.json").write_text(json.dumps(whole))
    wanted = datong.load(write(tmp_path / "plain", values), "reference").logits(IDS)
    got = datong.load(source, "reference", cache_dtype="f32").logits(IDS)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_scales_without_a_word_in_the_config(tmp_path: Path) -> None:
    packed, _ = made("fp8", tmp_path)
    with pytest.raises(CheckpointError, match="belongs to a quantised weight, the config has no `quantization_config`"):
        import_checkpoint(write(tmp_path / "packed", packed))
