"""AWQ, GPTQ and compressed-tensors as they are published: packed here by the definitions, read back, mistakes named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datong
from datong.errors import CheckpointError, ConfigError, DatongError, PackageError
from datong.package.create import import_checkpoint
from tests.unit.importer.quantization.test_float import IDS, Tensors, plain, write

AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
G = 32
Packed = tuple[Tensors, np.ndarray]


def grid(
    w: np.ndarray, group: int, levels: int, zero: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], scale and zero [out, groups], values [out, in]; `zero` None: one for each group."""
    out, width = w.shape
    parts = w.reshape(out, width // group, group)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scale = ((high - low) / (levels - 1) if zero is None else np.abs(parts).max(-1) / (levels / 2 - 1)).astype(
        np.float16
    )
    step = scale.astype(np.float32)[..., None]
    zeros = np.round(-low / step[..., 0]) if zero is None else np.full_like(low, zero)
    codes = np.clip(np.round(parts / step) + zeros[..., None], 0, levels - 1)
    values = ((codes - zeros[..., None]) * step).astype(np.float32)
    return codes.reshape(out, width).astype(np.int64), scale, zeros.astype(np.int64), values.reshape(out, width)


def words(codes: np.ndarray, bits: int, order: tuple[int, ...]) -> torch.Tensor:
    """[..., n] -> [..., n * bits / 32] i32: value order[k] of a word in its bits k."""
    per = 32 // bits
    parts = codes.reshape(*codes.shape[:-1], -1, per)
    packed = sum(parts[..., place] << (bits * k) for k, place in enumerate(order))
    return torch.from_numpy(np.asarray(packed).astype(np.uint32).view(np.int32).copy())


def awq(name: str, w: np.ndarray) -> Packed:
    codes, scale, zeros, values = grid(w, G, 16, None)
    base = name.removesuffix(".weight")
    return {
        f"{base}.qweight": words(codes.T, 4, AWQ), f"{base}.qzeros": words(zeros.T, 4, AWQ),
        f"{base}.scales": torch.from_numpy(scale.T.copy()),
    }, values  # fmt: skip


