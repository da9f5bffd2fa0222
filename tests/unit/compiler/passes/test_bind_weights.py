import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import bind_weights
from datong.errors import ContainmentError, IntegrityError, PackageError

F16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def test_f32_is_bound_where_it_lies(tiny):
    weight = tiny.weight("w", [4, 6])
    graph = tiny.graph(tiny.node("Transpose", weight, perm=[1, 0]))
    assert bind_weights.run(graph, tiny.root) == 1
    bound = match.bound(weight)
    assert (bound.name, bound.shape, bound.format, bound.dtype) == ("w", (4, 6), "f32", "f32")
    (piece,) = bound.pieces
    assert (piece.role, piece.file, piece.offset, piece.length, piece.shape) == ("codes", "w.bin", 3, 96, (4, 6))


@pytest.mark.parametrize(("dtype", "name"), [(F16, "f16"), (BF16, "bf16")])
def test_cast_of_a_half_weight_is_the_weight(tiny, dtype, name):
    weight = tiny.weight("w", [4, 6], dtype)
    cast = tiny.node("Cast", weight, to=ir.DataType.FLOAT)
    graph = tiny.graph(tiny.node("Transpose", cast, perm=[1, 0]))
    bind_weights.run(graph, tiny.root)
    assert tiny.ops(graph) == ["Transpose"]
    assert match.bound(graph.node(0).inputs[0]).format == name
    assert match.bound(weight) is None and match.stored(weight).format == name


def test_reads_no_bytes(tiny, monkeypatch):
    weight = tiny.weight("w", [4, 6])
    graph = tiny.graph(tiny.node("Transpose", weight, perm=[1, 0]))
    monkeypatch.setattr(ir.ExternalTensor, "numpy", lambda *_: pytest.fail("a weight was read"))
    bind_weights.run(graph, tiny.root)


def external(tiny, **change):
    fact = {"location": "w.bin", "offset": 0, "length": 96, "shape": [4, 6]} | change
    tensor = ir.ExternalTensor(
        fact["location"], fact["offset"], fact["length"], ir.DataType.FLOAT, shape=ir.Shape(fact["shape"]), name="w"
    )
    tiny.initializers.append(ir.Value(name="w", const_value=tensor))
    tiny.bytes += b"\0" * 96
    return tiny.graph(tiny.node("Identity", tiny.initializers[0]))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"offset": 4}, IntegrityError, "ends at 100"),
        ({"offset": -8}, IntegrityError, "at -8"),
        ({"offset": 1 << 62}, IntegrityError, "should end by byte 99"),
        ({"length": 95}, IntegrityError, "takes 96 bytes, the graph says 95"),
        ({"shape": [4, -6]}, IntegrityError, "positive dims"),
        ({"location": "../w.bin"}, ContainmentError, "`../w.bin`"),
        ({"location": "/etc/hostname"}, ContainmentError, "inside the package"),
        ({"location": "no.bin"}, PackageError, "`no.bin` cannot be read"),
    ],
)
def test_bad_places_are_refused(tiny, change, error, text):
    graph = external(tiny, **change)
    with pytest.raises(error) as caught:
        bind_weights.run(graph, tiny.root)
    assert text in str(caught.value)
