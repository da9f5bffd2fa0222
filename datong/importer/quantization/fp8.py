"""`fp8`: E4M3 values, a scale for each tile of 128 x 128. DeepSeek-V3, MiniMax-M2, Step-3, Qwen3 FP8 editions.

    <name>              F8_E4M3 [out, in] or [E, out, in]
    <name>_scale_inv    F32 or BF16 [ceil(out/128), ceil(in/128)], with E in front likewise; it multiplies

Which matrices are in FP8 their element type says; the lists of modules that are not are of no use to a reader. The
values stay where they are. Activations are not quantised here, whatever `activation_scheme` says: a kernel may, and
answers then for its own error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer.config import Config
from datong.importer.imported import PendingTensor
from datong.importer.weights import OTHERS, Weight, WeightMap
from datong.spec import formats
from datong.spec.formats import Format

SCALE = "_scale_inv"
TILES: dict[tuple[int, ...], tuple[Format, ...]] = {  # weight_block_size -> formats, by the type of the scale
    (128, 128): (formats.FP8_128, formats.FP8_128_BF16, formats.FP8_128_E8M0),
    (1, 32): (formats.MXFP8,),
}


def read(config: Config, weights: WeightMap, _root: Path) -> tuple[PendingTensor, ...]:
    """Every FP8 tensor and its scale become one weight, in place.

    Raises:
        ConfigError: tiles of another size, another kind of number.
        CheckpointError: a scale is missing, or of another type or shape.
    """
    for key in ("fmt", "activation_scheme", "scale_fmt"):
        if key in config:
            config.text(key)
    fmt = config.raw("fmt", "e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn", "float8_e4m3"):
        raise config.error(f"{config.what} `fmt` should be `e4m3`, it is `{fmt}`")
    config.ignore("activation_scheme", "activations are not quantised")
    config.ignore("scale_fmt", "each scale states its own type")
    for key in ("modules_to_not_convert", "ignored_layers", "ignore"):
        config.ignore(key, "each tensor states its own type")
    tile = config.integers("weight_block_size")
    if tile not in TILES:
        known = ", ".join(str(list(size)) for size in TILES)
        raise config.error(f"{config.what} `weight_block_size` should be one of {known}, it is {list(tile)}")
    for name in [name for name, tensor in weights.others.items() if tensor.dtype is dtypes.F8E4M3]:
        put(weights, name, TILES[tile])
    return ()


def put(weights: WeightMap, name: str, choices: tuple[Format, ...]) -> None:
    """The FP8 tensor `name` and its scale as one weight, of the format of `choices` that has the scale's type."""
    codes, scale = weights.others[name], weights.stored(f"{name}{SCALE}")
    if scale is None:
        raise CheckpointError(
            "import",
            f"tensor `{name}{SCALE}`, the scale of an FP8 weight, is not in the checkpoint",
            "the download is incomplete: download the checkpoint again",
        )
    if scale.dtype is dtypes.U8:  # as which e8m0 is often stored
        scale = replace(scale, dtype=dtypes.F8E8M0)
    form = next((form for form in choices if form.scale is scale.dtype), None)
    if form is None:
        known = " or ".join(form.scale.safetensors for form in choices if form.scale)
        raise CheckpointError("import", f"tensor `{scale.name}` should be {known}, it is {scale.dtype.safetensors}")
    if len(codes.shape) not in (2, 3):
        raise CheckpointError("import", f"tensor `{name}` should be [out, in] or [E, out, in], is {list(codes.shape)}")
    wanted = form.piece_shape("scale", *codes.shape)
    if scale.shape != wanted:
        raise CheckpointError(
            "import",
            f"tensor `{scale.name}` should have shape {list(wanted)} beside a weight {list(codes.shape)}, the "
            f"checkpoint has {list(scale.shape)}",
            OTHERS,
        )
    weights.put(Weight(name, form, codes.shape, {"codes": codes, "scale": scale}))
