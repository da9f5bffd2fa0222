"""graph.onnx from a stranger: external data only where it may be, versions, and fuzzed bytes with a correct hash."""

import hashlib
import json
from collections.abc import Callable

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from datong.errors import ContainmentError, DatongError, IntegrityError, PackageError, VerifyError
from datong.package import graph
from datong.package.reader import Package, open_package
from datong.package.verify import verify

EMBED = "model.embed_tokens.weight"


def replace(package: Package, data: bytes) -> Package:
    """The package with another graph, and a manifest that vouches for it."""
    (package.root / "graph.onnx").write_bytes(data)
    manifest = json.loads((package.root / "datong.json").read_bytes())
    entry = next(f for f in manifest["files"] if f["path"] == "graph.onnx")
    entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (package.root / "datong.json").write_text(json.dumps(manifest))
    return open_package(package.root)


def changed(package: Package, change: Callable[[ModelProto], object]) -> Package:
    proto = ModelProto.FromString((package.root / "graph.onnx").read_bytes())
    change(proto)
    return replace(package, proto.SerializeToString())


def tensor(proto: ModelProto, name: str = EMBED) -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def set_external(key: str, value: str) -> Callable[[ModelProto], object]:
    def change(proto: ModelProto) -> None:
        next(e for e in tensor(proto).external_data if e.key == key).value = value

    return change


def set_dims(*dims: int) -> Callable[[ModelProto], object]:
    def change(proto: ModelProto) -> None:
        tensor(proto).dims[:] = dims

    return change


def external() -> TensorProto:
    outside = TensorProto(name="outside", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="config.json")
    return outside


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (set_external("location", "/etc/passwd"), ContainmentError, "plain path below the package directory"),
        (set_external("location", "../model.safetensors"), ContainmentError, f"initializer `{EMBED}`"),
        (set_external("location", "config.json"), IntegrityError, "which is no weight file of the package"),
        (set_external("offset", "-8"), PackageError, "`offset` of initializer .* should be a whole number, it is `-8`"),
        (set_external("offset", ""), PackageError, "`offset` of initializer"),
        (set_external("offset", "9" * 18), IntegrityError, "no tensor of that file holds them"),
        (set_external("offset", "0"), IntegrityError, "no tensor of that file holds them"),
        (set_external("length", "9" * 18), IntegrityError, "should take 32768 bytes, the graph gives it 9999"),
        (set_external("length", "٣٢"), PackageError, "should be a whole number"),
        (set_dims(64, 128), IntegrityError, r"f32 \[64, 128\], does not match tensor .* F32 \[128, 64\]"),
        (set_dims(-128, -64), IntegrityError, "should take"),
        (set_dims(2**62, 2**62), IntegrityError, "should take"),
        (lambda p: setattr(tensor(p), "data_type", 6), IntegrityError, r"i32 \[128, 64\], does not match"),
        (lambda p: setattr(tensor(p), "data_type", 99), PackageError, "has element type 99, which no package stores"),
        (
            lambda p: p.graph.node[7].input.__setitem__(0, "ghost"),
            PackageError,
            "reads `ghost`, which nothing before it",
        ),
        (lambda p: p.graph.node.append(p.graph.node[0]), PackageError, "which is defined already"),
        (lambda p: setattr(p.graph.output[0], "name", "ghost"), PackageError, "the graph should give `ghost`"),
        (lambda p: setattr(p, "ir_version", 99), PackageError, "IR version 3 to 14"),
        (lambda p: setattr(p.opset_import[0], "version", 99), PackageError, "opset 1 to 28"),
        (lambda p: p.ClearField("opset_import"), PackageError, "opset 1 to 28"),
        (
            lambda p: p.graph.node.append(helper.make_node("Constant", [], ["o"], value=external())),
            PackageError,
            "only initializers of the main graph may lie in files, `outside` is not one",
        ),
        (
            lambda p: p.functions.append(
                helper.make_function(
                    "d", "f", [], ["o"], [helper.make_node("Constant", [], ["o"], value=external())], []
                )
            ),
            PackageError,
            "only initializers of the main graph",
        ),
    ],
)
def test_what_a_graph_may_not_do(
    package: Package, change: Callable[[ModelProto], object], error: type[DatongError], text: str
) -> None:
    bad = changed(package, change)
    with pytest.raises(error, match=text):
        bad.graph()
    assert not verify(bad).ok


def test_names_that_are_no_text(package: Package) -> None:
    raw = (package.root / "graph.onnx").read_bytes()
    for name in (b"rope.cos", b"location", b"model.safetensors", b"kv_num_heads"):
        with pytest.raises(PackageError, match=r"names in the graph should be UTF-8 text"):
            replace(package, raw.replace(name, name[:-1] + b"\xff")).graph()


def test_graphs_nested_without_end(package: Package) -> None:
    def nest(proto: ModelProto) -> None:
        inner = helper.make_graph([], "g", [], [])
        for _ in range(20):
            inner = helper.make_graph([helper.make_node("If", ["input_ids"], ["o"], then_branch=inner)], "g", [], [])
        proto.graph.node.append(inner.node[0])

    with pytest.raises(PackageError, match=r"graphs are nested at most 16 deep"):
        changed(package, nest).graph()


def test_a_range_of_rows_of_a_stored_tensor_is_fine(package: Package) -> None:
    start = int(next(e.value for e in external_of(package) if e.key == "offset"))

    def rows(offset: int, count: int) -> Package:
        def change(proto: ModelProto) -> None:
            t = tensor(proto)
            t.dims[:] = (count, 64)
            values = {"offset": str(offset), "length": str(count * 256)}
            for e in t.external_data:
                e.value = values.get(e.key, e.value)

        return changed(package, change)

    assert rows(start + 256, 100).graph() is not None
    with pytest.raises(IntegrityError, match=r"does not match tensor"):
        rows(start + 128, 100).graph()


def external_of(package: Package) -> list[onnx.StringStringEntryProto]:
    return list(tensor(ModelProto.FromString((package.root / "graph.onnx").read_bytes())).external_data)


def test_the_full_check_speaks(package: Package) -> None:
    bad = changed(package, lambda p: setattr(p.graph.node[5], "op_type", "Nonsense"))
    proto = graph.parse((bad.root / "graph.onnx").read_bytes(), "t")
    with pytest.raises(VerifyError, match=r"onnx.checker refuses the graph: .*Nonsense"):
        graph.full_check(proto, "t")


def test_requirements_name_types_and_attribute_values(package: Package) -> None:
    uses = {u.op: u for u in package.manifest.operator_set.operators}
    assert uses["Attention"].count == 2
    assert uses["Attention"].attributes == {"is_causal": [1], "kv_num_heads": [2], "q_num_heads": [4], "scale": [0.25]}
    assert uses["RMSNormalization"].attributes["epsilon"] == [1e-05]
    assert uses["RotaryEmbedding"].attributes["num_heads"] == [2, 4]
    assert uses["Gather"].inputs == ["f32", "i64"] and uses["Cast"].outputs == ["f32"]
    assert uses["Attention"].inputs[3] == "", "there is no mask"
    assert package.manifest.parallel.heads == 4 and package.manifest.parallel.kv_heads == 2


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_graphs_are_read_or_refused(package: Package, data: st.DataObject) -> None:
    raw = bytearray((package.root / "graph.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        proto = graph.parse(bytes(raw), "t")
        graph.check_externals(graph.externals(proto, "t"), package.headers, "t")
        graph.to_model(proto, package.root, "t")
        graph.full_check(proto, "t")
        graph.requirements(proto)
    except DatongError as e:
        assert e.message
