"""Bodies of the functions that ONNX lacks, run by ONNX Runtime, against the definitions and against transformers."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from datong.importer import functions
from datong.spec import reference
from datong.spec.program import Step

RNG = np.random.default_rng(5)


def array(*shape, size=1.0):
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def run(function, names, feeds, attributes, outputs):
    """Call a function in a model of its own."""
    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(feeds[n].shape)) if n in feeds
              else None for n in names]  # fmt: skip
    call = ir.node(
        function.name, inputs, dict(attributes), domain="datong", overload=function.overload, num_outputs=outputs
    )
    for i, value in enumerate(call.outputs):
        value.name, value.type = f"out{i}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * (4 if i else 3))
    graph = ir.Graph(
        [v for v in inputs if v is not None], call.outputs, nodes=[call], opset_imports={"": 27, "datong": 1}, name="g"
    )
    model = ir.to_proto(ir.Model(graph, ir_version=13, functions=[function]))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


BASE = {
    "top_k": 2, "score": "softmax", "renorm": 1, "scale": 1.0, "groups": 1, "top_groups": 1, "order": "split",
    "kind": "silu", "limit": 0.0, "alpha": 0.0,
}  # fmt: skip
ROUTERS = [
    {}, {"renorm": 0, "scale": 2.5}, {"score": "sigmoid", "top_k": 3}, {"score": "sigmoid", "renorm": 0, "top_k": 1},
    {"score": "sigmoid", "groups": 4, "top_groups": 2, "scale": 2.5}, {"groups": 2, "top_k": 3},
]  # fmt: skip
KINDS = [{}, {"kind": "gelu_tanh"}, {"kind": "silu_clamp", "limit": 0.5}, {"kind": "oai", "limit": 0.7, "alpha": 1.702}]


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_moe_routers(router, select):
    attributes = BASE | router
    feeds = {"x": array(2, 5, 12), "logits": array(2, 5, 8, size=2), "gate": array(8, 6, 12), "up": array(8, 6, 12),
             "down": array(8, 12, 6)}  # fmt: skip
    if select:
        feeds["select_bias"] = array(8)
    check_moe(feeds, attributes)


@pytest.mark.parametrize(
    "order, kind, biases", list(itertools.product(["split", "halves", "pairs"], KINDS, [False, True]))
)
def test_moe_experts(order, kind, biases):
    attributes = BASE | kind | {"order": order}
    both = 7 if order == "split" else 14
    feeds = {"x": array(1, 3, 10), "logits": array(1, 3, 5), "gate": array(5, both, 10), "down": array(5, 10, 7)}
    if order == "split":
        feeds["up"] = array(5, 7, 10)
    if biases:
        feeds |= {"gate_bias": array(5, both), "down_bias": array(5, 10)}
        feeds |= {"up_bias": array(5, 7)} if order == "split" else {}
    check_moe(feeds, attributes)


def check_moe(feeds, attributes):
    present = [name in feeds for name in functions.MOE_INPUTS]
    function = functions.moe(attributes, present)
    [got] = run(function, functions.MOE_INPUTS, feeds, attributes, 1)
    x, logits, *rest = (feeds.get(name) for name in functions.MOE_INPUTS)
    expected = reference.moe(x.reshape(-1, x.shape[2]), logits.reshape(-1, logits.shape[2]), *rest, **attributes)
    assert got.shape == x.shape
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=2e-5, rtol=1e-4)


def step(past, new):
    tables = np.arange(4, dtype=np.int32)[None]
    ids = np.zeros(new, np.int64)
    return Step(ids, ids, np.array([0, new]), np.array([past + new]), tables, ids[:0])


@pytest.mark.parametrize("bias", ["none", "alibi", "sqrt_alibi"])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window, softcap, past", [(0, 0.0, 0), (3, 0.0, 5), (0, 2.0, 4)])
def test_attention(bias, sinks, window, softcap, past):
    heads, kv_heads, dim, value_dim, new = 6, 2, 4, 5, 7
    attributes = {"num_heads": heads, "num_kv_heads": kv_heads, "scale": 0.5, "window": window, "softcap": softcap,
                  "bias": bias}  # fmt: skip
    widths = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * value_dim}
    feeds = {**{name: array(1, new, width) for name, width in widths.items()},
             "past_key": array(1, kv_heads, past, dim), "past_value": array(1, kv_heads, past, value_dim)}  # fmt: skip
    feeds |= {"sinks": array(heads)} if sinks else {}
    feeds |= {"slopes": np.abs(array(heads))} if bias != "none" else {}
    function = functions.attention(attributes, [name in feeds for name in functions.ATTENTION_INPUTS])
    y, keys, values = run(function, functions.ATTENTION_INPUTS, feeds, attributes, 3)
    caches = [np.zeros((4, kv_heads, 4, d), np.float32) for d in (dim, value_dim)]
    for cache, name in zip(caches, ("past_key", "past_value"), strict=True):
        for place in range(past):
            cache[place // 4, :, place % 4] = feeds[name][0, :, place]
    expected = reference.attention(
        *(feeds[name][0] for name in "qkv"), feeds.get("sinks"), feeds.get("slopes"), step=step(past, new),
        key_cache=caches[0], value_cache=caches[1], **attributes,
    )  # fmt: skip
    np.testing.assert_allclose(y[0], expected, atol=2e-5)
    assert keys.shape == (1, kv_heads, past + new, dim) and values.shape[3] == value_dim
