"""How the part, the inputs and the steps of each op case are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.conformance.build import PartBuilder
from datong.spec.backend import Cache, Executable
from datong.spec.program import ROWS, TOKENS, Attr, CacheSpec, Dim, Step

Array = NDArray[Any]
Params = Mapping[str, Any]

# NaN and infinities must come out where IEEE 754 says; -0 and the largest f32; no denormals: chips may flush them
_SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 3.4e38, -3.4e38, 1e-30, 88.8, -88.8, -104.0], np.float32)
_DENORMAL = np.array([1e-40, -1e-45], np.float32)  # where bits are only moved


@dataclass
class Scene:
    """Steps to run one after another with their inputs, and how large the terms of the outputs are.

    sequences: (tokens in the cache before, new tokens) per sequence; the tokens before are run as a step of their own.
    """

    inputs: list[dict[str, Array]]  # per compared step
    sequences: list[tuple[int, int]]
    magnitude: dict[str, Array] = field(default_factory=dict)  # tolerance.py
    ids: Array | None = None
    positions: Array | None = None
    rows: Array | None = None
    stateful: bool = False  # there is a cache per sequence
    window: int = 0  # tokens that the cache looks back over; 0: all

    @property
    def states(self) -> int:
        """State slots that `play` uses: one for each sequence and a spare one."""
        return len(self.sequences) + 1 if self.stateful else 0

    def blocks(self, block_size: int) -> int:
        """Blocks that `play` uses: those of every sequence and a spare one."""
        return 1 + sum(-(-(past + new) // block_size) for past, new in self.sequences)

    def play(self, executable: Executable, cache: Cache | None) -> Iterator[dict[str, Array]]:
        """Run the steps; yields the outputs of each one that is compared, as copies."""
        new, lens = [n for _, n in self.sequences], [p + n for p, n in self.sequences]
        if cache is None:
            yield _run(executable, None, self._step(new, lens, None), self.inputs[0])
            return
        self._soil(executable, cache)
        size = cache.layout.block_size
        free = np.random.default_rng(7).permutation(cache.blocks).tolist()
        slots = list(range(self.states))[::-1]
        tables = [[free.pop() for _ in range(-(-n // size))] for n in lens]
        other = np.random.default_rng(8).permutation(cache.blocks)  # block -> window block, where those are apart
        windows = [other[blocks] for blocks in tables] if self.apart(cache) else []
        past = [p for p, _ in self.sequences]
        if any(past):
            first = self._step(past, past, tables, slots[:-1], self._seen(windows, past, past, size))
            yield _run(executable, cache, first, self.inputs[0])
        # The first sequence goes on in a copy of its last block, or state, as a forked sequence would.
        spare = free.pop()
        cache.copy_block(tables[0][-1], spare)
        tables[0][-1] = spare
        if self.stateful:
            cache.copy_state(slots[0], slots[-1])
            slots[0] = slots.pop()
        last = self._step(new, lens, tables, slots, self._seen(windows, new, lens, size))
        yield _run(executable, cache, last, self.inputs[-1])

    def apart(self, cache: Cache) -> bool:
        """Has the cache window blocks, as many as blocks?"""
        return self.window > 0 and cache.layout.bytes_per_window_block > 0

    def _seen(self, windows: list[Array], new: list[int], lens: list[int], size: int) -> list[list[int]]:
        """Window tables of a step: blocks that the window has left are given back, -1."""
        tables = [table.tolist() for table in windows]
        for table, count, length in zip(tables, new, lens, strict=False):
            left = max(0, length - count - self.window + 1) // size
            table[:left] = [-1] * left
        return tables

    def _soil(self, executable: Executable, cache: Cache) -> None:
        """Fill every block and state with large values: a kernel that reads what is not the sequence's will show it."""
        size = cache.layout.block_size
        inputs = {name: np.full((size, a.shape[1]), 1e3, np.float32) for name, a in self.inputs[0].items()}
        for block in range(cache.blocks):
            slot = [block % self.states] if self.stateful else []
            windows = [[block]] if self.apart(cache) else []
            _run(executable, cache, self._step([size], [size], [[block]], slot, windows), inputs)

    def _step(
        self,
        new: list[int],
        lens: list[int],
        tables: list[list[int]] | None,
        slots: list[int] | None = None,
        windows: list[list[int]] | None = None,
    ) -> Step:
        tokens = sum(new)
        positions = [np.arange(n - k, n) for k, n in zip(new, lens, strict=True)]
        return Step(
            ids=np.zeros(tokens, np.int64) if self.ids is None else self.ids,
            positions=np.concatenate(positions).astype(np.int64) if self.positions is None else self.positions,
            query_starts=np.cumsum([0, *new]).astype(np.int64),
            context_lens=np.array(lens, np.int64),
            block_tables=_table(tables or [], len(new)),
            rows=np.zeros(0, np.int64) if self.rows is None else self.rows,
            window_tables=_table(windows, len(new)) if windows else None,
            state_slots=np.array(slots, np.int32) if slots else None,
        )


