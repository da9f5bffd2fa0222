"""What the caches of a part are: which a node asks for, what they cost, and what a step must say of them.

`CACHES_OF` has a row for every operator that remembers something; compiler, checks and backends read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from datong.dtypes import DType
from datong.errors import DeviceError, DtypeError, ShapeError
from datong.spec.backend import CacheLayout
from datong.spec.program import STATE_KINDS, CacheSpec, Node, Step, Value

KINDS = ("full", "window", "latent", "index", "recurrent", "conv")
KEYS = frozenset({"full", "window", "latent"})  # what attention reads: a layer has one of these at most
STATE_BYTES = 4  # of one number of a state: f32, whatever the cache's dtype

# ---- which -----------------------------------------------------------------------------------------------------------

Values = Mapping[str, Value]


def _width(node: Node, values: Values, place: int, heads: int) -> int:
    """Channels of one head of input number `place`."""
    return int(values[node.inputs[place]].shape[-1]) // heads


def _int(node: Node, name: str) -> int:
    return int(str(node.attrs[name]))


def _attention(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    layer, heads, window = (_int(node, name) for name in ("layer", "num_kv_heads", "window"))
    key = _width(node, values, 1, heads)
    return (CacheSpec(layer, "window" if window else "full", heads, key, _width(node, values, 2, heads), window),)


def _causal_conv(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    channels, taps = (int(d) for d in values[node.inputs[1]].shape)
    return (CacheSpec(_int(node, "layer"), "conv", 1, channels, taps - 1),)


def _gated_delta(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    layer, k_heads, v_heads = (_int(node, name) for name in ("layer", "num_k_heads", "num_v_heads"))
    return (CacheSpec(layer, "recurrent", v_heads, _width(node, values, 1, k_heads), _width(node, values, 2, v_heads)),)


def _linear_attention(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    layer, heads = _int(node, "layer"), _int(node, "num_heads")
    return (CacheSpec(layer, "recurrent", heads, _width(node, values, 1, heads), _width(node, values, 2, heads)),)


def _select_keys(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    return (CacheSpec(_int(node, "layer"), "index", 1, _width(node, values, 1, 1), 0),)


def _sparse_attention(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    layer, heads = _int(node, "layer"), _int(node, "num_kv_heads")
    return (CacheSpec(layer, "full", heads, _width(node, values, 1, heads), _width(node, values, 2, heads)),)


def _latent_attention(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    latent, rope = (_width(node, values, place, 1) for place in (1, 2))
    return (CacheSpec(_int(node, "layer"), "latent", 1, latent + rope, latent),)


CACHES_OF: dict[str, Callable[[Node, Values], tuple[CacheSpec, ...]]] = {
    "attention": _attention,
    "latent_attention": _latent_attention,
    "causal_conv": _causal_conv,
    "gated_delta": _gated_delta,
    "linear_attention": _linear_attention,
    "select_keys": _select_keys,
    "sparse_attention": _sparse_attention,
}


def caches_of(node: Node, values: Values) -> tuple[CacheSpec, ...]:
    """The caches that a node, which obeys its row, reads and writes; none for most."""
    of = CACHES_OF.get(node.op)
    return of(node, values) if of is not None else ()


def key(spec: CacheSpec) -> tuple[int, str]:
    """What tells the caches of a part apart: the layer, and the kind."""
    return spec.layer, spec.kind


# ---- cost ------------------------------------------------------------------------------------------------------------


def numbers(spec: CacheSpec) -> int:
    """Numbers kept per token, or per sequence by the state kinds."""
    if spec.kind in STATE_KINDS:
        return spec.kv_heads * spec.key_dim * spec.value_dim
    return spec.kv_heads * (spec.key_dim + (0 if spec.kind == "latent" else spec.value_dim))


def state_bytes(specs: Iterable[CacheSpec]) -> int:
    """Bytes of the states of one sequence."""
    return STATE_BYTES * sum(numbers(s) for s in specs if s.kind in STATE_KINDS)


def layout(specs: Sequence[CacheSpec], dtype: DType, block_size: int) -> CacheLayout:
    """The layout of a cache without gaps: what is kept per token in `dtype`, states in f32."""

    def block(kinds: Iterable[str]) -> int:
        return dtype.nbytes(block_size * sum(numbers(s) for s in specs if s.kind in kinds))

    return CacheLayout(
        block_size, dtype.name, block({"full", "latent", "index"}), block({"window"}), state_bytes(specs)
    )


def cache_bytes(layout: CacheLayout, blocks: int, window_blocks: int = 0, states: int = 0) -> int:
    """Bytes of a cache; with `window_blocks` 0 the windows share `blocks`."""
    windows = (window_blocks or blocks) * layout.bytes_per_window_block
    return blocks * layout.bytes_per_block + windows + states * layout.bytes_per_state


def check_copy(where: str, what: str, source: int, target: int, count: int) -> None:
    """Both ends of a copy exist. Raises DeviceError."""
    for name, number in (("source", source), ("target", target)):
        if not 0 <= number < count:
            raise DeviceError(where, f"{name} {what} should lie in 0..{count - 1}, is {number}")


def check_counts(where: str, blocks: int, window_blocks: int, states: int) -> None:
    """Counts of `create_cache`. Raises DeviceError."""
    for name, count in (("blocks", blocks), ("window blocks", window_blocks), ("states", states)):
        if count < 0:
            raise DeviceError(where, f"a cache should have at least 0 {name}, {count} were asked for")


# ---- one step --------------------------------------------------------------------------------------------------------


def tables(step: Step, spec: CacheSpec) -> np.ndarray:
    """The block tables of one cache, [S, M] i32."""
    return step.window_tables if spec.kind == "window" and step.window_tables is not None else step.block_tables


def limits(
    specs: Sequence[CacheSpec], block_size: int, blocks: int, window_blocks: int = 0, states: int = 0
) -> dict[str, int]:
    """What `check_step` is to hold a step against, for a cache of these sizes."""
    paged = [s for s in specs if s.kind not in STATE_KINDS]
    apart = [s.window for s in paged if s.kind == "window"] if window_blocks else []
    shared = [s.window for s in paged if not (window_blocks and s.kind == "window")]
    found = {"states": states} if len(paged) < len(specs) else {}
    if shared:
        found |= {"block_size": block_size, "blocks": blocks, "window": max(shared) if all(shared) else 0}
    if apart:
        found |= {"block_size": block_size, "window_blocks": window_blocks, "own_window": max(apart)}
    return found


def check_step(
    step: Step,
    *,
    vocab_size: int = 0,
    block_size: int = 0,
    blocks: int = 0,
    window: int = 0,
    window_blocks: int = 0,
    own_window: int = 0,
    states: int = 0,
) -> None:
    """Is the metadata of a step consistent? Sizes of 0 are not checked.

    `window` is the longest reach into `block_tables`, 0: all; `own_window` that into `window_tables`; see `limits`.

    Raises ShapeError, DtypeError for arrays of the wrong form, DeviceError for ids, rows, blocks or slots out of range.
    """
    _check_arrays(step)
    tokens, new = len(step.ids), np.diff(step.query_starts)
    if step.query_starts[0] != 0 or step.query_starts[-1] != tokens or (new < 0).any():
        raise ShapeError("step", f"`query_starts` should rise from 0 to {tokens}, is {step.query_starts.tolist()}")
    if (step.context_lens < new).any():
        lens = step.context_lens.tolist()
        raise DeviceError("step", f"`context_lens` should be at least the new tokens {new.tolist()}, are {lens}")
    _check_range("ids", step.ids, vocab_size)
    if step.rows.size:
        _check_range("rows", step.rows, tokens)
    if block_size and blocks:
        _check_blocks("", step, step.block_tables, new, block_size, blocks, window)
    if block_size and window_blocks:
        if step.window_tables is None:
            raise ShapeError("step", "`window_tables` should be given for a cache with window blocks, it is None")
        _check_blocks("window ", step, step.window_tables, new, block_size, window_blocks, own_window)
    if states:
        _check_slots(step, states)


def _check_arrays(step: Step) -> None:
    """Dtypes and shapes."""
    tokens, sequences = len(step.ids), len(step.context_lens)
    wanted: Sequence[tuple[str, type, tuple[int | None, ...]]] = (
        ("ids", np.int64, (tokens,)),
        ("positions", np.int64, (tokens,)),
        ("query_starts", np.int64, (sequences + 1,)),
        ("context_lens", np.int64, (sequences,)),
        ("block_tables", np.int32, (sequences, None)),
        ("rows", np.int64, (None,)),
        ("window_tables", np.int32, (sequences, None)),
        ("state_slots", np.int32, (sequences,)),
    )
    for name, dtype, shape in wanted:
        a = getattr(step, name)
        if a is None and name in ("window_tables", "state_slots"):
            continue
        if a.dtype != dtype:
            raise DtypeError("step", f"`{name}` should be {np.dtype(dtype).name}, is {a.dtype}")
        if a.ndim != len(shape) or any(w not in (None, d) for w, d in zip(shape, a.shape, strict=True)):
            raise ShapeError("step", f"`{name}` should be {list(shape)}, is {list(a.shape)}")


def _check_range(name: str, a: np.ndarray, end: int) -> None:
    if end and a.size and (int(a.min()) < 0 or int(a.max()) >= end):
        raise DeviceError("step", f"`{name}` should lie in 0..{end - 1}, go from {a.min()} to {a.max()}")


def _check_blocks(
    which: str, step: Step, tables: np.ndarray, new: np.ndarray, block_size: int, blocks: int, window: int
) -> None:
    """Every block that the step reads or writes exists."""
    for s, end in enumerate(step.context_lens.tolist()):
        oldest = max(0, end - int(new[s]) - window + 1) if window else 0
        needed = tables[s, oldest // block_size : -(-end // block_size)]
        if len(needed) < -(-end // block_size) - oldest // block_size:
            raise ShapeError(
                "step", f"sequence {s} of {end} tokens needs more than {len(needed)} {which}blocks of {block_size}"
            )
        if needed.size and (int(needed.min()) < 0 or int(needed.max()) >= blocks):
            raise DeviceError(
                "step", f"{which or 'block '}table of sequence {s} should lie in 0..{blocks - 1}, is {needed.tolist()}"
            )


def _check_slots(step: Step, states: int) -> None:
    """Every sequence has a state slot, and no two the same."""
    slots = step.state_slots
    if slots is None:
        raise ShapeError("step", "`state_slots` should be given for a cache with states, it is None")
    _check_range("state_slots", slots, states)
    if len(set(slots.tolist())) != len(slots):
        raise DeviceError("step", f"`state_slots` should differ from each other, are {slots.tolist()}")
