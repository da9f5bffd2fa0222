from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datong.backends.reference import ReferenceBackend, create
from datong.conformance.build import FILE, PartBuilder
from datong.errors import DeviceError, DtypeError, ShapeError, Unsupported
from datong.spec.backend import Backend, Placed
from datong.spec.ops import FUSED
from datong.spec.program import ROWS, TOKENS, CacheSpec, Part, Step

WIDTH, VOCAB = 64, 50


def tiny_model(b: PartBuilder, fmt: str = "q4_0") -> Part:
    """Embedding, norm, one attention layer with rope, logits of the wanted rows."""
    for name in ("ids", "positions"):
        b.input(name, (TOKENS,), "i64")
    b.input("rows", (ROWS,), "i64")
    size = WIDTH**-0.5
    x = b.node("embedding", ["ids", b.weight("embed", fmt, (VOCAB, WIDTH))], [("x", (TOKENS, WIDTH))])
    norm = {"eps": 1e-5, "offset": 0.0}
    h = b.node("rms_norm", [x, b.weight("norm", "bf16", (WIDTH,))], [("h", (TOKENS, WIDTH))], norm)
    b.node("rope_table", ["positions", b.const("freq", np.array([1, 0.1, 0.01, 0.001], np.float32))],
           [("cos", (TOKENS, 4)), ("sin", (TOKENS, 4))], {"scale": 1.0})  # fmt: skip
    heads = {"q": 4, "k": 2, "v": 2}
    for name, count in heads.items():
        b.node("linear", [h, b.weight(f"w{name}", fmt, (count * 16, WIDTH), size)], [(name, (TOKENS, count * 16))])
    for name in ("q", "k"):
        attrs = {"num_heads": heads[name], "interleaved": 0}
        b.node("rope", [name, "cos", "sin"], [(f"{name}r", (TOKENS, heads[name] * 16))], attrs)
    attrs = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "scale": 0.25, "window": 0, "softcap": 0.0}
    a = b.node("attention", ["qr", "kr", "v"], [("a", (TOKENS, WIDTH))], attrs)
    r = b.node("take_rows", [b.node("add", [a, x], [("s", (TOKENS, WIDTH))]), "rows"], [("r", (ROWS, WIDTH))])
    logits = b.node("linear", [r, "embed"], [("logits", (ROWS, VOCAB))])
    b.caches.append(CacheSpec(0, "full", 2, 16, 16))
    return b.part([logits])


@pytest.fixture
def builder() -> Iterator[PartBuilder]:
    with PartBuilder(1) as b:
        yield b


IDS = np.random.default_rng(2).integers(0, VOCAB, 40)


def step(chunks: list[tuple[int, int]], tables: list[list[int]], **changes: Any) -> Step:
    """Rows [first, last) of IDS for each sequence."""
    new = [last - first for first, last in chunks]
    fields: dict[str, Any] = {
        "ids": np.concatenate([IDS[first:last] for first, last in chunks]),
        "positions": np.concatenate([np.arange(first, last) for first, last in chunks]),
        "query_starts": np.cumsum([0, *new]),
        "context_lens": np.array([last for _, last in chunks]),
        "block_tables": np.array(tables, np.int32),
        "rows": np.arange(sum(new)),
    }
    return Step(**(fields | changes))


@pytest.mark.parametrize("fmt", ["f32", "bf16", "q4_0"])
def test_chunks_tokens_and_batches_give_the_logits_of_the_whole(builder: PartBuilder, fmt: str) -> None:
    executable = create().compile(tiny_model(builder, fmt), builder.package, {})
    cache = executable.create_cache(8)
    whole = executable.run(step([(0, 40)], [[6, 1, 4]]), cache, {})["logits"]
    assert whole.dtype == np.float32
    assert whole.shape == (40, VOCAB)

    cache = executable.create_cache(8)
    cuts = [0, 7, 8, 9, 16, 31, 40]
    table = [[0, 7, 3]]
    parts = [executable.run(step([c], table), cache, {})["logits"] for c in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-4)

    cache = executable.create_cache(8)
    tables = [[5, 2, -1], [0, 7, 3], [1, -1, -1]]
    executable.run(step([(0, 20), (0, 39), (0, 1)], tables), cache, {})
    batch = executable.run(step([(20, 23), (39, 40), (1, 3)], tables), cache, {})["logits"]
    np.testing.assert_allclose(batch, whole[[20, 21, 22, 39, 1, 2]], rtol=1e-4, atol=1e-4)


def test_only_wanted_rows_are_computed(builder: PartBuilder) -> None:
    executable = create().compile(tiny_model(builder), builder.package, {})
    cache = executable.create_cache(3)
    whole = executable.run(step([(0, 9)], [[0]]), cache, {})["logits"]
    last = executable.run(step([(0, 9)], [[0]], rows=np.array([8])), cache, {})["logits"]
    np.testing.assert_allclose(last, whole[8:], rtol=1e-4, atol=1e-4)
    none = executable.run(step([(0, 9)], [[0]], rows=np.zeros(0, np.int64)), cache, {})["logits"]
    assert none.shape == (0, VOCAB)


def test_a_copied_block_stands_for_the_original(builder: PartBuilder) -> None:
    executable = create().compile(tiny_model(builder), builder.package, {})
    cache = executable.create_cache(4)
    executable.run(step([(0, 12)], [[2]]), cache, {})
    cache.copy_block(2, 0)
    expected = executable.run(step([(12, 13)], [[2]]), cache, {})["logits"].copy()
    np.testing.assert_array_equal(executable.run(step([(12, 13)], [[0]]), cache, {})["logits"], expected)
    with pytest.raises(DeviceError, match=r"target block should lie in 0\.\.3, is 4"):
        cache.copy_block(0, 4)


