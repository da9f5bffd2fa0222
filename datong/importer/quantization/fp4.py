"""`mxfp4` (gpt-oss) and NVFP4 as `modelopt` writes it: 4-bit floats e2m1, two to a byte, low nibble first.

    mxfp4       X_blocks u8 [..., out, in / 32, 16]   X_scales u8 [..., out, in / 32], e8m0
    modelopt    X.weight u8 [..., out, in / 2]        X.weight_scale f8e4m3 [..., out, in / 16]
                X.weight_scale_2 f32, one number a matrix; X.input_scale, for activations in 4 bits

The values stay where they are. Activations are not quantised here. Sources: OCP MX 1.0; config.json and tensor names of
openai/gpt-oss-20b and of nvidia's NVFP4 checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer.config import Config
from datong.importer.imported import PendingTensor
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec import formats
from datong.spec.formats import Format

BLOCKS, SCALES = "_blocks", "_scales"
LEFT = ("modules_to_not_convert", "ignore", "exclude_modules", "dequantize")
UNUSED = "activations are not quantised"


def read_mxfp4(config: Config, weights: WeightMap, _root: Path) -> tuple[PendingTensor, ...]:
    """Every pair X_blocks, X_scales becomes the weight X. Raises CheckpointError."""
    for key in LEFT:
        config.ignore(key, "each tensor states its own type")
    for name in [name for name in weights.others if name.endswith(BLOCKS)]:
        base = name.removesuffix(BLOCKS)
        codes, scale = weights.others[name], wanted(weights, f"{base}{SCALES}", name)
        *lead, count, size = codes.shape
        if size != 16 or len(lead) not in (1, 2):
            raise CheckpointError(
                "import", f"tensor `{name}` should be [out, blocks, 16] or [E, out, blocks, 16], is {list(codes.shape)}"
            )
        put(weights, base, formats.MXFP4, (*lead, count * 32), {"codes": codes, "scale": scale})
    return ()


def read_modelopt(config: Config, weights: WeightMap, _root: Path) -> tuple[PendingTensor, ...]:
    """Every X.weight with its two scales becomes one weight.

    Raises ConfigError for another algorithm than NVFP4, CheckpointError for tensors that do not fit.
    """
    algorithm = config.raw("quant_algo", "NVFP4")
    if algorithm != "NVFP4":
        raise config.error(f"{config.what} `quant_algo` should be `NVFP4`, it is `{algorithm}`")
    for key in (*LEFT, "config_groups", "producer", "kv_cache_scheme", "kv_cache_quant_algo", "group_size"):
        config.ignore(key, "each tensor states its own type")
    packed = [n for n, t in weights.others.items() if t.dtype is dtypes.U8 and n.endswith(".weight")]
    for name in packed:
        put_nvfp4(weights, name, name, f"{name}_scale", f"{name}_scale_2", formats.NVFP4)
    ignore_input_scales(weights)
    return ()


def ignore_input_scales(weights: WeightMap) -> None:
    """What only quantised activations would need."""
    weights.ignore(lambda name: name.endswith((".input_scale", ".input_global_scale", ".k_scale", ".v_scale")), UNUSED)


def put_nvfp4(weights: WeightMap, name: str, codes: str, scale: str, factor: str, form: Format) -> None:
    """The weight `name` of its three tensors."""
    stored = weights.others[codes]
    if len(stored.shape) not in (2, 3):
        raise CheckpointError("import", f"tensor `{codes}` should be [out, in / 2], is {list(stored.shape)}")
    *lead, half = stored.shape
    pieces = {"codes": stored, "scale": wanted(weights, scale, codes), "factor": wanted(weights, factor, codes)}
    put(weights, name, form, (*lead, 2 * half), pieces)


def wanted(weights: WeightMap, name: str, beside: str) -> StoredTensor:
    """The tensor `name`, without which `beside` is half a weight. Raises CheckpointError."""
    found = weights.stored(name)
    if found is None:
        raise CheckpointError(
            "import",
            f"tensor `{name}`, which belongs to `{beside}`, is not in the checkpoint",
            "the download is incomplete: download the checkpoint again",
        )
    return found


def put(weights: WeightMap, name: str, form: Format, shape: tuple[int, ...], pieces: dict[str, StoredTensor]) -> None:
    """One weight of `form` and of logical `shape`, each piece of the type and size that the form asks for."""
    placed: dict[str, StoredTensor] = {}
    for role, stored in pieces.items():
        dtype, dims = form.piece_dtype(role), form.piece_shape(role, *shape)
        same = stored.dtype is dtype or (stored.dtype is dtypes.U8 and dtype.bits <= 8)
        if not same or dtype.nbytes(math.prod(dims)) != stored.length:
            raise CheckpointError(
                "import",
                f"tensor `{stored.name}` should be {dtype.safetensors} for {list(dims)} values, the {role} of "
                f"`{name}` {list(shape)}, it is {stored.dtype.safetensors} {list(stored.shape)}",
                "the config and the weights belong to different checkpoints: download both again",
            )
        placed[role] = replace(stored, dtype=dtype, shape=dims)
    weights.put(Weight(name, form, shape, placed))
