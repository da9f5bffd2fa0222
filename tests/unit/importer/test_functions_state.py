"""Bodies of the functions with a state, run by ONNX Runtime in two pieces, against the definitions."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from datong.importer import functions
from datong.spec.program import Step
from datong.spec.reference import evaluate

RNG = np.random.default_rng(5)
BATCH, SEQ = 2, 7


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def session(name: str, feeds: dict[str, np.ndarray], attributes: dict[str, object]) -> onnxruntime.InferenceSession:
    known = functions.KNOWN[name]
    function = known.body(attributes, [n in feeds for n in known.inputs])
    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT),
                       shape=ir.Shape([*feeds[n].shape[:1], None, *feeds[n].shape[2:]] if feeds[n].ndim == 3
                                      else feeds[n].shape)) if n in feeds else None
              for n in known.inputs]  # fmt: skip
    call = ir.node(name, inputs, attributes, domain="datong", overload=function.overload, num_outputs=2)
    for value, rank in zip(call.outputs, (3, 4), strict=True):
        value.name, value.type, value.shape = f"out{rank}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * rank)
    graph = ir.Graph([v for v in inputs if v is not None], call.outputs, nodes=[call],
                     opset_imports={"": 27, "datong": 1}, name="g")  # fmt: skip
    model = ir.to_proto(ir.Model(graph, ir_version=13, functions=[function]))
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def check(name: str, op: str, feeds: dict[str, np.ndarray], attributes: dict[str, object], state: np.ndarray) -> None:
    """`feeds` without the state; activations are [BATCH, SEQ, n]."""
    run = session(name, {**feeds, "past": state}, attributes)
    parts, past = [], np.zeros_like(state)
    for rows in (slice(0, 4), slice(4, SEQ)):
        now = {n: a[:, rows] if a.ndim == 3 else a for n, a in feeds.items()}
        y, past = run.run(None, {**now, "past": past})
        parts.append(y)
    wanted_state = np.full_like(state, 9.0)
    flat = [feeds[n].reshape(BATCH * SEQ, -1) if n in feeds and feeds[n].ndim == 3 else feeds.get(n)
            for n in functions.KNOWN[name].inputs[:-1]]  # fmt: skip
    zeros, lens = np.zeros(BATCH * SEQ, np.int64), np.full(BATCH, SEQ)
    step = Step(zeros, zeros, np.arange(BATCH + 1) * SEQ, lens, np.zeros((BATCH, 0), np.int32), zeros[:0])
    spec = {k: v for k, v in attributes.items() if k != "channels"}
    [wanted] = evaluate(op, flat, {**spec, "step": step, "state": wanted_state})
    np.testing.assert_allclose(np.concatenate(parts, axis=1).reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(past, wanted_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "silu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("taps", [2, 4, 6])
def test_causal_conv(kind: str, bias: bool, taps: int) -> None:
    feeds = {"x": array(BATCH, SEQ, 5), "weight": array(5, taps)} | ({"bias": array(5)} if bias else {})
    check("CausalConv", "causal_conv", feeds, {"kind": kind, "channels": 5}, array(BATCH, 1, 5, taps - 1))


@pytest.mark.parametrize("heads", [(2, 4), (3, 3)])
def test_gated_delta(heads: tuple[int, int]) -> None:
    k, v = heads
    feeds = {"q": array(BATCH, SEQ, k * 8), "k": array(BATCH, SEQ, k * 8), "v": array(BATCH, SEQ, v * 5),
             "a": array(BATCH, SEQ, v), "b": array(BATCH, SEQ, v), "a_log": array(v), "dt_bias": array(v)}  # fmt: skip
    attributes = {"num_k_heads": k, "num_v_heads": v, "scale": 0.3, "eps": 0.01}
    check("GatedDelta", "gated_delta", feeds, attributes, array(BATCH, v, 8, 5))


@pytest.mark.parametrize("heads", [1, 4])
def test_linear_attention(heads: int) -> None:
    feeds = {"q": array(BATCH, SEQ, heads * 8), "k": array(BATCH, SEQ, heads * 8), "v": array(BATCH, SEQ, heads * 5)}
    feeds["slopes"] = np.abs(array(heads))
    check("LinearAttention", "linear_attention", feeds, {"num_heads": heads, "scale": 0.5}, array(BATCH, heads, 8, 5))