def test_memory_says_what_is_mapped_and_what_is_copied(builder: PartBuilder) -> None:
    part = tiny_model(builder)
    stored = sum(p.length for v in part.values.values() for p in v.pieces)
    for keep_mb, kept in (("0", False), ("1", True)):
        executable = create().compile(part, builder.package, {"keep_mb": keep_mb})
        executable.run(step([(0, 3)], [[0]]), executable.create_cache(1), {})
        memory = executable.memory()
        assert memory["weights_mapped"] == stored
        assert (memory["weights_private"] > 0) == kept


def test_cache_layout_counts_bytes(builder: PartBuilder) -> None:
    executable = create().compile(tiny_model(builder), builder.package, {"cache_dtype": "f16"})
    cache = executable.create_cache(5)
    assert (cache.layout.block_size, cache.layout.dtype) == (16, "f16")
    assert cache.layout.bytes_per_block == 16 * 2 * (16 + 16) * 2
    assert sum(a.nbytes for a in (*cache.keys.values(), *cache.values.values())) == 5 * cache.layout.bytes_per_block
    assert executable.cache_layout == cache.layout


def test_placement_names_every_node(builder: PartBuilder) -> None:
    executable = create().compile(tiny_model(builder), builder.package, {})
    assert Placed("embedding_0", "embedding", "numpy embedding") in executable.placement()
    assert len(executable.placement()) == len(builder.nodes)


def test_fused_operators_are_refused_unless_claimed(builder: PartBuilder) -> None:
    builder.input("x", (TOKENS, 64))
    norm = builder.weight("w", "f32", (64,))
    outputs = [("s", (TOKENS, 64)), ("y", (TOKENS, 64))]
    builder.node("add_rms_norm", ["x", "x", norm], outputs, {"eps": 1e-5, "offset": 0.0})
    part = builder.part(["s", "y"])
    assert create().fusions() == frozenset()
    with pytest.raises(Unsupported) as caught:
        create().compile(part, builder.package, {})
    reason = "fused operator `add_rms_norm` is not claimed by this instance"
    assert caught.value.reasons == [("add_rms_norm_0", reason)]
    claiming = ReferenceBackend.with_fusions()
    assert claiming.fusions() == {op.name for op in FUSED}
    data = np.ones((2, 64), np.float32)
    out = claiming.compile(part, builder.package, {}).run(step([(0, 2)], [[]]), None, {"x": data})
    np.testing.assert_array_equal(out["s"], 2 * data)


def test_supports_refuses_with_the_broken_rule(builder: PartBuilder) -> None:
    builder.input("x", (TOKENS, 64))
    builder.node("glu", ["x", "x"], [("y", (TOKENS, 64))], {"kind": "gelu"})
    answer = create().supports(builder.nodes[0], builder.values)
    assert not answer
    assert "kind should be one of silu, gelu_tanh, silu_clamp, oai, here kind is gelu" in answer.reason  # type: ignore[union-attr]


def test_it_is_a_backend_with_one_device() -> None:
    assert isinstance(create(), Backend)
    [device] = create().devices()
    assert (device.name, device.evidence) == ("reference", "measured")
    assert device.memory_bytes > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cache_dtype": "q8"}, "cache_dtype should be f32, f16 or bf16, is `q8`"),
        ({"keep_mb": "-1"}, "keep_mb should be a whole number, is `-1`"),
        ({"speed": "11"}, "option `speed` is not known"),
    ],
)
def test_bad_options(builder: PartBuilder, options: dict[str, str], text: str) -> None:
    with pytest.raises(DeviceError) as caught:
        create().compile(tiny_model(builder), builder.package, options)
    assert text in caught.value.message


def test_a_cut_or_missing_file_is_refused_at_compile(builder: PartBuilder) -> None:
    part = tiny_model(builder)
    path = Path(builder.package) / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DeviceError, match=r"should hold \d+ bytes at \d+, it has"):
        create().compile(part, builder.package, {})
    path.unlink()
    with pytest.raises(DeviceError, match=r"`model.safetensors` should open"):
        create().compile(part, builder.package, {})


def test_bad_runs_are_refused(builder: PartBuilder) -> None:
    executable = create().compile(tiny_model(builder), builder.package, {})
    cache = executable.create_cache(2)
    with pytest.raises(DeviceError, match="needs a cache, none was given"):
        executable.run(step([(0, 3)], [[0]]), None, {})
    with pytest.raises(DeviceError, match="ids should lie in"):
        executable.run(step([(0, 2)], [[0]], ids=np.array([0, VOCAB])), cache, {})
    with pytest.raises(DeviceError, match="block table of sequence 0"):
        executable.run(step([(0, 3)], [[2]]), cache, {})
    with pytest.raises(DeviceError, match="at least 0 blocks"):
        executable.create_cache(-1)


def test_bad_inputs_are_refused(builder: PartBuilder) -> None:
    builder.input("a", (TOKENS, 4))
    builder.node("add", ["a", "a"], [("y", (TOKENS, 4))])
    executable = create().compile(builder.part(["y"]), builder.package, {})
    run = step([(0, 2)], [[]])
    with pytest.raises(ShapeError, match="input `a` is missing"):
        executable.run(run, None, {})
    with pytest.raises(ShapeError, match=r"input `a` should be \[2, 4\], is \[3, 4\]"):
        executable.run(run, None, {"a": np.zeros((3, 4), np.float32)})
    with pytest.raises(DtypeError, match="input `a` should be f32, is float64"):
        executable.run(run, None, {"a": np.zeros((2, 4))})
