"""What the tests of the passes run on: tiny ONNX graphs by hand, with weights in a real file, and drafts by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import match, verify
from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.compiler.passes import bind_block_weights, bind_weights, infer_shapes
from datong.dtypes import BY_ONNX
from datong.spec.backend import No
from datong.spec.formats import BY_NAME
from datong.spec.program import TOKENS, CacheSpec, Node, Piece, Value

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
            stored = (self.rng.standard_normal(shape) / 3).astype(kind.numpy)
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

    def linear(self, x: ir.Value, weight: ir.Value, name: str = "") -> ir.Value:
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


class Sketch:
    """A draft by hand: `n` below is the width of a value."""

    def __init__(self) -> None:
        self.draft = Draft()
        self.draft.values["ids"] = Value("ids", "input", "i64", (TOKENS,))
        self.draft.values["positions"] = Value("positions", "input", "i64", (TOKENS,))

    def weight(self, name: str, *shape: int, fmt: str = "f32") -> str:
        row = BY_NAME[fmt]
        pieces = []
        for role in row.pieces:
            stored = row.piece_shape(role, *shape) if row.block else shape
            pieces.append(
                Piece(
                    role,
                    WEIGHTS,
                    0,
                    row.piece_dtype(role).nbytes(math.prod(stored)),
                    row.piece_dtype(role).name,
                    stored,
                )
            )
        self.draft.values[name] = Value(name, "weight", "f32", shape, fmt, tuple(pieces))
        return name

    def node(self, op: str, *inputs: str, out: str = "", width: int = 0, name: str = "", **attrs) -> str:
        """One node; its outputs are `out` (comma between several), all `[T, width]`."""
        name = name or f"{op}_{len(self.draft.nodes)}"
        outputs = tuple((out or f"{name}.out").split(","))
        for value in outputs:
            self.draft.values[value] = Value(value, "temp", "f32", (TOKENS, width))
        self.draft.nodes.append(Node(op, name, inputs, outputs, attrs))
        return outputs[0]

    # ---- usual nodes ------------------------------------------------------------------------------------------------

    def embed(self, width: int = 8) -> str:
        return self.node("embedding", "ids", self.weight("embed", 11, width), width=width)

    def linear(self, x: str, out: int, name: str = "", fmt: str = "f32", bias: bool = False) -> str:
        in_ = self.draft.values[x].shape[-1]
        name = name or f"linear_{len(self.draft.nodes)}"
        rest = (self.weight(f"{name}.b", out),) if bias else ()
        return self.node("linear", x, self.weight(f"{name}.w", out, in_, fmt=fmt), *rest, width=out, name=name)

    def attention(self, x: str, layer: int = 0, window: int = 0) -> str:
        """q, k and v are all `x`, one head."""
        width = int(self.draft.values[x].shape[-1])
        kind = "window" if window else "full"
        self.draft.caches[layer, kind] = CacheSpec(layer, kind, 1, width, width, window)
        attrs = {"layer": layer, "num_heads": 1, "num_kv_heads": 1, "scale": 1.0, "window": window, "softcap": 0.0}
        return self.node("attention", x, x, x, width=width, name=f"attention_{layer}", **attrs)

    def norm(self, x: str, size: int = 0, name: str = "") -> str:
        width = int(self.draft.values[x].shape[-1])
        name = name or f"norm_{len(self.draft.nodes)}"
        return self.node(
            "rms_norm", x, self.weight(f"{name}.w", size or width), width=width, name=name, eps=0.1, offset=0.0
        )

    def add(self, a: str, b: str, out: str = "") -> str:
        return self.node("add", a, b, width=int(self.draft.values[a].shape[-1]), out=out)

    def done(self, output: str) -> Draft:
        self.draft.output = output
        return self.draft

    @staticmethod
    def run(draft: Draft, *passes, backends=()) -> Draft:
        """Run back passes, each verified."""
        placer = Placer(backends or [ReferenceBackend.with_fusions()])
        verify.draft(draft, after="the test")
        for each in passes:
            each.run(draft, placer)
            verify.draft(draft, after=each.__name__)
        return draft

    @staticmethod
    def ops(draft: Draft) -> list[str]:
        return [node.op for node in draft.nodes]


@pytest.fixture
def sketch() -> Sketch:
    return Sketch()


class Picky(ReferenceBackend):
    """A reference backend under another name that says No where a test wants it."""

    def __init__(self, name: str, refuses, fusions=()) -> None:
        super().__init__(fusions)
        self.name, self.refuses = name, refuses

    def supports(self, node, values):
        reason = self.refuses(node, values)
        return No(reason) if reason else super().supports(node, values)


@pytest.fixture
def picky() -> type[Picky]:
    return Picky
