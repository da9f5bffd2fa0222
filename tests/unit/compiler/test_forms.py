"""Every form that the recognisers take, against ONNX Runtime: the program computes what the graph says.

The golden checkpoints (tests/e2e) hold the forms that our importer writes; here are those that others may write.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler.pipeline import compile_graph
from datong.spec import formats
from datong.spec.program import Program, Step

F32, BF16, F16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16
WIDTH, VOCAB, TOKENS = 32, 13, 11
BOUND = 2e-4  # logits are about 1; both sides compute in f32, in another order


def block_weight(t, name: str, fmt: formats.Format, out: int, in_: int) -> ir.Value:
    """A random matrix of a block format, in the chain of spec/formats.py."""

    def piece(role: str) -> ir.Value:
        dtype, shape = fmt.piece_dtype(role), fmt.piece_shape(role, out, in_)
        count = int(np.prod(shape))
        if dtype.name == "f16":
            data = (t.rng.uniform(0.5, 1.5, shape) / (400 if fmt.super_block else 20)).astype(np.float16)
        else:
            data = t.rng.integers(0, 256 if role == "codes" else 10, dtype.nbytes(count)).astype(np.uint8)
        return t.weight(name if role == "codes" else f"{name}.{role}", shape, ir.DataType(dtype.onnx), data)

    def level(role: str) -> ir.Value:
        if not fmt.super_block:
            return t.node("Cast", piece(role), to=F32)
        factors = [t.node("Cast", piece(r), to=F32) for r in (role, f"super_{role}")]  # the other way round
        return t.reshape(t.node("Mul", *factors), out, in_ // fmt.block, 1)

    w = t.node("DequantizeLinear", piece("codes"), level("scale"), axis=2, block_size=fmt.block)
    if fmt.has_min:
        w = t.node("Add", level("min"), w) if fmt.min_sign == 1 else t.node("Sub", w, level("min"))
    return t.reshape(w, out, in_)


class Layer:
    """One layer; what a test changes are its attributes and the two hooks."""

    def __init__(self, t, **change) -> None:
        self.t = t
        self.rope = {"num_heads": 2} | change.get("rope", {})
        self.half, self.scale = change.get("half", 4), change.get("scale", 1.0)
        self.attention = change.get("attention", {})
        self.heads, self.kv_heads, self.dim = 2, change.get("kv_heads", 2), 8
        self.norm, self.mix = change.get("norm", plain_norm), change.get("mix", glu_mlp)
        self.qkv, self.embed = change.get("qkv", separate), change.get("embed", f32_table)

    def model(self) -> ir.Model:
        t = self.t
        ids = t.input("input_ids", ["b", "s"], ir.DataType.INT64)
        t.input("position_ids", ["b", "s"], ir.DataType.INT64)
        x = self.embed(t, ids)
        q, k, v = self.qkv(self, self.norm(t, x, "n1"))
        table = t.table(self.half, self.scale)
        q = t.node("RotaryEmbedding", q, *table, **self.rope)
        k = t.node("RotaryEmbedding", k, *table, **{**self.rope, "num_heads": self.kv_heads})
        pasts = [t.input(f"past_key_values.0.{kind}", ["b", self.kv_heads, "p", self.dim]) for kind in ("key", "value")]
        attrs = {"q_num_heads": self.heads, "kv_num_heads": self.kv_heads, "is_causal": 1} | self.attention
        outputs = ["y", "present.0.key", "present.0.value"]
        y, *presents = t.node("Attention", q, k, v, None, *pasts, outputs=outputs, **attrs)
        x = t.node("Add", t.linear(y, t.weight("o", [WIDTH, 16]), "o"), x)
        x = t.node("Add", x, self.mix(t, self.norm(t, x, "n2")))
        logits = t.linear(self.norm(t, x, "n3"), t.weight("head", [VOCAB, WIDTH]), "head")
        logits.name = "logits"
        return t.model(logits, *presents)


def f32_table(t, ids):
    return t.node("Gather", t.weight("embed", [VOCAB, WIDTH]), ids)


def cast_rows(t, ids):
    return t.node("Cast", t.node("Gather", t.weight("embed", [VOCAB, WIDTH], BF16), ids), to=F32)


def plain_norm(t, x, name):
    return t.node("RMSNormalization", x, t.weight(name, [WIDTH]), epsilon=1e-3)


def one_plus_norm(t, x, name):
    scale = t.node("Add", t.const([1.0], np.float32), t.node("Cast", t.weight(name, [WIDTH], BF16), to=F32))
    return t.node("RMSNormalization", x, scale)


def separate(layer, x):
    t, kv = layer.t, layer.kv_heads * layer.dim
    bias = t.node("Add", t.weight("q_b", [16]), t.linear(x, t.weight("q", [16, WIDTH]), "q"))
    return bias, t.linear(x, t.weight("k", [kv, WIDTH]), "k"), t.linear(x, t.weight("v", [kv, WIDTH]), "v")


def head_norms(layer, x):
    t = layer.t
    q, k, v = separate(layer, x)

    def norm(y, name, heads):
        grid = t.node("Reshape", y, t.const([0, 0, heads, -1]))
        return t.node("Reshape", t.node("RMSNormalization", grid, t.weight(name, [8])), t.const([0, 0, heads * 8]))

    return norm(q, "q_norm", 2), norm(k, "k_norm", layer.kv_heads), v


def grouped(layer, x):
    """q, k, v of each key-value head side by side: [q q k v] with one key-value head, 8 channels each."""
    t = layer.t
    grid = t.reshape(t.linear(x, t.weight("wqkv", [32, WIDTH]), "wqkv"), 0, 0, 1, 32)
    bounds = [(0, 16), (16, 24), (-8, 2**62)]
    cuts = [t.node("Slice", grid, t.const([a]), t.const([b]), t.const([-1])) for a, b in bounds]
    return [t.reshape(c, 0, 0, -1) for c in cuts]


def grouped_norms(layer, x):
    """A norm per head right after the slice: heads, packed, heads again."""
    t = layer.t
    q, k, v = grouped(layer, x)
    grid = t.node("RMSNormalization", t.reshape(q, 0, 0, 2, 8), t.weight("q_norm", [8]))
    return t.reshape(grid, 0, 0, 16), k, v


def packed(layer, x):
    t = layer.t
    whole = t.linear(x, t.weight("wqkv", [48, WIDTH]), "wqkv")
    return [t.node("Slice", whole, t.const([a]), t.const([a + 16]), t.const([2]), t.const([1])) for a in (0, 16, 32)]


def glu_mlp(t, x):
    gate, up = (t.linear(x, t.weight(n, [24, WIDTH]), n) for n in ("gate", "up"))
    return t.linear(
        t.node("Mul", up, t.node("Mul", t.node("Sigmoid", gate), gate)), t.weight("down", [WIDTH, 24]), "down"
    )


def regrouped_glu(t, x):
    gate, up = (t.linear(x, t.weight(n, [24, WIDTH]), n) for n in ("gate", "up"))
    return t.linear(
        t.node("Mul", gate, t.node("Mul", t.node("Sigmoid", gate), up)), t.weight("down", [WIDTH, 24]), "down"
    )


def gated(t, x):
    """sigmoid(g) * u, no glu."""
    gate = t.node("Sigmoid", t.linear(x, t.weight("gate", [WIDTH, WIDTH]), "gate"))
    return t.node("Mul", gate, x)


def half_mlp(t, x):
    w = t.node("Cast", t.weight("w", [WIDTH, WIDTH], F16), to=F32)
    return t.linear(x, w, "w")


def blocks(name):
    def mix(t, x):
        fmt = formats.BY_NAME[name]
        wide = fmt.super_block or fmt.block
        y = t.linear(x, t.weight("wide", [wide, WIDTH]), "wide")
        return t.linear(y, block_weight(t, "w", fmt, WIDTH, wide), "block")

    return mix


FORMS = {
    "plain": {},
    "window": {"attention": {"left_window_size": 3}},
    "softcap": {"attention": {"softcap": 2.0, "scale": 0.7}},
    "one kv head": {"kv_heads": 1},
    "interleaved": {"rope": {"interleaved": 1}},
    "partial rope": {"half": 2, "rope": {"rotary_embedding_dim": 4}},
    "scaled table": {"scale": 1.3},
    "one plus norm": {"norm": one_plus_norm},
    "norm per head": {"qkv": head_norms},
    "grouped qkv": {"qkv": grouped, "kv_heads": 1},
    "grouped qkv with norms": {"qkv": grouped_norms, "kv_heads": 1},
    "packed qkv": {"qkv": packed},
    "regrouped glu": {"mix": regrouped_glu},
    "sigmoid gate": {"mix": gated},
    "f16 weight": {"mix": half_mlp},
    "bf16 rows": {"embed": cast_rows},
    **{f.name: {"mix": blocks(f.name)} for f in formats.ALL if f.block and not f.tile},
}


def oracle(model: ir.Model, root: Path, ids: np.ndarray) -> np.ndarray:
    """ids [T] -> logits [T, vocab] from ONNX Runtime, empty past."""
    ir.save(model, root / "graph.onnx")
    session = ort.InferenceSession(root / "graph.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None], "position_ids": np.arange(len(ids))[None]}
    have = {i.name: i.shape for i in session.get_inputs()}
    feeds |= {n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in have.items() if n.startswith("past")}
    return session.run(["logits"], feeds)[0][0]


def run(program: Program, backend: ReferenceBackend, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """The same from the program, one sequence, the prompt cut into steps."""
    executable = backend.compile(program.parts[0], program.package, {})
    cache = executable.create_cache(2)
    out, start = [], 0
    for size in cuts:
        span = np.arange(start, start + size)
        start += size
        step = Step(
            ids=ids[span], positions=span, query_starts=np.array([0, size]), context_lens=np.array([start]),
            block_tables=np.array([[1]], np.int32), rows=np.arange(size),
        )  # fmt: skip
        out.append(executable.run(step, cache, {})["logits"])
    return np.concatenate(out)


@pytest.mark.parametrize("form", FORMS)
def test_program_equals_graph(tiny, form):
    model = Layer(tiny, **FORMS[form]).model()
    ids = tiny.rng.integers(0, VOCAB, TOKENS)
    want = oracle(model, tiny.root, ids)
    assert 0.1 < np.abs(want).max() < 100
    for backend in (ReferenceBackend(), ReferenceBackend.with_fusions()):
        program = compile_graph(model, tiny.root, [backend], strict=True, verify=True)
        for cuts in ([TOKENS], [4, 1, 6]):
            got = run(program, backend, ids, cuts)
            assert np.abs(got - want).max() <= BOUND, (backend.fusions(), cuts)


def test_each_form_is_a_form_of_its_own(tiny, tmp_path):
    """What a form changes is seen in the logits: a recogniser that ignored it would be found out."""
    ids = np.arange(TOKENS)
    seen = {}
    for form, change in FORMS.items():
        root = tmp_path / form
        root.mkdir()
        seen[form] = oracle(Layer(type(tiny)(root), **change).model(), root, ids)
    for form in ("window", "softcap", "interleaved", "partial rope", "scaled table"):
        assert np.abs(seen[form] - seen["plain"]).max() > 100 * BOUND, form