def _table(tables: list[list[int]], sequences: int) -> Array:
    """Block tables, [S, M] i32."""
    table = np.full((sequences, max(map(len, tables), default=0)), -1, np.int32)
    for row, blocks in zip(table, tables, strict=False):
        row[: len(blocks)] = blocks
    return table


def _run(executable: Executable, cache: Cache | None, step: Step, inputs: dict[str, Array]) -> dict[str, Array]:
    with np.errstate(over="ignore", invalid="ignore"):  # special values are meant
        return {name: array.copy() for name, array in executable.run(step, cache, inputs).items()}


def _values(b: PartBuilder, shape: tuple[int, ...], p: Params, *, moves: bool = False) -> Array:
    """Normal values, or with `special` ones scattered among them."""
    x = b.rng.standard_normal(shape).astype(np.float32) * np.float32(p.get("size", 1.0))
    if p.get("values") == "special":
        pool = np.concatenate([_SPECIAL, _DENORMAL]) if moves else _SPECIAL
        x = np.where(b.rng.random(shape) < 0.5, b.rng.choice(pool, shape), x)
    return x


def _root(x: Array, w: Array, *extra: Array) -> Array:
    """Root of the sum of squared terms of x @ w.T + extra: the magnitude of a sum that may cancel."""
    total = x.astype(np.float64) ** 2 @ w.astype(np.float64).T ** 2
    return np.sqrt(total + sum(e.astype(np.float64) ** 2 for e in extra))


def _embedding(b: PartBuilder, p: Params) -> Scene:
    vocab, n = p["shape"]
    ids = b.rng.integers(0, vocab, p["tokens"])
    ids[0] = vocab - 1
    b.node(
        "embedding", [b.input("ids", (TOKENS,), "i64"), b.weight("w", p["format"], (vocab, n))], [("y", (TOKENS, n))]
    )
    return Scene([{}], [(0, p["tokens"])], ids=ids)


def _linear(b: PartBuilder, p: Params) -> Scene:
    out, width = p["shape"]
    x, w = b.input("x", (TOKENS, width)), b.weight("w", p["format"], (out, width))
    bias = [b.weight("bias", "f32", (out,))] if p["bias"] else []
    b.node("linear", [x, w, *bias], [("y", (TOKENS, out))])
    data = _values(b, (p["tokens"], width), p)
    root = _root(data, b.arrays["w"], *(b.arrays[n] for n in bias))
    return Scene([{"x": data}], [(0, p["tokens"])], {"y": root})


