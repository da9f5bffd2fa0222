"""A thin layer over onnx_ir for authoring graphs of stock ONNX operators: the vocabulary of the model families.

Owns the form in which each operator of spec/ops.py appears in `graph.onnx`: that module's `onnx` column, and for block
formats the nodes that spec/formats.py states. The compiler recognises exactly these forms.

- Every value carries its type and shape. Leading dims are `batch`, `seq`; caches have `past` and `total` = past + seq.
- Nodes are named by place (`layers.3.attn.q_proj`), initializers by checkpoint tensor; weights are external data into
  the safetensors files, everything else (a few numbers) is inline.
- Only attention looks across tokens; every other node acts on trailing dims.
- All activations are f32. A weight is used through one f32 value, made once: cast or dequantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from datong.importer import functions
from datong.importer.body import DOMAIN, VERSION, overload
from datong.importer.functions_tiles import TILES_INPUTS
from datong.importer.rope import Rope
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec.program import CacheSpec

OPSET = 27
IR_VERSION = 13

Dims = Sequence[int | str]
Output = tuple[str, ir.DataType, Dims]

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


class GraphBuilder:
    """Nodes in the order of the calls; `finish` makes the model."""

    def __init__(self, name: str, weights: WeightMap) -> None:
        self.caches: list[CacheSpec] = []
        self.layer: int | None = None  # that the caches made next belong to; None: one more than there are caches
        self._name, self._weights, self._scope = name, weights, ""
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._presents: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._matrices: dict[str, ir.Value] = {}  # weight name -> its f32 value
        self._functions: dict[tuple[str, str], ir.Function] = {}

    # ---- structure -------------------------------------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix `name.` for nodes made inside."""
        outer, self._scope = self._scope, f"{self._scope}{name}."
        try:
            yield
        finally:
            self._scope = outer

    def input(self, name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
        """A graph input."""
        value = _typed(ir.Value(name=name), dtype, dims)
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Make `value` the graph output `name`."""
        value.name = name
        self._outputs.append(value)

    def node(self, op: str, inputs: Sequence[ir.Value | None], dims: Dims, name: str, dtype: ir.DataType = F32,
             **attributes: Any) -> ir.Value:  # fmt: skip
        """Append a node with one output of type `dtype` and shape `dims`; both are named `<scope><name>`."""
        return self._append(op, inputs, [(f"{self._scope}{name}", dtype, dims)], name, attributes)[0]

    def finish(self) -> ir.Model:
        """The model: inputs and outputs in the order of creation, cache outputs last."""
        graph = ir.Graph(
            self._inputs,
            [*self._outputs, *self._presents],
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, **({DOMAIN: VERSION} if self._functions else {})},
            name=self._name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="datong", functions=list(self._functions.values()))

    # ---- constants and weights -------------------------------------------------------------------------------------

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small inline initializer; the same name gives the same value."""
        if name not in self._initializers:
            tensor = ir.Tensor(array, name=name)
            value = _typed(ir.Value(name=name, const_value=tensor), tensor.dtype, array.shape)
            self._initializers[name] = value
        return self._initializers[name]

    def integers(self, *numbers: int) -> ir.Value:
        """An inline i64 vector, shared by all who need the same numbers."""
        return self.constant("const.i64." + "_".join(map(str, numbers)), np.array(numbers, dtype=np.int64))

    def weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """The checkpoint's weight `name` as an f32 value of `shape`; tied weights get one value.

        Raises:
            CheckpointError: missing, or of another shape.
        """
        if name not in self._matrices:
            weight = self._weights.take(name, shape)
            outer, self._scope = self._scope, ""
            self._matrices[name] = self._dequantised(weight) if weight.format.block else self._plain(weight)
            self._scope = outer
        return self._matrices[name]

    def has(self, name: str) -> bool:
        """Is there such a weight in the checkpoint?"""
        return self._weights.has(name)

    def is_packed(self, name: str) -> bool:
        """Is this weight of a format with blocks or tiles?"""
        return self._weights.is_packed(name)

    def _stored(self, stored: StoredTensor) -> ir.Value:
        dtype = ir.DataType(stored.dtype.onnx)
        shape = ir.Shape(stored.shape)
        tensor = ir.ExternalTensor(stored.file, stored.offset, stored.length, dtype, shape=shape, name=stored.name)
        value = _typed(ir.Value(name=stored.name, const_value=tensor), dtype, stored.shape)
        self._initializers[stored.name] = value
        return value

    def _plain(self, weight: Weight) -> ir.Value:
        return self._to_f32(self._stored(weight.pieces["codes"]))

    def _to_f32(self, value: ir.Value) -> ir.Value:
        assert value.shape is not None and value.name is not None
        if value.dtype == F32:
            return value
        return self.node("Cast", [value], _dims(value), f"{value.name}.f32", to=F32)

    def _dequantised(self, weight: Weight) -> ir.Value:
        """Block format -> f32 [out, in] or [E, out, in], exactly in the nodes of spec/formats.py."""
        form, name = weight.format, weight.name
        if form.tile:
            pieces = [self._stored(weight.pieces[role]) if role in form.pieces else None for role in TILES_INPUTS]
            attributes: dict[str, Any] = {"rows": form.tile, "columns": form.block}
            attributes |= {"table": form.table or "none", "divide": int(form.factor < 0)}
            return self._call("DequantizeTiles", pieces, [(f"{name}.f32", F32, weight.shape)], name, attributes)[0]
        codes = self._stored(weight.pieces["codes"])
        blocks = weight.shape[-1] // form.block
        rows = weight.shape[:-1]
        grid = (*rows, blocks, 1)

        def level(piece: str) -> ir.Value:
            inner = self._to_f32(self._stored(weight.pieces[piece]))
            if not form.super_block:
                return inner
            outer = self._to_f32(self._stored(weight.pieces[f"super_{piece}"]))
            product = self.node("Mul", [outer, inner], _dims(inner), f"{name}.{piece}.product")
            return self.node("Reshape", [product, self.integers(*grid)], grid, f"{name}.{piece}.levels")

        shape = (*rows, blocks, form.block)
        value = self.node(
            "DequantizeLinear",
            [codes, level("scale")],
            shape,
            f"{name}.scaled",
            axis=len(rows) + 1,
            block_size=form.block,
        )
        if form.has_min:
            value = self.node("Add" if form.min_sign > 0 else "Sub", [value, level("min")], shape, f"{name}.shifted")
        return self.node("Reshape", [value, self.integers(*weight.shape)], weight.shape, f"{name}.f32")

    # ---- operators, as in spec/ops.py ------------------------------------------------------------------------------

    def embedding(self, ids: ir.Value, weight: str, vocab: int, width: int, name: str) -> ir.Value:
        """[batch, seq] i64 -> [batch, seq, width]."""
        table = self.weight(weight, (vocab, width))
        return self.node("Gather", [table, ids], ("batch", "seq", width), name, axis=0)

    def linear(self, x: ir.Value, weight: str, out: int, name: str, bias: str = "") -> ir.Value:
        """Return x @ weight.T (+ bias), [batch, seq, in] -> [batch, seq, out]; `weight` is [out, in], `bias` [out]."""
        in_, dims = _width(x), ("batch", "seq", out)
        matrix = self.weight(weight, (out, in_))
        turned = self.node("Transpose", [matrix], (in_, out), f"{name}.transposed", perm=[1, 0])
        y = self.node("MatMul", [x, turned], dims, name)
        return self.node("Add", [y, self.weight(bias, (out,))], dims, f"{name}.biased") if bias else y

    def rms_norm(self, x: ir.Value, weight: str, eps: float, name: str, offset: float = 0.0) -> ir.Value:
        """RMSNorm over the last axis of [batch, seq, n]; `offset` 1: the weight is stored less 1."""
        scale = self._norm_weight(weight, _width(x), offset, name)
        return self.node("RMSNormalization", [x, scale], _dims(x), name, axis=-1, epsilon=eps)

    def _norm_weight(self, weight: str, width: int, offset: float, name: str) -> ir.Value:
        value = self.weight(weight, (width,))
        if not offset:
            return value
        return self.node(
            "Add", [value, self.constant("const.one", np.array(1.0, np.float32))], (width,), f"{name}.weight"
        )

    def head_norm(
        self, x: ir.Value, weight: str, eps: float, head_dim: int, name: str, offset: float = 0.0
    ) -> ir.Value:
        """RMSNorm of each head of [batch, seq, H * head_dim] on its own, one weight [head_dim] for all heads."""
        width = _width(x)
        dims = ("batch", "seq", width // head_dim, head_dim)
        heads = self.node("Reshape", [x, self.integers(0, 0, *dims[2:])], dims, f"{name}.heads")
        normed = self.node(
            "RMSNormalization",
            [heads, self._norm_weight(weight, head_dim, offset, name)],
            dims,
            name,
            axis=-1,
            epsilon=eps,
        )
        return self.node("Reshape", [normed, self.integers(0, 0, width)], _dims(x), f"{name}.packed")

    def half_norms(self, x: ir.Value, weights: Sequence[str], eps: float, heads: int, name: str) -> ir.Value:
        """RMSNorm of each half of each head, with a weight of its own: [batch, seq, heads * D] -> the same."""
        width = _width(x)
        dim = width // heads // 2
        parts = self.slices(x, 2 * dim, [dim, dim], [f"{name}.first", f"{name}.second"])
        normed = [self.head_norm(part, weight, eps, dim, f"{name}.{i}")
                  for i, (part, weight) in enumerate(zip(parts, weights, strict=True))]  # fmt: skip
        return self.joined(normed, heads, name)

    def joined(self, parts: Sequence[ir.Value], groups: int, name: str) -> ir.Value:
        """Join channels group by group, the inverse of `slices`: [batch, seq, groups * d_i] -> their sum."""
        grids = [
            self.node("Reshape", [part, self.integers(0, 0, groups, _width(part) // groups)],
                      ("batch", "seq", groups, _width(part) // groups), f"{name}.part{i}")
            for i, part in enumerate(parts)
        ]  # fmt: skip
        total = sum(_width(part) for part in parts)
        whole = self.node("Concat", grids, ("batch", "seq", groups, total // groups), f"{name}.groups", axis=-1)
        return self.node("Reshape", [whole, self.integers(0, 0, total)], ("batch", "seq", total), name)

    def rope_table(self, positions: ir.Value, rope: Rope, name: str) -> tuple[ir.Value, ir.Value]:
        """[batch, seq] i64 -> cos, sin [batch, seq, D/2]."""
        half = len(rope.inv_freq)
        dims = ("batch", "seq", half)
        floats = self.node("Cast", [positions], ("batch", "seq"), f"{name}.positions", to=F32)
        column = self.node("Unsqueeze", [floats, self.integers(-1)], ("batch", "seq", 1), f"{name}.column")
        angle = self.node("Mul", [column, self.constant(f"{self._scope}{name}.inv_freq", rope.inv_freq)], dims,
                          f"{name}.angle")  # fmt: skip
        tables = []
        for op in ("Cos", "Sin"):
            table = self.node(op, [angle], dims, f"{name}.{op.lower()}")
            if rope.scale != 1.0:
                factor = self.constant(f"{self._scope}{name}.scale", np.array(rope.scale, dtype=np.float32))
                table = self.node("Mul", [table, factor], dims, f"{name}.{op.lower()}.scaled")
            tables.append(table)
        return tables[0], tables[1]

    def rope(
        self, x: ir.Value, table: tuple[ir.Value, ir.Value], heads: int, name: str, interleaved: bool = False
    ) -> ir.Value:
        """Rotate the first r channels of each head of [batch, seq, heads * D]; r/2 is the table's width.

        Pairs are (i, i + r/2), or (2i, 2i + 1) where `interleaved`.
        """
        attributes: dict[str, Any] = {"interleaved": int(interleaved), "num_heads": heads}
        rotated = 2 * _width(table[0])
        if rotated != _width(x) // heads:
            attributes["rotary_embedding_dim"] = rotated
        return self.node("RotaryEmbedding", [x, *table], _dims(x), name, **attributes)

    def attention(
        self,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        heads: int,
        kv_heads: int,
        window: int,
        name: str,
        *,
        scale: float | None = None,
        sinks: str = "",
        slopes: np.ndarray | None = None,
        bias: str = "none",
    ) -> ir.Value:
        """Causal attention with its own cache input and output.

        Args:
            q: [batch, seq, heads * D].
            k: [batch, seq, kv_heads * D].
            v: [batch, seq, kv_heads * Dv].
            heads: query heads, a multiple of kv_heads.
            kv_heads: key and value heads.
            window: a query sees the `window` newest keys, its own included; 0: all.
            name: of the node, inside the scope.
            scale: of the scores; None: 1 / sqrt(D).
            sinks: weight [heads], a score without a value in each softmax; empty: none.
            slopes: [heads] f32, for a `bias` by distance: alibi or sqrt_alibi.
            bias: as spec/ops.py names it.

        Returns:
            [batch, seq, heads * Dv].
        """
        layer = len(self.caches) if self.layer is None else self.layer
        dim, value_dim = _width(k) // kv_heads, _width(v) // kv_heads
        past = [
            self.input(f"past_key_values.{layer}.{part}", F32, ("batch", kv_heads, "past", d))
            for part, d in (("key", dim), ("value", value_dim))
        ]
        outputs = [
            (f"{self._scope}{name}", F32, ("batch", "seq", heads * value_dim)),
            (f"present.{layer}.key", F32, ("batch", kv_heads, "total", dim)),
            (f"present.{layer}.value", F32, ("batch", kv_heads, "total", value_dim)),
        ]
        scale = dim**-0.5 if scale is None else scale
        if sinks or slopes is not None:
            extra = [
                self.weight(sinks, (heads,)) if sinks else None,
                None if slopes is None else self.constant(f"const.slopes.{heads}", slopes),
            ]
            attributes: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "scale": float(scale)}
            attributes |= {"window": window, "softcap": 0.0, "bias": bias}
            y, *presents = self._call("Attention", [q, k, v, *past, *extra], outputs, name, attributes)
        else:
            attributes = {"is_causal": 1, "q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
            if window:
                attributes["left_window_size"] = window - 1
            y, *presents = self._append("Attention", [q, k, v, None, *past], outputs, name, attributes)
        self._presents += presents
        self.caches.append(CacheSpec(layer, "window" if window else "full", kv_heads, dim, value_dim, window))
        return y

    def with_keys(
        self,
        function: str,
        inputs: Sequence[ir.Value | None],
        spec: CacheSpec,
        width: int,
        attributes: dict[str, Any],
        name: str,
    ) -> ir.Value:
        """Call a function with its own cache, of kind full, latent or index: [batch, seq, width]."""
        halves = {"index" if spec.kind == "index" else "key": spec.key_dim}
        if spec.kind == "full":
            halves["value"] = spec.value_dim
        pasts = [
            self.input(f"past_key_values.{spec.layer}.{half}", F32, ("batch", spec.kv_heads, "past", dim))
            for half, dim in halves.items()
        ]
        outputs: list[Output] = [(f"{self._scope}{name}", F32, ("batch", "seq", width))]
        for half, dim in halves.items():
            outputs.append((f"present.{spec.layer}.{half}", F32, ("batch", spec.kv_heads, "total", dim)))
        y, *presents = self._call(function, [*inputs, *pasts], outputs, name, attributes)
        self._presents += presents
        self.caches.append(spec)
        return y

    def layer_norm(self, x: ir.Value, prefix: str, eps: float, name: str) -> ir.Value:
        """Norm about the mean of [batch, seq, n], weight and bias of `prefix`."""
        weights = [self.weight(f"{prefix}.{part}", (_width(x),)) for part in ("weight", "bias")]
        return self.node("LayerNormalization", [x, *weights], _dims(x), name, epsilon=eps, axis=-1)

    def with_state(
        self,
        function: str,
        inputs: Sequence[ir.Value | None],
        spec: CacheSpec,
        width: int,
        attributes: dict[str, Any],
        name: str,
    ) -> ir.Value:
        """Call a function of functions_state.py with its own state, zeros at the start: [batch, seq, width]."""
        place, dims = f"state.{spec.layer}.{spec.kind}", ("batch", spec.kv_heads, spec.key_dim, spec.value_dim)
        past = self.input(f"past_{place}", F32, dims)
        outputs: list[Output] = [(f"{self._scope}{name}", F32, ("batch", "seq", width))]
        outputs.append((f"present_{place}", F32, dims))
        y, present = self._call(function, [*inputs, past], outputs, name, attributes)
        self._presents.append(present)
        self.caches.append(spec)
        return y

    def silu(self, x: ir.Value, name: str) -> ir.Value:
        """Return x * sigmoid(x)."""
        return self.mul(x, self.sigmoid(x, f"{name}.sigmoid"), name)

    def silu_glu(self, gate: ir.Value, up: ir.Value, name: str) -> ir.Value:
        """Return silu(gate) * up, [batch, seq, n] each."""
        sigmoid = self.node("Sigmoid", [gate], _dims(gate), f"{name}.sigmoid")
        silu = self.node("Mul", [gate, sigmoid], _dims(gate), f"{name}.silu")
        return self.node("Mul", [silu, up], _dims(gate), name)

    def glu(
        self, gate: ir.Value, up: ir.Value, name: str, kind: str = "silu", limit: float = 0.0, alpha: float = 0.0
    ) -> ir.Value:
        """Gated unit of [batch, seq, n] each, of a kind of spec/ops.py."""
        if kind == "silu":
            return self.silu_glu(gate, up, name)
        outputs: list[Output] = [(f"{self._scope}{name}", F32, _dims(gate))]
        return self._call("GLU", [gate, up], outputs, name, {"kind": kind, "limit": limit, "alpha": alpha})[0]

    def scale(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        """Return x * factor, [batch, seq, n]."""
        number = self.constant(f"const.f32.{factor!r}", np.array(factor, np.float32))
        return self.node("Mul", [x, number], _dims(x), name)

    def sigmoid(self, x: ir.Value, name: str) -> ir.Value:
        """Elementwise."""
        return self.node("Sigmoid", [x], _dims(x), name)

    def mul(self, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        """Return a * b, same shape."""
        return self.node("Mul", [a, b], _dims(a), name)

    def scale_groups(self, x: ir.Value, s: ir.Value, name: str) -> ir.Value:
        """Each of g groups of channels times its own number: x [batch, seq, n], s [batch, seq, g]."""
        groups, width = _width(s), _width(x)
        if groups == 1:
            return self.node("Mul", [x, s], _dims(x), name)
        dims: Dims = ("batch", "seq", groups, width // groups)
        grid = self.node("Reshape", [x, self.integers(0, 0, *dims[2:])], dims, f"{name}.groups")  # type: ignore[arg-type]
        column = self.node("Unsqueeze", [s, self.integers(-1)], ("batch", "seq", groups, 1), f"{name}.column")
        product = self.node("Mul", [grid, column], dims, f"{name}.product")
        return self.node("Reshape", [product, self.integers(0, 0, width)], _dims(x), name)

    def stack(self, weights: Sequence[str], shape: tuple[int, int], name: str) -> ir.Value:
        """Experts `[out, in]` each, of tensors of their own, as one value [E, out, in]."""
        members = [self.weight(weight, shape) for weight in weights]
        count, (out, width) = len(members), shape
        rows = self.node("Concat", members, (count * out, width), f"{name}.rows", axis=0)
        return self.node("Reshape", [rows, self.integers(count, out, width)], (count, out, width), name)

    def swapped(self, weight: str, shape: tuple[int, int, int], name: str) -> ir.Value:
        """Experts [E, out, in] of one tensor that is stored as [E, in, out]."""
        experts, out, width = shape
        stored = self.weight(weight, (experts, width, out))
        return self.node("Transpose", [stored], shape, name, perm=[0, 2, 1])

    def moe(self, inputs: Mapping[str, ir.Value | None], attributes: Mapping[str, Any], name: str) -> ir.Value:
        """Mixture of experts.

        Args:
            inputs: by name, as functions.MOE_INPUTS: x [batch, seq, n], logits [batch, seq, E], stacks, biases.
            attributes: of the operator that differ from `top_k` 1, softmax, no renorm, scale 1, no groups, split, silu.
            name: of the node, inside the scope.

        Returns:
            [batch, seq, n].
        """
        plain = {"top_k": 1, "score": "softmax", "renorm": 0, "scale": 1.0, "groups": 1, "top_groups": 1,
                 "order": "split", "kind": "silu", "limit": 0.0, "alpha": 0.0}  # fmt: skip
        x = inputs["x"]
        assert x is not None
        operands = [inputs.get(key) for key in functions.MOE_INPUTS]
        outputs: list[Output] = [(f"{self._scope}{name}", F32, _dims(x))]
        return self._call("MoE", operands, outputs, name, {**plain, **attributes})[0]

    def add(self, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        """Return a + b, same shape."""
        return self.node("Add", [a, b], _dims(a), name)

    def slices(self, x: ir.Value, group: int, lengths: Sequence[int], names: Sequence[str]) -> list[ir.Value]:
        """Cut every `group` channels of [batch, seq, n] into parts of `lengths`: [batch, seq, n/group * length]."""
        count, start, parts = _width(x) // group, 0, []
        grid = self.node(
            "Reshape", [x, self.integers(0, 0, count, group)], ("batch", "seq", count, group), f"{names[0]}.groups"
        )
        for length, name in zip(lengths, names, strict=True):
            bounds = [self.integers(start), self.integers(start + length), self.integers(-1)]
            part = self.node("Slice", [grid, *bounds], ("batch", "seq", count, length), f"{name}.slice")
            width = count * length
            parts.append(self.node("Reshape", [part, self.integers(0, 0, width)], ("batch", "seq", width), name))
            start += length
        return parts

    # ---- plumbing --------------------------------------------------------------------------------------------------

    def _call(
        self,
        function: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[Output],
        name: str,
        attributes: dict[str, Any],
    ) -> list[ir.Value]:
        """Call a function of functions.py, adding its body for these attributes to the model."""
        present = [value is not None for value in inputs]
        key = overload(attributes, present)
        body = self._functions.get((function, key))
        if body is None:
            body = self._functions[function, key] = functions.KNOWN[function].body(attributes, present)
        values = [_typed(ir.Value(name=n), dtype, dims) for n, dtype, dims in outputs]
        self._nodes.append(
            ir.node(function, list(inputs), attributes, domain=DOMAIN, overload=body.overload, outputs=values,
                    name=f"{self._scope}{name}")
        )  # fmt: skip
        return values

    def _append(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[Output],
        name: str,
        attributes: dict[str, Any],
    ) -> list[ir.Value]:
        values = [_typed(ir.Value(name=n), dtype, dims) for n, dtype, dims in outputs]
        self._nodes.append(ir.node(op, list(inputs), attributes, outputs=values, name=f"{self._scope}{name}"))
        return values


def _typed(value: ir.Value, dtype: ir.DataType, dims: Dims) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
    return value


def _dims(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [d if isinstance(d, int) else str(d.value) for d in value.shape]


def _width(value: ir.Value) -> int:
    """The last dim, which every activation here has as a number."""
    width = _dims(value)[-1]
    assert isinstance(width, int)
    return width
