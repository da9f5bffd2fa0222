"""The CPU backend beyond one operator at a time: each forced instruction set, threads, long contexts, whole chains."""

from collections.abc import Iterator

import numpy as np
import pytest

from datong.backends.registry import backend_for
from datong.conformance.build import PartBuilder
from datong.conformance.ops import Case, cases, run_case, run_cases
from datong.errors import Unsupported
from datong.spec.ops import OPS
from datong.spec.program import TOKENS, CacheSpec, Part, Step
from datong.spec.tolerance import compare

CPU = backend_for("cpu")
ISAS = ["ref", "avx2", "avx512", "neon", "neon_dotprod"]
BETTER = {
    "ref": ("avx2", "avx512", "neon"),
    "avx2": ("avx512",),
    "avx512": ("vnni", "avx512bf16"),
    "neon": ("dotprod",),
    "neon_dotprod": (),
}


def _has(isa: str) -> bool:
    return isa == "ref" or CPU.devices()[0].attributes.get(isa) == "1"


def _available(isa: str) -> str:
    if not _has(isa):
        pytest.skip(f"this processor has no {isa}")
    return isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", OPS)
def test_forced_instruction_set(isa: str, op: str) -> None:
    # a third of the cases each: tests/backend/test_ops.py runs all of them with the best instruction set
    chosen = cases(lambda case: case.op == op)[ISAS.index(_available(isa)) % 3 :: 3]
    results = run_cases(CPU, {"isa": isa, "threads": "2"}, chosen)
    assert not [f"{r.case}: {r.reason}" for r in results if r.state != "passed"]
    assert not [r.implementation for r in results if any(name in r.implementation for name in BETTER[isa])]


@pytest.mark.parametrize("isa", ["ref", "avx512" if _has("avx512") else "avx2" if _has("avx2") else "neon"])
@pytest.mark.parametrize("cache_dtype", ["f16", "bf16"])
@pytest.mark.parametrize("op", ["attention", "latent_attention", "sparse_attention"])
def test_caches_of_16_bits(op: str, cache_dtype: str, isa: str) -> None:
    results = run_cases(CPU, {"isa": isa, "cache_dtype": cache_dtype}, cases(lambda case: case.op == op)[::3])
    assert not [f"{r.case}: {r.reason}" for r in results if r.state != "passed"]


def test_instruction_set_that_the_processor_lacks() -> None:
    isa = next(isa for isa in ISAS if not _has(isa))  # no processor has both AVX2 and NEON
    with PartBuilder(1) as b, pytest.raises(Unsupported, match=f"isa `{isa}` was asked for"):
        x = b.input("x", (TOKENS, 4))
        part = b.part([b.node("add", [x, x], [("y", (TOKENS, 4))])])
        CPU.compile(part, b.package, {"isa": isa})


BF16 = cases(lambda case: case.params.get("format") == "bf16" and case.op.startswith("linear"))


@pytest.mark.skipif(not _has("avx512_bf16"), reason="this processor has no avx512_bf16")
@pytest.mark.parametrize("case", BF16, ids=str)
def test_activations_in_bf16(case: Case) -> None:
    result = run_case(CPU, case, {"activations": "bf16", "threads": "2"})
    assert result.state == "passed", result.reason
    assert result.implementation == f"{case.op}_bf16_avx512bf16"


def test_activations_in_bf16_are_not_the_default() -> None:
    assert len(BF16) > 20
    assert not [r for r in run_cases(CPU, {}, BF16[::5]) if "avx512bf16" in r.implementation]


@pytest.mark.parametrize(
    ("fmt", "isa", "message"),
    [
        ("bf16", "avx2", "activations=bf16 needs a processor with AVX512_BF16, and no isa that leaves it out"),
        ("q4_1", "ref", "activations=bf16 is for weights of format bf16, these are q4_1"),
        ("f32", "ref", "activations=bf16 is for weights of format bf16, these are f32"),
    ],
)
def test_activations_in_bf16_or_a_sentence(fmt: str, isa: str, message: str) -> None:
    with PartBuilder(1) as b, pytest.raises(Unsupported, match=message):
        x = b.input("x", (TOKENS, 64))
        part = b.part([b.node("linear", [x, b.weight("w", fmt, (8, 64))], [("y", (TOKENS, 8))])])
        CPU.compile(part, b.package, {"activations": "bf16", "isa": _available(isa)})


# 3 query heads to 1 K/V head: fewer items than threads, so long contexts are cut; 16 to 1: two tiles of rows per token
@pytest.mark.parametrize("threads", ["1", "3", "8"])
@pytest.mark.parametrize(
    ("sequences", "heads", "window"),
    [
        ([[800, 1]], [3, 1], 0),
        ([[800, 1]], [2, 1], 600),
        ([[300, 1], [600, 1]], [2, 1], 0),
        ([[600, 2], [0, 3]], [2, 1], 0),
        ([[70, 90]], [4, 2], 0),
        ([[5, 1]] * 20, [9, 3], 0),
        ([[70, 1], [33, 2]], [16, 1], 0),
    ],
)
def test_attention_is_the_same_however_it_is_cut(
    threads: str, sequences: list[list[int]], heads: list[int], window: int
) -> None:
    params = {"sequences": sequences, "heads": heads, "dims": [8, 8], "window": window, "softcap": 0.0}
    result = run_case(CPU, Case("attention", params), {"threads": threads})
    assert result.state == "passed", result.reason


