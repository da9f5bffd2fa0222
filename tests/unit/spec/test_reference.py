"""The definitions against ONNX's own reference: an oracle that shares no code with them."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from datong import dtypes
from datong.conformance.build import random_pieces
from datong.spec import formats, reference
from datong.spec.ops import OPS
from datong.spec.program import Step


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng().standard_normal(shape).astype(np.float32)


def onnx_op(name: str, inputs: dict[str, np.ndarray], outputs: int = 1, opset: int = 24, **attrs: object) -> list:
    """Run one stock ONNX node in onnx.reference."""
    node = helper.make_node(name, list(inputs), [f"out{i}" for i in range(outputs)], **attrs)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
        if n
    ]
    outs = [helper.make_tensor_value_info(f"out{i}", TensorProto.UNDEFINED, None) for i in range(outputs)]
    graph = helper.make_graph([node], "one", infos, outs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, {n: a for n, a in inputs.items() if n})


def close(actual: np.ndarray, expected: np.ndarray, atol: float = 2e-6) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def test_every_operator_has_a_definition() -> None:
    assert reference.FUNCTIONS.keys() == OPS.keys()


@pytest.mark.parametrize("n", [1, 63, 64])
def test_rms_norm(n: int) -> None:
    x, w = normal(3, n), 1 + normal(n)
    [expected] = onnx_op("RMSNormalization", {"x": x, "w": w}, epsilon=1e-5, axis=-1)
    close(reference.rms_norm(x, w, eps=1e-5), expected)


def test_rms_norm_per_head_is_a_norm_of_the_reshaped_input() -> None:
    x, w = normal(3, 4 * 16), 1 + normal(16)
    [expected] = onnx_op("RMSNormalization", {"x": x.reshape(3, 4, 16), "w": w}, epsilon=0.1, axis=-1)
    close(reference.rms_norm(x, w, eps=0.1), expected.reshape(3, 64))


def test_rms_norm_adds_the_offset_to_the_weight() -> None:
    x, w = normal(3, 8), normal(8)
    close(reference.rms_norm(x, w, eps=1e-5, offset=1.0), reference.rms_norm(x, w + 1, eps=1e-5))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [4, 12, 16])
def test_rope(interleaved: int, rotated: int) -> None:
    heads, dim, tokens = 3, 16, 5
    x = normal(tokens, heads * dim)
    positions, freq = np.arange(tokens) * 7, (10000.0 ** (-np.arange(rotated // 2) / 8)).astype(np.float32)
    cos, sin = reference.rope_table(positions, freq)
    inputs = {"x": x[None], "cos": cos[None], "sin": sin[None]}
    attrs = {"num_heads": heads, "interleaved": interleaved, "rotary_embedding_dim": rotated}
    [expected] = onnx_op("RotaryEmbedding", inputs, opset=23, **attrs)
    close(reference.rope(x, cos, sin, num_heads=heads, interleaved=interleaved), expected[0])


def test_rope_table_scales_cos_and_sin_of_the_f32_angle() -> None:
    positions, freq = np.array([0, 3, 131071]), np.array([1.0, 0.3], np.float32)
    angle = positions.astype(np.float32)[:, None] * freq
    cos, sin = reference.rope_table(positions, freq, scale=1.5)
    close(cos, 1.5 * np.cos(angle.astype(np.float64)))
    close(sin, 1.5 * np.sin(angle.astype(np.float64)))


def paged(lens: list[int], new: list[int], block_size: int) -> tuple[Step, int]:
    """A step of sequences whose blocks lie anywhere; entries beyond a sequence are -1."""
    needed = [-(-n // block_size) for n in lens]
    free = rng().permutation(sum(needed)).tolist()
    table = np.full((len(lens), max(needed)), -1, np.int32)
    for s, count in enumerate(needed):
        table[s, :count] = [free.pop() for _ in range(count)]
    total = sum(new)
    starts = np.cumsum([0, *new])
    step = Step(
        np.zeros(total, np.int64), np.zeros(total, np.int64), starts, np.array(lens), table, np.zeros(0, np.int64)
    )
    return step, sum(needed)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("dims", [(8, 8), (8, 5)])
def test_attention_of_a_batch_equals_dense_attention_per_sequence(
    heads: tuple[int, int], softcap: float, dims: tuple[int, int]
) -> None:
    (hq, hkv), (dk, dv), past, new = heads, dims, [0, 5, 9], [7, 1, 3]
    lens = [p + n for p, n in zip(past, new, strict=True)]
    q, k, v = (normal(sum(lens), h * d) for h, d in ((hq, dk), (hkv, dk), (hkv, dv)))
    whole = np.cumsum([0, *lens])
    step, blocks = paged(lens, new, 4)
    caches = {
        "key_cache": np.full((blocks, hkv, 4, dk), np.nan, np.float32),
        "value_cache": np.full((blocks, hkv, 4, dv), np.nan, np.float32),
    }
    attrs = {"num_heads": hq, "num_kv_heads": hkv, "scale": 0.3, "softcap": softcap}

    def part(a: np.ndarray, starts: list[int], counts: list[int]) -> np.ndarray:
        return np.concatenate([a[b + s : b + s + c] for b, s, c in zip(whole, starts, counts, strict=False)])

    first = Step(step.ids, step.positions, np.cumsum([0, *past]), np.array(past), step.block_tables, step.rows)
    reference.attention(*(part(a, [0, 0, 0], past) for a in (q, k, v)), step=first, **caches, **attrs)
    actual = reference.attention(*(part(a, past, new) for a in (q, k, v)), step=step, **caches, **attrs)
    for s, (begin, end) in enumerate(pairwise(whole)):
        inputs = {n: a[None, begin:end] for n, a in (("q", q), ("k", k), ("v", v))}
        onnx_attrs = {"q_num_heads": hq, "kv_num_heads": hkv, "is_causal": 1, "scale": 0.3, "softcap": softcap}
        [expected] = onnx_op("Attention", inputs, opset=24, **onnx_attrs)
        close(actual[step.query_starts[s] : step.query_starts[s + 1]], expected[0, past[s] :])


@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_attention_window(window: int) -> None:
    n, block_size = 11, 4
    q, k, v = normal(n, 2 * 8), normal(n, 2 * 8) * 2, normal(n, 2 * 8) * 3
    step, blocks = paged([n], [n], block_size)
    caches = {name: np.zeros((blocks, 2, block_size, 8), np.float32) for name in ("key_cache", "value_cache")}
    attrs = {"num_heads": 2, "num_kv_heads": 2, "scale": 0.35, "window": window}
    actual = reference.attention(q, k, v, step=step, **caches, **attrs)
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    mask = np.where((j <= i) & (i - j < window), 0.0, -np.inf).astype(np.float32)
    inputs = {"q": q[None], "k": k[None], "v": v[None], "mask": mask}
    [expected] = onnx_op("Attention", inputs, opset=24, q_num_heads=2, kv_num_heads=2, scale=0.35)
    close(actual, expected[0])


def test_attention_needs_no_block_that_its_window_has_left() -> None:
    n, window, size = 13, 4, 4
    q, k, v = normal(n, 8), normal(n, 8) * 2, normal(n, 8) * 3
    outputs = []
    for freed in (False, True):
        step, blocks = paged([n - 1], [n - 1], size)
        caches = {name: np.zeros((blocks + 1, 1, size, 8), np.float32) for name in ("key_cache", "value_cache")}
        attrs = {"num_heads": 1, "num_kv_heads": 1, "scale": 0.35, "window": window}
        reference.attention(q[:-1], k[:-1], v[:-1], step=step, **caches, **attrs)
        table = np.append(step.block_tables, [[blocks]], axis=1).astype(np.int32)
        if freed:
            caches["key_cache"][table[0, :2]] = np.nan
            table[0, :2] = -1
        last = Step(step.ids, step.positions, np.array([0, 1]), np.array([n]), table, step.rows)
        outputs.append(reference.attention(q[-1:], k[-1:], v[-1:], step=last, **caches, **attrs))
    np.testing.assert_array_equal(*outputs)


def test_attention_rounds_keys_and_values_to_the_cache() -> None:
    step, blocks = paged([1], [1], 4)
    caches = {name: np.zeros((blocks, 1, 4, 4), np.float16) for name in ("key_cache", "value_cache")}
    v = normal(1, 4)
    y = reference.attention(normal(1, 4), normal(1, 4), v, step=step, **caches, num_heads=1, num_kv_heads=1, scale=1.0)
    np.testing.assert_array_equal(y, v.astype(np.float16).astype(np.float32))


def test_elementwise_and_glu() -> None:
    a, b = normal(3, 65) * 5, normal(3, 65)[:, ::-1]
    [sigmoid] = onnx_op("Sigmoid", {"a": a})
    close(reference.sigmoid(a), sigmoid)
    close(reference.glu(a, b), a * sigmoid * b)
    np.testing.assert_array_equal(reference.add(a, b), onnx_op("Add", {"a": a, "b": b})[0])
    np.testing.assert_array_equal(reference.mul(a, b), onnx_op("Mul", {"a": a, "b": b})[0])


def test_sigmoid_and_glu_at_the_ends() -> None:
    x = np.array([[-np.inf, -1e4, -104.0, 0.0, 104.0, 1e4, np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(reference.sigmoid(x)[0, [0, 1, 3, 5, 6, 7]], [0, 0, 0.5, 1, 1, np.nan])
    np.testing.assert_array_equal(reference.glu(x[:, 1:6], np.ones((1, 5), np.float32))[0, [0, 2, 4]], [-0.0, 0, 1e4])


def test_moves() -> None:
    x = normal(7, 12)
    np.testing.assert_array_equal(reference.take_rows(x, np.array([6, 0, 0])), x[[6, 0, 0]])
    np.testing.assert_array_equal(reference.embedding(np.array([2, 2, 5]), x), x[[2, 2, 5]])
    # internlm2's wqkv: of each group of 6 channels, channels 4 and 5
    expected = x.reshape(7, 2, 6)[:, :, 4:6].reshape(7, 4)
    np.testing.assert_array_equal(reference.slice_(x, group=6, start=4, length=2), expected)


def test_linear_and_fused_forms_equal_their_expansion() -> None:
    x, w, b, r = normal(3, 65), normal(9, 65), normal(9), normal(3, 9)
    plain = (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float32)
    close(reference.linear(x, w), plain, 1e-5)
    close(reference.linear(x, w, b), plain + b, 1e-5)
    close(reference.linear_add(x, w, r, b), plain + b + r, 1e-5)
    close(reference.linear_glu(x, w, -w), plain * reference.sigmoid(plain) * -plain, 1e-4)
    one, two = reference.linear_multi(x, w, w[:2], None, b[:2], count=2)
    close(one, plain, 1e-5)
    close(two, plain[:, :2] + b[:2], 1e-5)
    total, normed = reference.add_rms_norm(r, r, b, eps=1e-5)
    close(total, 2 * r)
    close(normed, reference.rms_norm(2 * r, b, eps=1e-5))


@pytest.mark.parametrize("fmt", [f for f in formats.ALL if f.block and not f.tile], ids=lambda f: f.name)
def test_dequantise_equals_the_onnx_form(fmt: formats.Format) -> None:
    """The graph that formats.py promises, run by onnx.reference."""
    out, in_ = 3, 512
    pieces = random_pieces(fmt, (out, in_), 1.0, rng())
    blocks = in_ // fmt.block
    codes = pieces["codes"]
    if fmt.codes.bits == 4:
        flat = np.stack([codes & 0xF, codes >> 4], -1).reshape(out, blocks, fmt.block)
        codes = np.where(flat > 7, flat - 16.0, flat) if fmt.codes is dtypes.I4 else flat
    nodes, feeds = [], {"codes": codes.astype(np.int8 if fmt.codes.name.startswith("i") else np.uint8)}

    def factor(role: str) -> str:
        feeds[role] = pieces[role]
        nodes.append(helper.make_node("Cast", [role], [f"{role}_f"], to=TensorProto.FLOAT))
        if not fmt.super_block:
            return f"{role}_f"
        feeds[f"super_{role}"] = pieces[f"super_{role}"]
        nodes.append(helper.make_node("Cast", [f"super_{role}"], [f"super_{role}_f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"super_{role}_f", f"{role}_f"], [f"{role}_m"]))
        nodes.append(helper.make_node("Reshape", [f"{role}_m", "shape3"], [f"{role}_r"]))
        return f"{role}_r"

    feeds["shape3"], feeds["shape2"] = np.array([out, blocks, 1]), np.array([out, in_])
    scale = factor("scale")
    nodes.append(helper.make_node("DequantizeLinear", ["codes", scale], ["w"], axis=2, block_size=fmt.block))
    last = "w"
    if fmt.has_min:
        nodes.append(helper.make_node("Add" if fmt.min_sign > 0 else "Sub", ["w", factor("min")], ["w_min"]))
        last = "w_min"
    nodes.append(helper.make_node("Reshape", [last, "shape2"], ["y"]))
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    out_info = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [out, in_])]
    model = helper.make_model(
        helper.make_graph(nodes, "w", infos, out_info), opset_imports=[helper.make_opsetid("", 23)]
    )
    onnx.checker.check_model(model)
    [expected] = ReferenceEvaluator(model).run(None, feeds)
    actual = reference.dequantise(fmt, pieces)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(
        reference.dequantise(fmt, {role: p[[2, 0]] for role, p in pieces.items()}), expected[[2, 0]]
    )


def test_nibbles_are_low_first_and_two_s_complement() -> None:
    packed = np.array([0x21, 0xF8], np.uint8)
    np.testing.assert_array_equal(reference.unpack_nibbles(packed, signed=False), [1, 2, 8, 15])
    np.testing.assert_array_equal(reference.unpack_nibbles(packed, signed=True), [1, 2, -8, -1])


@pytest.mark.parametrize("fmt", [formats.PLAIN_F32, formats.PLAIN_F16, formats.PLAIN_BF16], ids=lambda f: f.name)
def test_dequantise_plain(fmt: formats.Format) -> None:
    stored = normal(5, 3).astype(fmt.codes.numpy)
    np.testing.assert_array_equal(reference.dequantise(fmt, {"codes": stored}), stored.astype(np.float32))
