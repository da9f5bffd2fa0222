"""Tiny ONNX graphs by hand, with weights in a real file: what the tests of the passes run on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match, verify
from datong.compiler.passes import bind_block_weights, bind_weights, infer_shapes
from datong.dtypes import BY_ONNX

F32, F16, BF16, I64, U8 = (ir.DataType[n] for n in ("FLOAT", "FLOAT16", "BFLOAT16", "INT64", "UINT8"))
WEIGHTS = "w.bin"


class Tiny:
    """Values and nodes in the order of the calls; `graph` ties them together."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(3)
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.bytes = bytearray(b"pad")  # weights need not be aligned

    # ---- values ---------------------------------------------------------------------------------------------------

    def input(self, name: str, dims: Sequence[int | str], dtype: ir.DataType = F32) -> ir.Value:
        """A graph input, shapes as the file says."""
        value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def act(self, width: int, name: str = "") -> ir.Value:
        """An activation [batch, seq, width]."""
        value = self.input(name or f"x{len(self.inputs)}", ["batch", "seq", width])
        value.meta["dims"] = ("batch", "seq", width)
        return value

    def ids(self, name: str = "input_ids") -> ir.Value:
        value = self.input(name, ["batch", "seq"], I64)
        value.meta["dims"] = ("batch", "seq")
        return value

    def past(self, layer: int, kind: str, heads: int, dim: int) -> ir.Value:
        value = self.input(f"past_key_values.{layer}.{kind}", ["batch", heads, "past", dim])
        value.meta["dims"] = ("batch", heads, "past", dim)
        return value

    def weight(
        self, name: str, shape: Sequence[int], dtype: ir.DataType = F32, stored: np.ndarray | None = None
    ) -> ir.Value:
        """An initializer in the weight file; random f32, f16 or bf16, or the bytes of `stored`."""
        kind = BY_ONNX[int(dtype)]
        if stored is None:
            stored = (self.rng.standard_normal(shape) / 8).astype(kind.numpy)
        tensor = ir.ExternalTensor(WEIGHTS, len(self.bytes), stored.nbytes, dtype, shape=ir.Shape(shape), name=name)
        self.bytes += stored.tobytes()
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def const(self, array: object, dtype: type = np.int64) -> ir.Value:
        """An inline initializer."""
        tensor = ir.Tensor(np.asarray(array, dtype=dtype), name=f"c{len(self.initializers)}")
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def node(
        self, op: str, *inputs: ir.Value | None, name: str = "", outputs: Sequence[str] = (), domain: str = "", **attrs
    ):
        """One node; its only output, or all of them when `outputs` names several."""
        name = name or f"{op}_{len(self.nodes)}"
        made = [ir.Value(name=n) for n in outputs or [f"{name}.out"]]
        self.nodes.append(ir.node(op, list(inputs), attrs, domain=domain, outputs=made, name=name))
        return made[0] if len(made) == 1 else made

    # ---- usual groups -----------------------------------------------------------------------------------------------

    def linear(self, x: ir.Value, weight: ir.Value, name: str = "linear") -> ir.Value:
        return self.node("MatMul", x, self.node("Transpose", weight, perm=[1, 0]), name=name)

    def reshape(self, x: ir.Value, *target: int) -> ir.Value:
        return self.node("Reshape", x, self.const(target))

    def table(self, half: int, scale: float = 1.0) -> tuple[ir.Value, ir.Value]:
        """cos, sin [batch, seq, half]."""
        have = [value for value in self.inputs if value.name == "position_ids"]
        positions = have[0] if have else self.ids("position_ids")
        column = self.node("Unsqueeze", self.node("Cast", positions, to=F32), self.const([-1]))
        freqs = self.const(1.0 / 10000 ** (np.arange(half) / half), np.float32)
        angle = self.node("Mul", column, freqs)
        tables = [self.node(op, angle) for op in ("Cos", "Sin")]
        if scale != 1.0:
            tables = [self.node("Mul", t, self.const(scale, np.float32)) for t in tables]
        return tables[0], tables[1]

    # ---- the end ----------------------------------------------------------------------------------------------------

    def graph(self, *outputs: ir.Value) -> ir.Graph:
        (self.root / WEIGHTS).write_bytes(bytes(self.bytes))
        return ir.Graph(
            self.inputs, outputs, nodes=self.nodes, initializers=self.initializers, opset_imports={"": 27}, name="tiny"
        )

    def model(self, *outputs: ir.Value) -> ir.Model:
        return ir.Model(self.graph(*outputs), ir_version=13)

    def run(self, outputs: Sequence[ir.Value], *passes) -> ir.Graph:
        """Bind weights, find shapes, then run the passes, each verified."""
        graph = self.graph(*outputs)
        for each in (bind_weights, bind_block_weights, infer_shapes, *passes):
            each.run(graph, self.root)
            verify.graph(graph, after=each.__name__)
        return graph

    @staticmethod
    def ops(graph: ir.Graph) -> list[str]:
        return [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph]

    @staticmethod
    def only(graph: ir.Graph, op: str) -> ir.Node:
        """The one `datong` node of this operator."""
        found = [node for node in graph if node.domain == match.DOMAIN and node.op_type == op]
        assert len(found) == 1, [node.op_type for node in graph]
        return found[0]

    @staticmethod
    def why(graph: ir.Graph, op: str) -> str:
        """The note on the one stock node of this operator, which no rule took."""
        found = [node for node in graph if match.is_op(node, op)]
        assert len(found) == 1, [node.op_type for node in graph]
        return str(found[0].meta.get("why"))

    @staticmethod
    def attrs(node: ir.Node) -> dict[str, object]:
        return {name: attr.value for name, attr in node.attributes.items()}


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)