@pytest.fixture
def layer() -> Iterator[tuple[PartBuilder, Part]]:
    """One decoder layer, built of core operators, whose temps share memory where their lives allow it."""
    with PartBuilder(3) as b:
        wide = (TOKENS, 64)
        ids, positions = b.input("ids", (TOKENS,), "i64"), b.input("positions", (TOKENS,), "i64")
        x = b.node("embedding", [ids, b.weight("emb", "q8_0", (50, 64))], [("x", wide)])
        freq = (10000.0 ** (-np.arange(8) / 8)).astype(np.float32)
        b.node(
            "rope_table",
            [positions, b.const("freq", freq)],
            [("cos", (TOKENS, 8)), ("sin", (TOKENS, 8))],
            {"scale": 1.0},
        )
        h = b.node("rms_norm", [x, b.weight("n1", "f32", (64,))], [("h", wide)], {"eps": 1e-5, "offset": 0.0})
        weights = [b.weight(name, "q4_1", (n, 64), 0.125) for name, n in (("wq", 64), ("wk", 32), ("wv", 32))]
        outputs = [("q", wide), ("k", (TOKENS, 32)), ("v", (TOKENS, 32))]
        b.node("linear_multi", [h, *weights, "", "", ""], outputs, {"count": 3})
        for name, heads in (("q", 4), ("k", 2)):
            shape = (TOKENS, 16 * heads)
            attrs = {"num_heads": heads, "interleaved": 0}
            b.node("rope", [name, "cos", "sin"], [(f"{name}r", shape)], attrs)
        attrs = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "scale": 0.25, "window": 0, "softcap": 0.0}
        b.node("attention", ["qr", "kr", "v"], [("a", wide)], attrs)
        b.caches.append(CacheSpec(0, "full", 2, 16, 16))
        r = b.node("linear_add", ["a", b.weight("wo", "q4_1", (64, 64), 0.125), x], [("r", wide)])
        h2 = b.node("rms_norm", [r, b.weight("n2", "f32", (64,))], [("h2", wide)], {"eps": 1e-5, "offset": 0.0})
        gate, up = (b.weight(name, "q4_1", (96, 64), 0.125) for name in ("gate", "up"))
        g = b.node("linear_glu", [h2, gate, up], [("g", (TOKENS, 96))], {"kind": "silu"})
        y = b.node("linear_add", [g, b.weight("down", "q4_1", (64, 96), 0.1), r], [("y", wide)])
        yield b, b.part([y])


def _step(new: list[int], lens: list[int], tables: list[list[int]], ids: np.ndarray) -> Step:
    width = max(map(len, tables))
    return Step(
        ids=ids,
        positions=np.concatenate([np.arange(n - k, n) for k, n in zip(new, lens, strict=True)]).astype(np.int64),
        query_starts=np.cumsum([0, *new]).astype(np.int64),
        context_lens=np.array(lens, np.int64),
        block_tables=np.array([t + [-1] * (width - len(t)) for t in tables], np.int32),
        rows=np.zeros(0, np.int64),
    )


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_layer_at_once_in_chunks_and_batched(layer: tuple[PartBuilder, Part], threads: str) -> None:
    b, part = layer
    program = CPU.compile(part, b.package, {"threads": threads, "cache_dtype": "f32"})
    ids = np.random.default_rng(4).integers(0, 50, 75)
    blocks = [[3, 0, 4]]
    whole = program.run(_step([75], [75], blocks, ids), program.create_cache(6), {})["y"].copy()
    assert np.isfinite(whole).all()
    cache, parts, done = program.create_cache(6), [], 0
    for n in (1, 31, 2, 40, 1):
        done += n
        step = _step([n], [done], blocks, ids[done - n : done])
        parts.append(program.run(step, cache, {})["y"].copy())
    # not equal bits: sums are cut differently; and int8 activations may round to the neighbour
    assert compare(np.concatenate(parts), whole, "linear", "q4_1")
    assert np.abs(np.concatenate(parts) - whole).max() < 0.02 * np.abs(whole).max()
    cache = program.create_cache(9)
    tables = [[3, 0, 4], [1, 2], [8]]
    batch = np.concatenate([ids, ids[:40], ids[:5]])
    together = program.run(_step([75, 40, 5], [75, 40, 5], tables, batch), cache, {})["y"]
    assert compare(together[75:115].copy(), whole[:40].copy(), "linear", "q4_1")
    assert compare(together[115:].copy(), whole[:5].copy(), "linear", "q4_1")


def test_layer_agrees_with_the_reference(layer: tuple[PartBuilder, Part]) -> None:
    from datong.backends.reference import ReferenceBackend

    b, part = layer
    ids = np.random.default_rng(5).integers(0, 50, 33)
    results = []
    for backend in (CPU, ReferenceBackend.with_fusions()):
        program = backend.compile(part, b.package, {"cache_dtype": "f32"})
        size = program.create_cache(1).layout.block_size
        blocks = [list(range(-(-33 // size)))]
        results.append(program.run(_step([33], [33], blocks, ids), program.create_cache(5), {})["y"].copy())
    error = ((results[0] - results[1]) ** 2).sum() / (results[1] ** 2).sum()
    assert error < 1e-3  # six products with int8 activations, each 5e-4 at most


def test_same_bits_each_time(layer: tuple[PartBuilder, Part]) -> None:
    b, part = layer
    program = CPU.compile(part, b.package, {"threads": "2"})
    ids = np.arange(40, dtype=np.int64)
    step = _step([40], [40], [[0, 1]], ids)
    first = program.run(step, program.create_cache(2), {})["y"].copy()
    for _ in range(5):
        assert np.array_equal(program.run(step, program.create_cache(2), {})["y"], first)
