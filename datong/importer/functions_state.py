"""Functions of domain `datong` that keep a state per sequence, with bodies of stock ONNX.

    CausalConv(x, weight, bias, past) -> y, present                                              spec `causal_conv`
    GatedDelta(q, k, v, a, b, a_log, dt_bias, past) -> y, present                                spec `gated_delta`
    LinearAttention(q, k, v, slopes, past) -> y, present                                         spec `linear_attention`

Activations are `[batch, seq, n]`. States, as spec/program.py CacheSpec has them behind `batch`: CausalConv
`[batch, 1, C, K-1]`, the others `[batch, heads, key dim, value dim]`; zeros where nothing is past. The bodies of the
last two go through the tokens one by one, with Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from datong.importer.body import Attrs, Body, overload

CONV_INPUTS = ("x", "weight", "bias", "past")
DELTA_INPUTS = ("q", "k", "v", "a", "b", "a_log", "dt_bias", "past")
LINEAR_INPUTS = ("q", "k", "v", "slopes", "past")


def causal_conv(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of CausalConv. `channels` is C, which Conv wants to know as its count of groups."""
    b = Body(CONV_INPUTS)
    past, channels = b.inputs["past"], int(attributes["channels"])
    line = b("Concat", b("Squeeze", past, b.ints(1)), b("Transpose", b.inputs["x"], perm=[0, 2, 1]), axis=2)
    taps = b("Unsqueeze", b.inputs["weight"], b.ints(1))  # [C, 1, K]
    bias = b.inputs["bias"] if present[CONV_INPUTS.index("bias")] else None
    y = b("Transpose", b("Conv", line, taps, bias, group=channels), perm=[0, 2, 1])
    if attributes["kind"] == "silu":
        y = b("Mul", y, b("Sigmoid", y))
    size = b.size(line, 2)
    kept = b("Slice", line, b("Sub", size, b.size(past, 3)), size, b.ints(2))
    state = b("Unsqueeze", kept, b.ints(1))
    return b.function("CausalConv", overload(attributes, present), [y, state], attributes)


def gated_delta(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of GatedDelta."""
    b = Body(DELTA_INPUTS)
    i, k_heads, v_heads = b.inputs, int(attributes["num_k_heads"]), int(attributes["num_v_heads"])
    q, k = (_unit(b, i[name], k_heads, v_heads, float(attributes["eps"])) for name in ("q", "k"))
    q = b("Mul", q, b.real(float(attributes["scale"])))
    v = b("Reshape", i["v"], b.ints(0, 0, v_heads, -1))
    rate = b("Mul", b("Exp", i["a_log"]), b("Softplus", b("Add", i["a"], i["dt_bias"])))
    decay, beta = b("Exp", b("Neg", rate)), b("Sigmoid", i["b"])

    def step(s: Body, state: ir.Value, *now: ir.Value) -> tuple[ir.Value, ir.Value]:
        q, k, v, decay, beta = now
        row, column, last = s.ints(2), s.ints(3), s.ints(-1)
        faded = s("Mul", state, s("Unsqueeze", s("Unsqueeze", decay, last), last))
        read = s("MatMul", s("Unsqueeze", k, row), faded)  # [batch, Hv, 1, Dv]
        wrong = s("Sub", s("Unsqueeze", v, row), read)
        update = s("Mul", wrong, s("Unsqueeze", s("Unsqueeze", beta, last), last))
        after = s("Add", faded, s("MatMul", s("Unsqueeze", k, column), update))
        return after, s("Squeeze", s("MatMul", s("Unsqueeze", q, row), after), row)

    state, y = _scan(b, i["past"], (q, k, v, decay, beta), step)
    packed = b("Reshape", y, b.ints(0, 0, -1))
    return b.function("GatedDelta", overload(attributes, present), [packed, state], attributes)


def _unit(b: Body, x: ir.Value, heads: int, wanted: int, eps: float) -> ir.Value:
    """[batch, seq, heads * D] -> [batch, seq, wanted, D], each head divided by its length, then repeated."""
    grid = b("Reshape", x, b.ints(0, 0, heads, -1))
    square = b("ReduceSum", b("Mul", grid, grid), b.ints(-1), keepdims=1)
    unit: ir.Value = b("Div", grid, b("Sqrt", b("Add", square, b.real(eps))))
    if wanted == heads:
        return unit
    wide = b("Expand", b("Unsqueeze", unit, b.ints(3)), b.ints(1, 1, 1, wanted // heads, 1))
    repeated: ir.Value = b("Reshape", wide, b("Concat", b("Shape", x, end=2), b.ints(wanted, -1), axis=0))
    return repeated


def linear_attention(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of LinearAttention."""
    b = Body(LINEAR_INPUTS)
    heads = int(attributes["num_heads"])
    q, k, v = (b("Reshape", b.inputs[name], b.ints(0, 0, heads, -1)) for name in ("q", "k", "v"))
    decay = b("Reshape", b("Exp", b("Neg", b.inputs["slopes"])), b.ints(heads, 1, 1))

    def step(s: Body, state: ir.Value, *now: ir.Value) -> tuple[ir.Value, ir.Value]:
        q, k, v = now
        row, column = s.ints(2), s.ints(3)
        new = s("MatMul", s("Unsqueeze", k, column), s("Unsqueeze", v, row))
        after = s("Add", s("Mul", state, decay), new)
        return after, s("Squeeze", s("MatMul", s("Unsqueeze", q, row), after), row)

    state, y = _scan(b, b.inputs["past"], (q, k, v), step)
    scaled = b("Mul", b("Reshape", y, b.ints(0, 0, -1)), b.real(float(attributes["scale"])))
    return b.function("LinearAttention", overload(attributes, present), [scaled, state], attributes)


def _scan(
    b: Body, past: ir.Value, sequences: Sequence[ir.Value], step: Callable[..., tuple[ir.Value, ir.Value]]
) -> tuple[ir.Value, ir.Value]:
    """Walk along `seq`: (state, one token of each sequence) -> (state, y); the last state and all y."""
    inner = Body(("state", *(f"now_{n}" for n in range(len(sequences)))), prefix="step_")
    for value in inner.inputs.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
    after, y = step(inner, *inner.inputs.values())
    graph = ir.Graph(list(inner.inputs.values()), [after, y], nodes=inner.nodes, name="step")
    count = len(sequences)
    state, result = b(
        "Scan", past, *sequences, outputs=2, body=graph, num_scan_inputs=count, scan_input_axes=[1] * count,
        scan_output_axes=[1],
    )  # fmt: skip
    return state, result