def gptq(bits: int, version: int) -> Callable[[str, np.ndarray], Packed]:
    def pack(name: str, w: np.ndarray) -> Packed:
        codes, scale, zeros, values = grid(w, G, 1 << bits, None)
        zeros = np.maximum(zeros, 1)
        step = np.repeat(scale.astype(np.float32), G, -1)
        values = ((codes - np.repeat(zeros, G, -1)) * step).astype(np.float32)
        base, order = name.removesuffix(".weight"), tuple(range(32 // bits))
        return {
            f"{base}.qweight": words(codes, bits, order).T.contiguous(),
            f"{base}.qzeros": words((zeros - (version == 1)).T, bits, order),
            f"{base}.scales": torch.from_numpy(scale.T.copy()),
            f"{base}.g_idx": torch.arange(w.shape[1], dtype=torch.int32) // G,
        }, values  # fmt: skip

    return pack


def packed_int4(name: str, w: np.ndarray) -> Packed:
    codes, scale, _, values = grid(w, G, 16, 8)
    base = name.removesuffix(".weight")
    return {
        f"{base}.weight_packed": words(codes, 4, tuple(range(8))),
        f"{base}.weight_scale": torch.from_numpy(scale), f"{base}.weight_shape": torch.tensor(w.shape),
    }, values  # fmt: skip


def int8_rows(name: str, w: np.ndarray) -> Packed:
    scale = torch.from_numpy(np.abs(w).max(1, keepdims=True) / 127).to(torch.bfloat16)
    codes = (torch.from_numpy(w) / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return {name: codes, f"{name}_scale": scale}, (codes.float() * scale.float()).numpy()


def fp8_rows(name: str, w: np.ndarray) -> Packed:
    scale = torch.from_numpy(np.abs(w).max(1, keepdims=True) / 448)
    codes = (torch.from_numpy(w) / scale).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scale}, (codes.float() * scale).numpy()


def fp8_all(name: str, w: np.ndarray) -> Packed:
    scale = torch.tensor([float(np.abs(w).max()) / 448])
    codes = (torch.from_numpy(w) / scale).to(torch.float8_e4m3fn)
    made = {name: codes, f"{name}_scale": scale, name.replace(".weight", ".input_scale"): torch.ones(1)}
    return made, (codes.float() * scale).numpy()


def mixed(name: str, w: np.ndarray) -> Packed:
    return (int8_rows if "down_proj" in name else packed_int4 if "mlp" in name else fp8_rows)(name, w)


def ct(form: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


METHODS: dict[str, tuple[Callable[[str, np.ndarray], Packed], dict[str, Any]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": G, "zero_point": True, "version": "gemm"}),
    "gptq": (gptq(4, 1), {"quant_method": "gptq", "bits": 4, "group_size": G, "desc_act": False, "sym": False}),
    "gptq_v2": (gptq(4, 2), {"quant_method": "gptq", "bits": 4, "group_size": G, "checkpoint_format": "gptq_v2"}),
    "gptq8": (gptq(8, 1), {"quant_method": "gptq", "bits": 8, "group_size": G, "desc_act": False}),
    "packed": (packed_int4, ct("pack-quantized")),
    "int8": (int8_rows, ct("int-quantized")),
    "fp8_rows": (fp8_rows, ct("float-quantized")),
    "fp8_all": (fp8_all, ct("float-quantized")),
    "mixed": (mixed, ct("mixed-precision")),
}
MOVED = ("awq", "gptq", "gptq_v2", "gptq8")


def made(method: str) -> tuple[Tensors, Tensors]:
    packed: Tensors = {}
    values: Tensors = {}
    for name, w in plain(np.random.default_rng(6)).items():
        if "_proj" in name:
            tensors, meant = METHODS[method][0](name, w)
            packed |= tensors
            values[name] = torch.from_numpy(meant)
        else:
            packed[name] = values[name] = torch.from_numpy(w)
    return packed, values


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_values(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    packed, values = made(method)
    source = write(tmp_path / "packed", packed, METHODS[method][1])
    wanted = datong.load(write(tmp_path / "plain", values), "reference").logits(IDS)
    for device in ("reference", "cpu", "torch:cpu", "onnxruntime"):
        options = {"compute_dtype": "f32"} if device.startswith("torch") else {}
        got = datong.load(source, device, cache_dtype="f32", **options).logits(IDS)
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max(), device
    assert not (source / "datong.json").exists()
    if method in MOVED:
        with pytest.raises(PackageError, match="need a directory of their own"):
            import_checkpoint(source)
        package = import_checkpoint(source, tmp_path / "made")
        assert sorted(p.name for p in package.root.glob("*.safetensors")) == ["model.safetensors"]
        assert (package.root / "model.safetensors").stat().st_size < 1.1 * (source / "model.safetensors").stat().st_size
    else:
        package = import_checkpoint(source)
    got = datong.load(package.root, "cpu", cache_dtype="f32").logits(IDS)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("isa", ["ref", "avx2", "avx512"])
def test_every_instruction_set_gives_them(isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    packed, values = made("awq")
    source = write(tmp_path / "packed", packed, METHODS["awq"][1])
    wanted = datong.load(write(tmp_path / "plain", values), "reference").logits(IDS)
    try:
        got = datong.load(source, "cpu", cache_dtype="f32", isa=isa).logits(IDS)
    except DatongError as error:
        pytest.skip(str(error))
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


Q = "model.layers.0.self_attn.q_proj"
MISTAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[DatongError], str]] = {
    "bits": ("gptq", {}, {"bits": 3}, ConfigError, "`bits` should be 4 or 8, it is 3"),
    "group": ("awq", {}, {"group_size": 48}, ConfigError, "`group_size` should be 32, 64, 128 or -1, it is 48"),
    "group does not divide": ("awq", {}, {"group_size": 64}, CheckpointError, "groups of 64 do not divide them"),
    "layout": ("awq", {}, {"version": "gemv"}, ConfigError, "`version` should be `gemm`"),
    "zeros missing": ("awq", {f"{Q}.qzeros": None}, {}, CheckpointError, "`.*qzeros`, which belongs to"),
    "scales missing": ("gptq", {f"{Q}.scales": None}, {}, CheckpointError, "`.*scales`, which belongs to"),
    "zeros of a wrong shape": (
        "awq", {f"{Q}.qzeros": torch.zeros(4, 20, dtype=torch.int32)}, {}, CheckpointError, r"should be i32 \[5, 20\]",
    ),
    "groups out of order": (
        "gptq", {f"{Q}.g_idx": torch.arange(160, dtype=torch.int32).flip(0) // G}, {}, CheckpointError, "another order",
    ),
    "groups out of range": (
        "gptq", {f"{Q}.g_idx": torch.full((160,), 99, dtype=torch.int32)}, {}, CheckpointError, "another order",
    ),
    "unknown format": ("packed", {}, {"format": "marlin-24"}, ConfigError, "`format` should be one of"),
    "asymmetric": (
        "packed", {f"{Q}.weight_zero_point": torch.zeros(20, 5, dtype=torch.int32)}, {}, CheckpointError, "asymmetric",
    ),
    "scale of a wrong shape": (
        "packed", {f"{Q}.weight_scale": torch.ones(160, 3)}, {}, CheckpointError, "one scale for each group",
    ),
    "scale missing": ("int8", {f"{Q}.weight_scale": None}, {}, CheckpointError, "which belongs to"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case: str, tmp_path: Path) -> None:
    method, changes, stated, error, text = MISTAKES[case]
    packed, _ = made(method)
    tensors = {k: v for k, v in (packed | changes).items() if v is not None}
    source = write(tmp_path / "packed", tensors, {**METHODS[method][1], **stated})
    with pytest.raises(error, match=text):
        import_checkpoint(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()
