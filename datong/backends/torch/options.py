"""The options of `compile`, read once.

compute_dtype   auto (default) | f32 | bf16 | f16   element type of activations and matrices; auto: that of the
                                                    stored matrices where the chip has it
cache_dtype     f32 | bf16 | f16                    of keys and values; default: compute_dtype
threads         whole number                        of PyTorch on the processor; meaningless on a chip
buckets         auto | on | off                     steps padded to 1, 2, 4, 8 … tokens; auto: with graphs
graphs          auto | on | off                     decode steps are captured and replayed; auto: if the adapter can
fused           auto | on | off                     the vendor's own operators where its descriptor names them
max_tokens, max_rows, isa                           accepted, without meaning here
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from datong.backends.torch.target import FLOATS, Target
from datong.errors import DeviceError
from datong.spec import formats
from datong.spec.program import Part

KNOWN = ("compute_dtype", "cache_dtype", "threads", "buckets", "graphs", "fused", "max_tokens", "max_rows", "isa")
_NEAREST = {"f32": ("f32", "bf16", "f16"), "bf16": ("bf16", "f16", "f32"), "f16": ("f16", "bf16", "f32")}


@dataclass(frozen=True)
class Settings:
    """How one part is compiled."""

    dtype: str  # f32 | bf16 | f16
    cache_dtype: str
    threads: int  # 0: leave PyTorch's
    buckets: bool
    graphs: bool
    fused: bool = True  # the vendor's operators where there are any


def read(target: Target, part: Part, options: Mapping[str, str], can_capture: bool) -> Settings:
    """The settings of a part. Raises DeviceError for an unknown option, a bad value or an element type not legal."""
    if unknown := sorted(set(options) - set(KNOWN)):
        raise DeviceError(target.name, f"option `{unknown[0]}` is not known", f"options: {', '.join(KNOWN)}")
    dtype = options.get("compute_dtype", "auto")
    if dtype == "auto":
        dtype = _auto(target, part)
    else:
        _check(target, "compute_dtype", dtype)
    cache_dtype = options.get("cache_dtype", dtype)
    _check(target, "cache_dtype", cache_dtype)
    threads = options.get("threads", "0")
    if not (threads.isascii() and threads.isdigit()):
        raise DeviceError(target.name, f"threads should be a whole number, is `{threads}`")
    graphs = _switch(target, "graphs", options, can_capture)
    if graphs and not can_capture:
        raise DeviceError(target.name, "graphs should be off: the adapter has no class that captures them")
    buckets, fused = _switch(target, "buckets", options, graphs), _switch(target, "fused", options, True)
    return Settings(dtype, cache_dtype, int(threads), buckets, graphs, fused)


def _switch(target: Target, name: str, options: Mapping[str, str], auto: bool) -> bool:
    value = options.get(name, "auto")
    if value not in ("auto", "on", "off"):
        raise DeviceError(target.name, f"{name} should be auto, on or off, is `{value}`")
    return auto if value == "auto" else value == "on"


def _check(target: Target, name: str, dtype: str) -> None:
    if dtype not in FLOATS:
        raise DeviceError(target.name, f"{name} should be one of {', '.join(FLOATS)}, is `{dtype}`")
    if not target.is_legal(dtype):
        fact = target.chip.generation.dtypes if target.chip else None
        source = f" ({fact.source})" if fact is not None and fact.source else ""
        text = f"{name} should be one of {', '.join(target.floats)}, `{dtype}` is not legal on this chip{source}"
        raise DeviceError(target.name, text)


def _auto(target: Target, part: Part) -> str:
    """The element type in which most elements of the part's matrices are stored, or the nearest that is legal."""
    if not target.floats:
        raise DeviceError(target.name, "the chip should have an element type for activations, it has none of f32 …")
    weighed: dict[str, int] = {}
    for value in part.values.values():
        if value.kind == "weight" and len(value.shape) >= 2:
            form = formats.BY_NAME[value.format]
            name = (target.unpacked or "bf16") if form.block else form.name
            weighed[name] = weighed.get(name, 0) + math.prod(int(dim) for dim in value.shape)
    wanted = max(weighed, key=lambda name: weighed[name], default="f32")
    return next(name for name in _NEAREST[wanted] if target.is_legal(name))
