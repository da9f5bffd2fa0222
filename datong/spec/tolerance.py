"""How far a backend may be from reference.py: one table, and the one function that applies it.

Two measures, both relative to a *magnitude* per element and both free of the tensor's size:

    nmse  = sum(error^2) / sum(magnitude^2)              the mean: how much precision was lost
    worst = max(|error| / max(magnitude, its rms))       the one bad element that a mean hides

The magnitude of an element is its expected value; for sums of products, where terms may cancel, it is the root of the
sum of their squares (`compare(..., magnitude=)`), so that an unlucky cancellation is not called an error of the kernel.

NaN and infinities must stand where they are expected and nowhere else. A looser bound in a test is a named exception
with its reason, beside the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec import formats

Array = NDArray[Any]


@dataclass(frozen=True)
class Bound:
    """Upper bounds of both measures, and why they are what they are."""

    nmse: float
    worst: float
    reason: str


@dataclass(frozen=True)
class Report:
    """What a comparison found; true when within the bound."""

    ok: bool
    nmse: float
    worst: float
    reason: str = ""  # of a failure: what was wanted, what came

    def __bool__(self) -> bool:
        return self.ok


# "Measured": the definition with the rounding that the reason names, over conformance/cases.toml. The largest case
# is always one of a few elements, so the bounds leave room for an unlucky one: two to five times what was measured.
_EXACT = Bound(0.0, 0.0, "moves bits, or rounds once: IEEE 754 leaves no choice")
_F32 = Bound(1e-10, 1e-4, "sums of up to 10^5 f32 terms in any order; exp and cos to a few units in the last place")
_F16 = Bound(1e-6, 5e-3, "activations and result rounded to f16; measured nmse 3e-7, worst 2e-3")
_BF16 = Bound(5e-5, 3e-2, "activations and result rounded to bf16; measured nmse 2e-5, worst 1e-2")
_INT8 = Bound(
    5e-4, 1e-1, "activations rounded to 8 bits per block of 256, result to f16; measured nmse 3e-4, worst 6e-2"
)
_KV_F16 = Bound(1e-6, 1e-2, "keys and values rounded to f16; measured nmse 1e-7, worst 1e-3")
_STATE = Bound(1e-9, 1e-3, "states and sums in f32 over up to 10^3 tokens, in any grouping of them")
_KV_BF16 = Bound(5e-5, 5e-2, "keys and values rounded to bf16; measured nmse 1e-5, worst 6e-3")

# (class of ops.py, weight format or cache dtype) -> bound
TABLE: dict[tuple[str, str], Bound] = {
    ("exact", ""): _EXACT,
    ("f32", ""): _F32,
    ("state", ""): _STATE,
    ("linear", "f32"): _F32,
    ("linear", "f16"): _F16,
    ("linear", "bf16"): _BF16,
    **{("linear", f.name): _INT8 for f in (*formats.ALL, *formats.GROUPED) if f.block},
    ("attention", "f32"): _F32,
    ("attention", "f16"): _KV_F16,
    ("attention", "bf16"): _KV_BF16,
}


def bound_for(cls: str, fmt: str = "") -> Bound:
    """The row of the table; `fmt` matters to `linear` (weight format) and `attention` (cache dtype) only."""
    return TABLE[cls, fmt if cls in ("linear", "attention") else ""]


def compare(
    actual: Array,
    expected: Array,
    cls: str,
    fmt: str = "",
    *,
    magnitude: Array | None = None,
    bound: Bound | None = None,
) -> Report:
    """Is `actual` within the bound of its class of `expected`? Any shape; dtypes and shapes must be equal.

    magnitude: like `expected`, see the module's text. bound: a named exception to the table.
    """
    bound = bound or bound_for(cls, fmt)
    worst = float("inf")
    if actual.dtype != expected.dtype:
        return Report(False, worst, worst, f"dtype should be {expected.dtype}, is {actual.dtype}")
    if actual.shape != expected.shape:
        return Report(False, worst, worst, f"shape should be {list(expected.shape)}, is {list(actual.shape)}")
    if not expected.size:
        return Report(True, 0.0, 0.0)
    if expected.dtype.kind not in "fV":  # V: ml_dtypes' bfloat16
        same = bool(np.array_equal(actual, expected))
        return Report(same, 0.0 if same else worst, 0.0 if same else worst, "" if same else "integers should be equal")
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    odd = ~np.isfinite(e)
    if not (np.array_equal(a[odd], e[odd], equal_nan=True) and np.isfinite(a[~odd]).all()):
        where = np.flatnonzero((~np.isfinite(a) | odd) & ~((a == e) | (np.isnan(a) & np.isnan(e))))[0]
        return Report(False, worst, worst, f"{_at(where, e)} should be {e.flat[where]}, is {a.flat[where]}")
    error = np.where(odd, 0.0, a - np.where(odd, 0.0, e))
    size = np.abs(e if magnitude is None else magnitude.astype(np.float64))
    return _measure(a, e, error, np.where(odd, 0.0, size), bound)


def _measure(a: Array, e: Array, error: Array, magnitude: Array, bound: Bound) -> Report:
    square = float(np.mean(magnitude**2))
    if square == 0.0:
        peak = int(np.argmax(np.abs(error)))
        nmse = worst = float("inf") if error.flat[peak] else 0.0
    else:
        relative = np.abs(error) / np.maximum(magnitude, square**0.5)
        peak = int(np.argmax(relative))
        nmse, worst = float(np.mean(error**2)) / square, float(relative.flat[peak])
    if nmse > bound.nmse:
        return Report(False, nmse, worst, f"nmse should be at most {bound.nmse:.1e}, is {nmse:.1e} ({bound.reason})")
    if worst > bound.worst:
        text = (
            f"{_at(peak, e)} should be {e.flat[peak]:.7g}, is {a.flat[peak]:.7g}; worst {worst:.1e} > {bound.worst:.1e}"
        )
        return Report(False, nmse, worst, text)
    return Report(True, nmse, worst)


def _at(flat: int, like: Array) -> str:
    return f"element {[int(i) for i in np.unravel_index(flat, like.shape)]}"