def _rms_norm(b: PartBuilder, p: Params) -> Scene:
    n, group = p["shape"]
    inputs = [b.input("x", (TOKENS, n)), b.weight("w", p["format"], (group,))]
    b.node("rms_norm", inputs, [("y", (TOKENS, n))], {"eps": p["eps"], "offset": p["offset"]})
    return Scene([{"x": _values(b, (p["tokens"], n), p)}], [(0, p["tokens"])])


def _rope_table(b: PartBuilder, p: Params) -> Scene:
    half, positions = p["half"], np.array(p["positions"], np.int64)
    freq = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    outputs: list[tuple[str, tuple[Dim, ...]]] = [("cos", (TOKENS, half)), ("sin", (TOKENS, half))]
    inputs = [b.input("positions", (TOKENS,), "i64"), b.const("inv_freq", freq)]
    b.node("rope_table", inputs, outputs, {"scale": p["scale"]})
    one = np.ones((len(positions), half))  # of a cos or sin near 0 the absolute error counts
    return Scene([{}], [(0, len(positions))], {"cos": one, "sin": one}, positions=positions)


def _rope(b: PartBuilder, p: Params) -> Scene:
    (dim, rotated), heads, tokens = p["shape"], p["heads"], p["tokens"]
    angle = b.rng.uniform(0, 2 * math.pi, (tokens, rotated // 2))
    inputs = [b.input("x", (TOKENS, heads * dim)), *(b.input(n, (TOKENS, rotated // 2)) for n in ("cos", "sin"))]
    attrs = {"num_heads": heads, "interleaved": p["interleaved"]}
    b.node("rope", inputs, [("y", (TOKENS, heads * dim))], attrs)
    tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
    return Scene([{"x": _values(b, (tokens, heads * dim), p), **tables}], [(0, tokens)])


def _attention(b: PartBuilder, p: Params) -> Scene:
    (hq, hkv), (dk, dv) = p["heads"], p["dims"]
    widths = {"q": hq * dk, "k": hkv * dk, "v": hkv * dv}
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    attrs: dict[str, Attr] = {
        "layer": 3,
        "num_heads": hq,
        "num_kv_heads": hkv,
        "scale": dk**-0.5,
        "window": p["window"],
    }
    if p.get("sinks"):
        inputs.append(b.weight("sinks", p["sinks"], (hq,), size=2.0))
    if p.get("bias"):
        slopes = (0.7 ** np.arange(1, hq + 1)).astype(np.float32)
        inputs += [*([""] if len(inputs) == 3 else []), b.const("slopes", slopes)]
        attrs["bias"] = p["bias"]
    b.node("attention", inputs, [("y", (TOKENS, hq * dv))], {**attrs, "softcap": p["softcap"]})
    b.caches.append(CacheSpec(3, "window" if p["window"] else "full", hkv, dk, dv, p["window"]))
    sequences = [(past, new) for past, new in p["sequences"]]
    steps = [tokens for tokens in (sum(past for past, _ in sequences),) if tokens] + [sum(new for _, new in sequences)]
    arrays = [{n: _values(b, (tokens, width), p) for n, width in widths.items()} for tokens in steps]
    return Scene(arrays, sequences, window=p["window"])


def _elementwise(op: str, *names: str) -> Callable[[PartBuilder, Params], Scene]:
    def build(b: PartBuilder, p: Params) -> Scene:
        b.node(op, [b.input(name, (TOKENS, p["n"])) for name in names], [("y", (TOKENS, p["n"]))])
        return Scene([{name: _values(b, (p["tokens"], p["n"]), p) for name in names}], [(0, p["tokens"])])

    return build


def _glu(b: PartBuilder, p: Params) -> Scene:
    shape = (p["tokens"], p["n"])
    inputs = [b.input(name, (TOKENS, p["n"])) for name in ("gate", "up")]
    b.node("glu", inputs, [("y", (TOKENS, p["n"]))], _glu_attrs(p))
    # `up` stays normal: silu(-104) is a denormal, and whether it times infinity is -inf or NaN means nothing
    return Scene([{"gate": _values(b, shape, p), "up": _values(b, shape, {})}], [(0, p["tokens"])])


def _glu_attrs(p: Params) -> dict[str, Attr]:
    return {"kind": "silu", **{name: p[name] for name in ("kind", "limit", "alpha") if name in p}}


def _scale(b: PartBuilder, p: Params) -> Scene:
    b.node("scale", [b.input("x", (TOKENS, p["n"]))], [("y", (TOKENS, p["n"]))], {"factor": p["factor"]})
    return Scene([{"x": _values(b, (p["tokens"], p["n"]), p)}], [(0, p["tokens"])])


def _scale_groups(b: PartBuilder, p: Params) -> Scene:
    n, groups = p["shape"]
    b.node("scale_groups", [b.input("x", (TOKENS, n)), b.input("s", (TOKENS, groups))], [("y", (TOKENS, n))])
    return Scene(
        [{"x": _values(b, (p["tokens"], n), p), "s": _values(b, (p["tokens"], groups), {})}], [(0, p["tokens"])]
    )


def _moe(b: PartBuilder, p: Params) -> Scene:
    (count, inner, n), order, fmt = p["shape"], p.get("order", "split"), p["format"]
    both, how = (1 if order == "split" else 2) * inner, {"apart": p["apart"], "swapped": p.get("swapped", False)}
    size = n**-0.5  # gates near 1, where the activations bend
    names = [
        b.input("x", (TOKENS, n)), b.input("logits", (TOKENS, count)),
        b.experts("gate", fmt, (count, both, n), size, **how),
        b.experts("up", fmt, (count, inner, n), size, **how) if order == "split" else "",
        b.experts("down", fmt, (count, n, inner), inner**-0.5, **how),
        b.weight("select", "f32", (count,)) if p["select_bias"] else "",
    ]  # fmt: skip
    if p.get("biases"):
        names += [b.weight("gate_bias", "f32", (count, both)), ""]
        names[-1] = b.weight("up_bias", "f32", (count, inner)) if order == "split" else ""
        names.append(b.weight("down_bias", "f32", (count, n)))
    attrs: dict[str, Attr] = {name: p[name] for name in ("top_k", "score", "renorm", "scale")}
    attrs |= {name: p[name] for name in ("groups", "top_groups", "order") if name in p} | _glu_attrs(p)
    b.node("moe", names, [("y", (TOKENS, n))], attrs)
    data = {"x": _values(b, (p["tokens"], n), p), "logits": 2 * b.rng.standard_normal((p["tokens"], count), np.float32)}
    # the root of the terms of one expert: what down sums has a size of about 1
    return Scene([data], [(0, p["tokens"])], {"y": np.full((p["tokens"], n), 2 * float(p["scale"]))})


def _slice(b: PartBuilder, p: Params) -> Scene:
    n, group, start, length = p["cut"]
    attrs = {"group": group, "start": start, "length": length}
    b.node("slice", [b.input("x", (TOKENS, n))], [("y", (TOKENS, n // group * length))], attrs)
    return Scene([{"x": _values(b, (p["tokens"], n), p, moves=True)}], [(0, p["tokens"])])


def _concat(b: PartBuilder, p: Params) -> Scene:
    groups, m, k = p["parts"]
    inputs = [b.input("a", (TOKENS, groups * m)), b.input("b", (TOKENS, groups * k))]
    b.node("concat", inputs, [("y", (TOKENS, groups * (m + k)))], {"groups": groups})
    data = {"a": _values(b, (p["tokens"], groups * m), p, moves=True)}
    return Scene([data | {"b": _values(b, (p["tokens"], groups * k), p, moves=True)}], [(0, p["tokens"])])


def _take_rows(b: PartBuilder, p: Params) -> Scene:
    inputs = [b.input("x", (TOKENS, p["n"])), b.input("rows", (ROWS,), "i64")]
    b.node("take_rows", inputs, [("y", (ROWS, p["n"]))])
    x = _values(b, (p["tokens"], p["n"]), p, moves=True)
    return Scene([{"x": x}], [(0, p["tokens"])], rows=np.array(p["rows"], np.int64))


def _add_rms_norm(b: PartBuilder, p: Params) -> Scene:
    (n,) = p["shape"]
    inputs = [b.input("a", (TOKENS, n)), b.input("b", (TOKENS, n)), b.weight("w", p["format"], (n,))]
    outputs: list[tuple[str, tuple[Dim, ...]]] = [("sum", (TOKENS, n)), ("y", (TOKENS, n))]
    b.node("add_rms_norm", inputs, outputs, {"eps": p["eps"], "offset": p["offset"]})
    return Scene([{name: _values(b, (p["tokens"], n), p) for name in "ab"}], [(0, p["tokens"])])


def _linear_multi(b: PartBuilder, p: Params) -> Scene:
    width, *outs = p["shape"]
    weights = [b.weight(f"w{i}", p["format"], (out, width)) for i, out in enumerate(outs)]
    biased = {"none": 0, "first": 1, "all": len(outs)}[p["bias"]]
    biases = [b.weight(f"b{i}", "f32", (out,)) if i < biased else "" for i, out in enumerate(outs)]
    outputs: list[tuple[str, tuple[Dim, ...]]] = [(f"y{i}", (TOKENS, out)) for i, out in enumerate(outs)]
    b.node("linear_multi", [b.input("x", (TOKENS, width)), *weights, *biases], outputs, {"count": len(outs)})
    x = _values(b, (p["tokens"], width), p)
    roots = {f"y{i}": _root(x, b.arrays[w]) for i, w in enumerate(weights)}
    return Scene([{"x": x}], [(0, p["tokens"])], roots)


def _linear_glu(b: PartBuilder, p: Params) -> Scene:
    n, width = p["shape"]
    # 1/sqrt(in): gates near 1, where silu bends
    weights = [b.weight(name, p["format"], (n, width), size=width**-0.5) for name in ("gate", "up")]
    b.node("linear_glu", [b.input("x", (TOKENS, width)), *weights], [("y", (TOKENS, n))], {"kind": "silu"})
    x = _values(b, (p["tokens"], width), p)
    root = _root(x, b.arrays["gate"]) * _root(x, b.arrays["up"])
    return Scene([{"x": x}], [(0, p["tokens"])], {"y": root})


def _linear_add(b: PartBuilder, p: Params) -> Scene:
    out, width = p["shape"]
    inputs = [b.input("x", (TOKENS, width)), b.weight("w", p["format"], (out, width)), b.input("r", (TOKENS, out))]
    bias = [b.weight("bias", "f32", (out,))] if p["bias"] else []
    b.node("linear_add", [*inputs, *bias], [("y", (TOKENS, out))])
    data = {"x": _values(b, (p["tokens"], width), p), "r": _values(b, (p["tokens"], out), p)}
    root = _root(data["x"], b.arrays["w"], data["r"], *(b.arrays[name] for name in bias))
    return Scene([data], [(0, p["tokens"])], {"y": root})


BUILDERS: dict[str, Callable[[PartBuilder, Params], Scene]] = {
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "rope_table": _rope_table,
    "rope": _rope,
    "attention": _attention,
    "glu": _glu,
    "add": _elementwise("add", "a", "b"),
    "mul": _elementwise("mul", "a", "b"),
    "sigmoid": _elementwise("sigmoid", "x"),
    "scale": _scale,
    "scale_groups": _scale_groups,
    "moe": _moe,
    "slice": _slice,
    "concat": _concat,
    "take_rows": _take_rows,
    "add_rms_norm": _add_rms_norm,
    "linear_multi": _linear_multi,
    "linear_glu": _linear_glu,
    "linear_add": _linear_add,
}
