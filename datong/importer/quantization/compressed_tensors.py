"""compressed-tensors (llm-compressor): each matrix says by its tensors how it is stored; all of it stays in place.

    pack-quantized          X.weight_packed i32 [out, in / 8], 4-bit values + 8, low bits first; X.weight_scale
                            [out, groups]; X.weight_shape
    int-quantized           X.weight i8 [out, in], X.weight_scale [out, 1] or [1]
    float-quantized         X.weight f8e4m3 [out, in], X.weight_scale [out, 1], [out, groups] or [1]
    nvfp4-pack-quantized    X.weight_packed u8 [out, in / 2], X.weight_scale f8e4m3 [out, in / 16],
                            X.weight_global_scale f32 [1], by which scales are divided
    mxfp4-pack-quantized    X.weight_packed u8 [out, in / 2], X.weight_scale u8 [out, in / 32], e8m0

Activations are not quantised here. Source: compressed-tensors 0.12, `compressors/quantized_compressors`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer.config import Config
from datong.importer.imported import PendingTensor
from datong.importer.quantization.fp4 import UNUSED, ignore_input_scales, put, put_nvfp4, wanted
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec import formats

PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
KNOWN = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)
LEFT = ("config_groups", "ignore", "global_compression_ratio", "kv_cache_scheme", "quantization_status",
        "sparsity_config", "transform_config", "version")  # fmt: skip
SCALES = (dtypes.F16, dtypes.BF16, dtypes.F32)


def read(config: Config, weights: WeightMap, _root: Path) -> tuple[PendingTensor, ...]:
    """Raises ConfigError for a format that is not known, CheckpointError for tensors that do not fit."""
    form = config.raw("format", "mixed-precision")
    if form not in KNOWN:
        raise config.error(f"{config.what} `format` should be one of {', '.join(KNOWN)}, it is `{form}`")
    for key in LEFT:
        config.ignore(key, "each tensor states its own type")
    for name, stored in list(weights.others.items()):
        base, _, end = name.rpartition(".")
        if end == PACKED and stored.dtype is dtypes.U8:
            _put_floats(weights, base, stored)
        elif end == PACKED:
            _put_packed(weights, base, stored)
        elif end == "weight" and stored.dtype in (dtypes.I8, dtypes.F8E4M3):
            _put(weights, base, "i8" if stored.dtype is dtypes.I8 else "f8", stored, stored.shape)
    ignore_input_scales(weights)
    weights.ignore(lambda name: name.endswith((".input_zero_point", ".weight_g_idx")), UNUSED)
    return ()


def _put_floats(weights: WeightMap, base: str, stored: StoredTensor) -> None:
    scale = weights.stored(f"{base}.{SCALE}")
    if scale is not None and scale.dtype is dtypes.U8 and len(stored.shape) == 2:
        out, half = stored.shape
        put(weights, f"{base}.weight", formats.MXFP4, (out, 2 * half), {"codes": stored, "scale": scale})
    else:
        factor = f"{base}.weight_global_scale"
        put_nvfp4(weights, f"{base}.weight", stored.name, f"{base}.{SCALE}", factor, formats.NVFP4_DIV)


def _put_packed(weights: WeightMap, base: str, stored: StoredTensor) -> None:
    if stored.dtype is not dtypes.I32 or len(stored.shape) != 2:
        raise CheckpointError("import", f"tensor `{stored.name}` should be i32 [out, in / 8], is {list(stored.shape)}")
    out, words = stored.shape
    shape = (out, 8 * words)
    _put(weights, base, "u4m8", replace(stored, dtype=dtypes.U4, shape=shape), shape, f"{base}.{SHAPE}")


def _put(weights: WeightMap, base: str, kind: str, codes: StoredTensor, shape: tuple[int, ...], *used: str) -> None:
    """One weight, its format by the shape and type of the scale."""
    if f"{base}.{ZERO}" in weights.others:
        raise CheckpointError(
            "import", f"tensor `{base}.{ZERO}` makes `{codes.name}` asymmetric, which is not supported yet",
            "take an edition with symmetric weights",
        )  # fmt: skip
    scale = wanted(weights, f"{base}.{SCALE}", codes.name)
    out, width = shape
    count = scale.shape[-1] if len(scale.shape) == 2 and scale.shape[0] == out else 0
    group = "all" if math.prod(scale.shape) == 1 else "row" if count == 1 else str(width // count) if count else ""
    name = f"{kind}_{group}_{scale.dtype.name}"
    form = formats.BY_NAME.get(name)
    if (
        form is None
        or scale.dtype not in SCALES
        or scale.length != scale.dtype.nbytes(math.prod(form.piece_shape("scale", *shape)))
    ):
        raise CheckpointError(
            "import",
            f"tensor `{scale.name}` should have one scale for each group of 32, 64 or 128 inputs, each row or all of "
            f"`{codes.name}` {list(shape)}, it is {scale.dtype.name} {list(scale.shape)}",
            "the config and the weights belong to different checkpoints: download both again",
        )
    placed = replace(scale, shape=form.piece_shape("scale", *shape))
    weights.put(Weight(f"{base}.weight", form, shape, {"codes": codes, "scale": placed}), *used)
