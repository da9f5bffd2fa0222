"""AWQ and GPTQ: integers of 4 or 8 bits, several to an i32, with a scale and a zero per group of inputs.

    awq     X.qweight [in, out / 8]     value k of an i32 is output 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[k]
            X.qzeros [groups, out / 8], likewise     X.scales [groups, out]
    gptq    X.qweight [in / n, out]     value k of an i32 is input n j + k, n = 32 / bits
            X.qzeros [groups, out / n]: zero - 1, in `gptq_v2` the zero     X.scales [groups, out]
            X.g_idx [in]: the group of each input

    w[o, i] = (q[i, o] - zero[group, o]) * scale[group, o]

Integers, zeros and scales are kept and only moved to rows of outputs (formats.py, u4z and u8z). Sources: AutoAWQ
`awq/utils/packing_utils.py`, AutoGPTQ `qlinear_cuda_old.py`, GPTQModel's note on checkpoint_format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer.config import Config
from datong.importer.imported import PendingTensor
from datong.importer.quantization.repack import Repack, mapped
from datong.importer.weights import StoredTensor, WeightMap
from datong.spec import formats
from datong.spec.formats import Format

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ROWS = 256  # outputs that are moved at once
Array = NDArray[np.uint8]
Unpack = Callable[[NDArray[np.int32], slice], Array]
OTHERS = [
    "modules_to_not_convert", "modules_in_block_to_quantize", "quantizer", "meta", "damp_percent",
    "true_sequential", "static_groups", "model_name_or_path", "model_file_base_name", "is_marlin_format",
    "use_exllama", "dataset", "exllama_config", "max_input_length", "cache_block_outputs",
    "block_name_to_quantize", "batch_size", "backend", "pad_token_id", "use_cuda_fp16", "model_seqlen",
    "module_name_preceding_first_block", "tokenizer", "sym", "do_fuse", "fuse_max_seq_len", "modules_to_fuse",
    "lm_head", "pack_dtype", "dynamic", "desc_act", "hyb_act", "damp_auto_increment", "mse", "adapter",
]  # fmt: skip


def read_awq(config: Config, weights: WeightMap, root: Path) -> tuple[PendingTensor, ...]:
    """Raises ConfigError for another layout than `gemm`, CheckpointError for tensors that do not fit."""
    bits = _bits(config, ("bits", "w_bit"), (4,))
    group = _group(config, ("group_size", "q_group_size"))
    version = config.raw("version", "gemm")
    if str(version).lower() != "gemm":
        raise config.error(f"{config.what} `version` should be `gemm`, it is `{version}`")
    config.ignore("zero_point", "zeros are read where they are")
    return _read(config, weights, root, bits, group, along_out=True)


def read_gptq(config: Config, weights: WeightMap, root: Path) -> tuple[PendingTensor, ...]:
    """Raises ConfigError for other bits than 4 or 8, CheckpointError for tensors that do not fit, or out of order."""
    bits = _bits(config, ("bits",), (4, 8))
    group = _group(config, ("group_size",))
    form = config.raw("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise config.error(f"{config.what} `checkpoint_format` should be `gptq` or `gptq_v2`, it is `{form}`")
    return _read(config, weights, root, bits, group, along_out=False, less=form == "gptq")


def _bits(config: Config, keys: tuple[str, ...], known: tuple[int, ...]) -> int:
    bits = next((config.raw(key) for key in keys if key in config), 4)
    if bits not in known:
        raise config.error(f"{config.what} `{keys[0]}` should be {' or '.join(map(str, known))}, it is {bits}")
    return int(bits)


def _group(config: Config, keys: tuple[str, ...]) -> int:
    group = next((config.raw(key) for key in keys if key in config), 128)
    if group not in (32, 64, 128, -1):
        raise config.error(f"{config.what} `{keys[0]}` should be 32, 64, 128 or -1, it is {group}")
    return int(group)


def _read(
    config: Config, weights: WeightMap, root: Path, bits: int, group: int, *, along_out: bool, less: bool = False
) -> tuple[PendingTensor, ...]:
    for key in OTHERS:
        config.ignore(key, "how the values were found, not what they are")
    repack = Repack(weights, root)
    names = [name.removesuffix(".qweight") for name in weights.others if name.endswith(".qweight")]
    for base in names:
        _add(repack, weights, root, base, bits, group, along_out, less)
    return repack.finish()


def _add(
    repack: Repack, weights: WeightMap, root: Path, base: str, bits: int, group: int, along_out: bool, less: bool
) -> None:
    """Check shapes, then describe how each piece is made."""
    per = 32 // bits
    codes, zeros, scales = (_wanted(weights, f"{base}.{end}", base) for end in ("qweight", "qzeros", "scales"))
    if len(codes.shape) != 2 or codes.dtype is not dtypes.I32:
        raise _misfit(codes, f"i32 [in{'' if along_out else f' / {per}'}, out{f' / {per}' if along_out else ''}]")
    width = codes.shape[0] if along_out else codes.shape[0] * per
    out = codes.shape[1] * per if along_out else codes.shape[1]
    size = width if group < 0 else group
    if width % size:
        raise CheckpointError(
            "import", f"tensor `{base}.qweight` has {width} inputs, groups of {group} do not divide them"
        )
    groups = width // size
    if zeros.shape != (groups, out // per) or zeros.dtype is not dtypes.I32:
        raise _misfit(zeros, f"i32 {[groups, out // per]}")
    if scales.shape != (groups, out) or scales.dtype not in (dtypes.F16, dtypes.BF16, dtypes.F32):
        raise _misfit(scales, f"f16, bf16 or f32 {[groups, out]}")
    used = [codes.name, zeros.name, scales.name]
    order = weights.others.get(f"{base}.g_idx")
    if order is not None:
        _check_order(root, order, width, size)
        used.append(order.name)
    form = _format(bits, group, scales.dtype)
    zero = _zeros(root, zeros, bits, along_out, less)
    made = {
        "codes": lambda: _codes(root, codes, bits, along_out, out),
        "scale": lambda: iter((np.ascontiguousarray(mapped(root, scales).T).tobytes(),)),
        "zero": lambda: iter((zero().tobytes(),)),
    }
    repack.add(f"{base}.weight", form, (out, width), made, *used)


def _format(bits: int, group: int, scale: dtypes.DType) -> Format:
    return formats.BY_NAME[f"u{bits}z_{'row' if group < 0 else group}_{scale.name}"]


def _wanted(weights: WeightMap, name: str, base: str) -> StoredTensor:
    found = weights.stored(name)
    if found is None:
        raise CheckpointError(
            "import",
            f"tensor `{name}`, which belongs to `{base}.qweight`, is not in the checkpoint",
            "the download is incomplete: download the checkpoint again",
        )
    return found


def _misfit(stored: StoredTensor, wanted: str) -> CheckpointError:
    return CheckpointError(
        "import",
        f"tensor `{stored.name}` should be {wanted}, it is {stored.dtype.name} {list(stored.shape)}",
        "the config and the weights belong to different checkpoints: download both again",
    )


def _check_order(root: Path, stored: StoredTensor, width: int, size: int) -> None:
    """Groups must follow each other: others would need the activations in another order."""
    index = mapped(root, stored)
    if index.shape != (width,) or not np.array_equal(index, np.arange(width) // size):
        raise CheckpointError(
            "import",
            f"tensor `{stored.name}` should have groups of {size} inputs one behind another, it has another order "
            "(desc_act)",
            "such checkpoints are not supported yet; take an edition without desc_act",
        )


def _values(words: NDArray[np.int32], bits: int, order: tuple[int, ...]) -> Array:
    """[..., n] i32 -> [..., n, 32 / bits] u8, value k of a word at place order[k]."""
    unsigned = words.view(np.uint32)
    found = np.empty((*words.shape, len(order)), np.uint8)
    for k, place in enumerate(order):
        found[..., place] = unsigned >> np.uint32(bits * k) & np.uint32((1 << bits) - 1)
    return found


def _codes(root: Path, stored: StoredTensor, bits: int, along_out: bool, out: int) -> Iterator[bytes]:
    """Rows of outputs, `ROWS` at a time; 4-bit values two to a byte, low nibble first."""
    words, per = mapped(root, stored), 32 // bits
    order = AWQ_ORDER if along_out else tuple(range(per))
    for first in range(0, out, ROWS):
        last = min(first + ROWS, out)
        if along_out:  # [in, n, per] -> [n * per, in]
            part = _values(np.ascontiguousarray(words[:, first // per : -(-last // per)]), bits, order)
            rows = part.reshape(len(part), -1).T
        else:  # [in / per, n, per] -> [n, in]
            part = _values(np.ascontiguousarray(words[:, first:last]), bits, order)
            rows = part.transpose(1, 0, 2).reshape(last - first, -1)
        yield (rows[:, 0::2] | rows[:, 1::2] << np.uint8(4) if bits == 4 else np.ascontiguousarray(rows)).tobytes()


def _zeros(root: Path, stored: StoredTensor, bits: int, along_out: bool, less: bool) -> Callable[[], Array]:
    """[out, groups] u8."""

    def make() -> Array:
        order = AWQ_ORDER if along_out else tuple(range(32 // bits))
        found = _values(np.ascontiguousarray(mapped(root, stored)), bits, order)
        return np.ascontiguousarray(found.reshape(len(found), -1).T + np.uint8(less))

    return make
