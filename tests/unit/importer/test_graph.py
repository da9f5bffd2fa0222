"""Block formats in the graph: stock ONNX nodes give the values that spec/formats.py states, in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from datong.importer.graph import F32, I64, GraphBuilder
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec import formats
from datong.spec.formats import Format

OUT, IN = 6, 512


def random_pieces(form: Format, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values per piece, in the logical shapes; 4-bit ones are not packed yet."""
    pieces = {}
    for piece in form.pieces:
        dtype, shape = form.piece_dtype(piece), form.piece_shape(piece, OUT, IN)
        if dtype.name == "f8e8m0":
            pieces[piece] = np.exp2(rng.integers(-8, 5, shape)).astype(dtype.numpy)
        elif dtype.name in ("f16", "bf16", "f32", "f8e4m3"):
            pieces[piece] = rng.normal(0, 0.1, shape).astype(dtype.numpy)
        else:
            low = -(1 << dtype.bits - 1) if dtype.name.startswith("i") else 0
            pieces[piece] = rng.integers(low, low + (1 << dtype.bits), shape)
    return pieces


def defined_values(form: Format, pieces: dict[str, np.ndarray]) -> np.ndarray:
    """[OUT, IN] f64: the formula of spec/formats.py, written out."""
    if not form.block:
        return pieces["codes"].astype(np.float64)
    p = {name: array.astype(np.float64) for name, array in pieces.items()}
    if form.tile:
        e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
        values = e2m1[pieces["codes"]] if form.table else p["codes"]
        scale = p["scale"] * p.get("factor", 1.0) if form.factor >= 0 else p["scale"] / p["factor"]
        return np.asarray(values * np.kron(scale, np.ones((form.tile, form.block)))[:OUT, :IN])

    def level(name: str) -> np.ndarray:
        return (p[name] * p.get(f"super_{name}", 1.0)).reshape(OUT, IN // form.block, 1)

    w = level("scale") * p["codes"]
    if form.has_min:
        w = w + form.min_sign * level("min")
    return np.asarray(w.reshape(OUT, IN))


def packed(array: np.ndarray, form: Format, piece: str) -> bytes:
    dtype = form.piece_dtype(piece)
    if dtype.bits == 4:
        flat = array.reshape(-1).astype(np.uint8) & 15
        return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
    return array.astype(dtype.numpy).tobytes()


def write_weight(path: Path, name: str, form: Format, pieces: dict[str, np.ndarray]) -> Weight:
    """Append the pieces to `path` with an odd byte before each, so that a wrong offset shows."""
    stored = {}
    with path.open("ab") as file:
        for piece, array in pieces.items():
            file.write(b"\x55")
            raw = packed(array, form, piece)
            full = name if piece == "codes" else f"{name}.{piece}"
            stored[piece] = StoredTensor(full, form.piece_dtype(piece), array.shape, path.name, file.tell(), len(raw))
            file.write(raw)
    return Weight(name, form, (OUT, IN), stored)


@pytest.mark.parametrize("form", formats.ALL, ids=lambda f: f.name)
def test_linear_and_embedding_over_every_format(form: Format, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pieces = random_pieces(form, rng)
    weight = write_weight(tmp_path / "model.safetensors", "w.weight", form, pieces)
    b = GraphBuilder("test", WeightMap({"w.weight": weight}))
    x = b.input("x", F32, ("batch", "seq", IN))
    ids = b.input("ids", I64, ("batch", "seq"))
    b.output(b.linear(x, "w.weight", OUT, "linear"), "y")
    b.output(b.embedding(ids, "w.weight", OUT, IN, "embed"), "rows")
    ir.save(b.finish(), tmp_path / "graph.onnx")
    onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))
    inputs, chosen = rng.normal(size=(2, 3, IN)).astype(np.float32), np.array([[5, 0, 3]])
    y, rows = session.run(None, {"x": inputs, "ids": chosen})
    w = defined_values(form, pieces)
    np.testing.assert_allclose(rows, w[chosen], rtol=1e-6, atol=1e-5 * np.abs(w).max())
    np.testing.assert_allclose(y, inputs @ w.T, rtol=0, atol=1e-5 * np.abs(inputs @ w.T).max())


def test_a_weight_used_twice_is_one_initializer_and_one_cast(tmp_path: Path) -> None:
    weight = write_weight(tmp_path / "m", "w", formats.PLAIN_BF16, {"codes": np.ones((OUT, IN))})
    b = GraphBuilder("test", WeightMap({"w": weight}))
    ids = b.input("ids", I64, ("batch", "seq"))
    b.output(b.linear(b.embedding(ids, "w", OUT, IN, "embed"), "w", OUT, "head"), "y")
    graph = b.finish().graph
    assert list(graph.initializers) == ["w"]
    assert [n.op_type for n in graph] == ["Cast", "Gather", "Transpose", "MatMul"]


def test_every_value_is_typed_and_every_node_named() -> None:
    b = GraphBuilder("test", WeightMap({}))
    x = b.input("x", F32, ("batch", "seq", 8))
    with b.scope("layers.0"), b.scope("attn"):
        q, k = b.slices(x, 4, [1, 3], ["q", "k"])
        y = b.attention(k, q, q, 2, 2, 5, "attention")
    b.output(y, "y")
    model = b.finish()
    names = [n.name for n in model.graph]
    assert len(set(names)) == len(names) and "layers.0.attn.attention" in names
    for node in model.graph:
        for value in node.outputs:
            assert value.dtype is not None and value.shape is not None and value.name
    assert [v.name for v in model.graph.inputs] == ["x", "past_key_values.0.key", "past_key_values.0.value"]
    assert [v.name for v in model.graph.outputs] == ["y", "present.0.key", "present.0.value"]
    attention = next(n for n in model.graph if n.op_type == "Attention")
    assert attention.attributes["left_window_size"].as_int() == 4
    assert b.caches[0].kind == "window" and b.caches[0].window == 5
