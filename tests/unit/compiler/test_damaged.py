"""Damaged graphs end in a DatongError, never in another exception: hundreds of small changes to a decoder."""

import numpy as np
import onnx_ir as ir
import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler.pipeline import compile_graph
from datong.errors import DatongError

REFERENCE = ReferenceBackend.with_fusions()
OPS = ["Add", "Mul", "MatMul", "Sigmoid", "Reshape", "Slice", "Transpose", "Gather", "Cast", "Softmax", "ReduceMean"]
OPS += ["RMSNormalization", "RotaryEmbedding", "Attention", "DequantizeLinear", "Identity", "Concat", "Nothing"]
ATTRS = [0, 1, -1, 7, -(2**40), 2**40, 0.0, -1.0, float("nan"), float("inf"), "text", [1, 0], [0.5], []]


def decoder(t) -> ir.Model:
    """A layer with norms, rope, slices and a block weight: something for each recogniser."""
    f32 = ir.DataType.FLOAT
    ids = t.input("input_ids", ["b", "s"], ir.DataType.INT64)
    t.input("position_ids", ["b", "s"], ir.DataType.INT64)
    x = t.node("Gather", t.weight("embed", [7, 32]), ids)
    h = t.node("RMSNormalization", x, t.weight("n1", [32]), epsilon=1e-5, axis=-1)
    grid = t.reshape(t.linear(h, t.weight("qkv", [48, 32])), 0, 0, 2, 24)
    q, k, v = (
        t.reshape(t.node("Slice", grid, t.const([a]), t.const([a + 8]), t.const([-1])), 0, 0, 16) for a in (0, 8, 16)
    )
    heads = t.node("RMSNormalization", t.reshape(q, 0, 0, 2, 8), t.weight("qn", [8]))
    table = t.table(4, 1.5)
    q, k = (t.node("RotaryEmbedding", y, *table, num_heads=2, interleaved=0) for y in (t.reshape(heads, 0, 0, -1), k))
    pasts = [t.input(f"past_key_values.0.{kind}", ["b", 2, "p", 8]) for kind in ("key", "value")]
    attrs = {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 1, "scale": 0.3, "softcap": 0.0, "left_window_size": 4}
    outputs = ["y", "present.0.key", "present.0.value"]
    y, *presents = t.node("Attention", q, k, v, None, *pasts, outputs=outputs, **attrs)
    x = t.node("Add", x, t.node("Add", t.linear(y, t.weight("o", [32, 16])), t.weight("b", [32])))
    codes = t.weight("w", [32, 1, 32], ir.DataType.INT8, np.zeros(1024, np.int8))
    scale = t.node("Cast", t.weight("w.scale", [32, 1, 1], ir.DataType.FLOAT16), to=f32)
    w = t.reshape(t.node("DequantizeLinear", codes, scale, axis=2, block_size=32), 32, 32)
    gate, up = t.linear(x, w), t.linear(x, t.weight("up", [32, 32]))
    x = t.node("Mul", t.node("Mul", gate, t.node("Sigmoid", gate)), up)
    logits = t.linear(x, t.weight("head", [7, 32]))
    logits.name = "logits"
    return t.model(logits, *presents)


def damage(model: ir.Model, rng: np.random.Generator) -> None:
    """One small change somewhere: operator, domain, an input, an attribute, a constant, a dim or a name."""
    graph = model.graph
    nodes = list(graph)
    node = nodes[rng.integers(len(nodes))]
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    match rng.integers(7):
        case 0:
            node.op_type = OPS[rng.integers(len(OPS))]
        case 1:
            node.domain = ["", "datong", "com.example"][rng.integers(3)]
            node.op_type = ["linear", "add", "attention", "rope_table", node.op_type][rng.integers(5)]
        case 2 if node.inputs:
            made = [v for n in nodes[: nodes.index(node)] for v in n.outputs]
            before = [*graph.inputs, *graph.initializers.values(), *made]
            pick = None if rng.random() < 0.2 else before[rng.integers(len(before))]
            node.replace_input_with(int(rng.integers(len(node.inputs))), pick)
        case 3 if node.attributes:
            name = list(node.attributes)[rng.integers(len(node.attributes))]
            node.attributes.pop(name)
            if rng.random() < 0.8:
                value = ATTRS[rng.integers(len(ATTRS))]
                kind = ir.AttributeType.INTS if value == [] else None
                node.attributes[name] = ir.convenience.convert_attribute(name, value, kind)
        case 4:
            consts = [v for v in graph.initializers.values() if not isinstance(v.const_value, ir.ExternalTensor)]
            value = consts[rng.integers(len(consts))]
            old = value.const_value.numpy()
            new = [old * -3, old[..., None], old.astype(np.float64), old.reshape(-1)[:0], old + 1][rng.integers(5)]
            value.const_value = ir.Tensor(new, name=value.name)
        case 5:
            value = values[rng.integers(len(values))]
            value.shape = None if rng.random() < 0.3 else ir.Shape([int(rng.integers(-1, 9)), "seq"][: rng.integers(3)])
        case _:
            values[rng.integers(len(values))].type = None if rng.random() < 0.5 else ir.TensorType(ir.DataType.STRING)


@pytest.mark.parametrize("seed", range(4))
def test_only_datong_errors(tiny, seed):
    rng = np.random.default_rng(seed)
    model = decoder(tiny)
    compile_graph(model, tiny.root, [REFERENCE], verify=True)
    refused = 0
    for _ in range(60):
        broken = model.clone()
        for _ in range(rng.integers(1, 4)):
            damage(broken, rng)
        try:
            compile_graph(broken, tiny.root, [REFERENCE])
        except DatongError:
            refused += 1
    assert refused > 30
