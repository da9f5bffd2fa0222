"""Each rule of the operator set is broken once, and the error names the node and the rule."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datong import dtypes
from datong.conformance.build import FILE, PartBuilder
from datong.errors import DeviceError, DtypeError, ShapeError, VerifyError
from datong.spec import formats
from datong.spec.caches import check_step
from datong.spec.check import check_node, check_part, operand
from datong.spec.ops import OPS
from datong.spec.program import ROWS, TOKENS, CacheSpec, Node, Part, Step, expert
from datong.spec.reference import dequantise


def test_every_row_can_be_read() -> None:
    for op in OPS.values():
        for text in (*op.inputs, *op.outputs):
            assert operand(text).dims


@pytest.fixture
def builder() -> Iterator[PartBuilder]:
    with PartBuilder(1) as b:
        b.input("x", (TOKENS, 64))
        b.input("ids", (TOKENS,), "i64")
        b.input("rows", (ROWS,), "i64")
        b.input("half", (TOKENS, 32))
        b.input("third", (TOKENS, 3))
        b.input("fifth", (TOKENS, 5))
        for name, out, width in (("gate", 24, 64), ("up", 24, 64), ("down", 64, 24)):
            b.experts(name, "f32", (3, out, width), apart=name == "up")
        b.weight("w", "f32", (8, 64))
        b.weight("narrow", "f32", (8, 63))
        b.weight("q", "q4_0", (8, 64))
        b.weight("norm", "bf16", (64,))
        b.weight("odd", "f32", (48,))
        b.const("freq", np.ones(4, np.float32))
        yield b


def linear(b: PartBuilder) -> Node:
    b.node("linear", ["x", "w"], [("y", (TOKENS, 8))])
    return b.nodes[-1]


def change(node: Node, **changes: Any) -> Node:
    return dataclasses.replace(node, **changes)


ROPE = {"num_heads": 4, "interleaved": 0}
ATTENTION = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "scale": 0.5, "window": 0, "softcap": 0.0}
Y = [("y", (TOKENS, 64))]
MOE = {"top_k": 2, "score": "softmax", "renorm": 1, "scale": 1.0, "kind": "silu"}
MOE_IN = ["x", "third", "gate", "up", "down"]

BROKEN: list[tuple[str, str, list[str], list[Any], dict[str, Any]]] = [
    ("no such operator", "frobnicate", ["x"], Y, {}),
    ("takes 2 to 3 inputs, has 1", "linear", ["x"], Y, {}),
    ("takes 2 inputs, has 3", "add", ["x", "x", "x"], Y, {}),
    ("gives 1 outputs, has 2", "add", ["x", "x"], [*Y, ("z", (TOKENS, 64))], {}),
    ("`b` is required, it is absent", "add", ["x", ""], Y, {}),
    ("`b` is `ghost`, which is not a value", "add", ["x", "ghost"], Y, {}),
    ("`b` should be f32, `w` is a weight", "add", ["x", "w"], Y, {}),
    ("`x` should be f32, `ids` is i64", "sigmoid", ["ids"], Y, {}),
    ("`weight` should be a weight, `x` is a input", "linear", ["x", "x"], Y, {}),
    ("`y` should be [T, out] with T = T, out = 8", "linear", ["x", "w"], [("y", (TOKENS, 9))], {}),
    ("`y` should be [T, n] with T = T", "add", ["x", "x"], [("y", (ROWS, 64))], {}),
    ("`y` should be [T, n]", "add", ["x", "x"], [("y", (TOKENS, 64, 1))], {}),
    ("weight `q` should be f32, f16 or bf16, is q4_0", "linear", ["x", "w", "q"], [("y", (TOKENS, 8))], {}),
    ("attribute `eps` (float > 0) is missing", "rms_norm", ["x", "norm"], Y, {"offset": 0.0}),
    ("attribute `eps` should be > 0, is 0.0", "rms_norm", ["x", "norm"], Y, {"eps": 0.0, "offset": 0.0}),
    ("attribute `eps` should be float, is `'a'`", "rms_norm", ["x", "norm"], Y, {"eps": "a", "offset": 0.0}),
    ("attribute `eps` should be finite", "rms_norm", ["x", "norm"], Y, {"eps": float("nan"), "offset": 0.0}),
    ("attribute `axis` is not in the row", "rms_norm", ["x", "norm"], Y, {"eps": 1.0, "offset": 0.0, "axis": -1}),
    ("D should divide n, here D is 48, n is 64", "rms_norm", ["x", "odd"], Y, {"eps": 1.0, "offset": 0.0}),
    ("should be a constant", "rope_table", ["ids", "x"], [("c", (TOKENS, 4)), ("s", (TOKENS, 4))], {"scale": 1.0}),
    ("r should be at most D", "rope", ["x", "x", "x"], Y, ROPE),
    ("interleaved should be 0 or 1", "rope", ["x", "half", "half"], Y, {"num_heads": 1, "interleaved": 2}),
    ("attribute `num_heads` should be int, is `4.0`", "rope", ["x", "x", "x"], Y, {**ROPE, "num_heads": 4.0}),
    ("attribute `num_heads` should be int, is `True`", "rope", ["x", "x", "x"], Y, {**ROPE, "num_heads": True}),
    ("attribute `num_heads` should be >= 1, is 0", "rope", ["x", "x", "x"], Y, {**ROPE, "num_heads": 0}),
    ("`k` should be [T, Hkv*D] with", "attention", ["x", "x", "x"], Y, ATTENTION),
    ("group should divide n", "slice", ["x"], [("y", (TOKENS, 4))], {"group": 48, "start": 0, "length": 3}),
    ("start + length should lie within group", "slice", ["x"], Y, {"group": 8, "start": 1, "length": 8}),
    ("kind should be one of silu, gelu_tanh", "glu", ["x", "x"], Y, {"kind": "gelu"}),
    ("limit should be > 0 for silu_clamp and oai", "glu", ["x", "x"], Y, {"kind": "oai", "alpha": 1.0}),
    ("limit should be > 0 for silu_clamp and oai", "glu", ["x", "x"], Y, {"kind": "silu", "limit": 1.0}),
    ("alpha should be > 0 for oai", "glu", ["x", "x"], Y, {"kind": "silu", "alpha": 1.0}),
    ("g should divide n", "scale_groups", ["x", "fifth"], Y, {}),
    (
        "bias should be one of none, alibi, sqrt_alibi",
        "attention",
        ["x", "half", "half"],
        Y,
        {**ATTENTION, "bias": "t5"},
    ),
    ("`sinks` should be [Hq] with Hq = 4", "attention", ["x", "half", "half", "odd"], Y, ATTENTION),
    ("K should be at most E", "moe", MOE_IN, Y, {**MOE, "top_k": 4}),
    ("score should be softmax or sigmoid", "moe", MOE_IN, Y, {**MOE, "score": "tanh"}),
    ("groups should divide E", "moe", MOE_IN, Y, {**MOE, "groups": 2}),
    ("K should be at most E / groups * top_groups", "moe", MOE_IN, Y, {**MOE, "groups": 3}),
    ("m should be I where gate and up", "moe", [*MOE_IN[:3], "", "down"], Y, {**MOE, "order": "pairs"}),
    ("`up` should be given where order is split", "moe", MOE_IN, Y, {**MOE, "order": "pairs"}),
    ("order should be one of split, halves, pairs", "moe", [*MOE_IN[:3], "", "down"], Y, {**MOE, "order": "odd"}),
    ("`gate` should be a weight, `x` is a input", "moe", ["x", "third", "x", "up", "down"], Y, MOE),
    ("should be a stack of weights [E, out, in], is [8, 64] f32", "moe", ["x", "third", "w", "up", "down"], Y, MOE),
    ("`rows` should be [R]", "take_rows", ["x", "ids"], [("y", (ROWS, 64))], {}),
    ("`weight` should be [out_1, in] with in = 64", "linear_multi", ["x", "w", "narrow"], [*Y, *Y], {"count": 2}),
]


@pytest.mark.parametrize(("text", "op", "inputs", "outputs", "attrs"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_node_is_named(
    builder: PartBuilder, text: str, op: str, inputs: list[str], outputs: list[Any], attrs: dict[str, Any]
) -> None:
    builder.node(op, inputs, outputs, attrs)
    with pytest.raises(VerifyError) as caught:
        check_node(builder.nodes[-1], builder.values)
    assert caught.value.message.startswith(f"node `{op}_0` ({op}): ")
    assert text in caught.value.message


def test_linear_multi_matches_each_bias_with_its_weight(builder: PartBuilder) -> None:
    builder.weight("w2", "f32", (5, 64))
    builder.weight("b2", "f32", (5,))
    outputs = [("y0", (TOKENS, 8)), ("y1", (TOKENS, 5))]
    builder.node("linear_multi", ["x", "w", "w2", "", "b2"], outputs, {"count": 2})
    check_node(builder.nodes[-1], builder.values)
    with pytest.raises(VerifyError, match=r"`bias` should be \[out_0\] with out_0 = 8"):
        check_node(change(builder.nodes[-1], inputs=("x", "w", "w2", "b2", "")), builder.values)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("format", "q9_9", "unknown format `q9_9`"),
        ("format", "q4_1", "should have pieces ['codes', 'scale', 'min'], has ['codes', 'scale']"),
        ("shape", (8, 63), "should be [out, k * 32], is [8, 63]"),
        ("shape", (9, 64), "piece `codes` of `q` should be i4 [9, 2, 32], 288 bytes"),
        ("shape", (TOKENS, 64), "should have a fixed shape"),
    ],
)
def test_a_broken_weight_is_named(builder: PartBuilder, field: str, value: Any, text: str) -> None:
    builder.node("linear", ["x", "q"], [("y", (TOKENS, 8))])
    check_node(builder.nodes[-1], builder.values)
    values = {**builder.values, "q": dataclasses.replace(builder.values["q"], **{field: value})}
    with pytest.raises(VerifyError) as caught:
        check_node(builder.nodes[-1], values)
    assert text in caught.value.message


def attention_part(b: PartBuilder) -> Part:
    b.input("kv", (TOKENS, 32))
    b.node("attention", ["x", "kv", "kv"], Y, ATTENTION)
    b.node("take_rows", ["y", "rows"], [("z", (ROWS, 64))])
    b.caches.append(CacheSpec(0, "full", 2, 16, 16))
    return b.part(["z"])


PARTS: list[tuple[str, Callable[[Part], dict[str, Any]]]] = [
    ("reads `y`, which nothing before it defines", lambda p: {"nodes": p.nodes[::-1]}),
    ("its name should be unique", lambda p: {"nodes": (p.nodes[0], change(p.nodes[1], name=p.nodes[0].name))}),
    ("writes `y`, which is defined already", lambda p: {"nodes": (*p.nodes, change(p.nodes[0], name="again"))}),
    ("output `ghost` should be computed", lambda p: {"outputs": ("ghost",)}),
    ("output `w` should be computed", lambda p: {"outputs": ("w",)}),
    ("input `y` should be a value of kind input", lambda p: {"inputs": ("y",)}),
    ("layer 0 has no cache of kind `full` of its own", lambda p: {"caches": ()}),
    ("its cache should be CacheSpec(layer=0", lambda p: {"caches": (CacheSpec(0, "full", 2, 8, 16),)}),
    ("layer 0 has no cache of kind `full`", lambda p: {"caches": (CacheSpec(0, "window", 2, 16, 16, 7),)}),
    ("no node uses the cache of layer 5", lambda p: {"caches": (*p.caches, CacheSpec(5, "full", 1, 1, 1))}),
    ("two caches have the same layer", lambda p: {"caches": p.caches * 2}),
    ("is listed as `alias`", lambda p: {"values": {**p.values, "alias": p.values["x"]}}),
    (
        "constant `freq` should hold 4 elements, holds 3",
        lambda p: {"values": {**p.values, "freq": dataclasses.replace(p.values["freq"], data=(1.0, 2.0, 3.0))}},
    ),
]


@pytest.mark.parametrize(("text", "broken"), PARTS, ids=[row[0] for row in PARTS])
def test_a_broken_part_is_named(builder: PartBuilder, text: str, broken: Callable[[Part], dict[str, Any]]) -> None:
    part = attention_part(builder)
    check_part(part)
    with pytest.raises(VerifyError) as caught:
        check_part(dataclasses.replace(part, **broken(part)))
    assert text in caught.value.message


def step(**changes: Any) -> Step:
    fields: dict[str, Any] = {
        "ids": np.arange(5),
        "positions": np.arange(5),
        "query_starts": np.array([0, 3, 5]),
        "context_lens": np.array([3, 20]),
        "block_tables": np.array([[4, -1], [0, 2]], np.int32),
        "rows": np.array([2, 4]),
    }
    return Step(**(fields | changes))


STEPS = [
    (DtypeError, "`ids` should be int64, is int32", {"ids": np.arange(5, dtype=np.int32)}),
    (ShapeError, "`positions` should be [5], is [4]", {"positions": np.arange(4)}),
    (ShapeError, "`query_starts` should rise from 0 to 5", {"query_starts": np.array([0, 6, 5])}),
    (ShapeError, "`query_starts` should rise from 0 to 5", {"query_starts": np.array([1, 3, 5])}),
    (
        DeviceError,
        "`context_lens` should be at least the new tokens [3, 2], are [2, 20]",
        {"context_lens": np.array([2, 20])},
    ),
    (DeviceError, "`ids` should lie in 0..9, go from 7 to 11", {"ids": np.arange(7, 12)}),
    (DeviceError, "`rows` should lie in 0..4", {"rows": np.array([5])}),
    (ShapeError, "sequence 1 of 33 tokens needs more than 2 blocks of 16", {"context_lens": np.array([3, 33])}),
    (
        DeviceError,
        "block table of sequence 1 should lie in 0..4",
        {"block_tables": np.array([[4, -1], [0, 5]], np.int32)},
    ),
    (
        DeviceError,
        "block table of sequence 1 should lie in 0..4",
        {"block_tables": np.array([[4, -1], [0, -1]], np.int32)},
    ),
]


def test_a_good_step_passes() -> None:
    check_step(step(), vocab_size=10, block_size=16, blocks=5)
    check_step(step(rows=np.zeros(0, np.int64)), vocab_size=10, block_size=16, blocks=5)


@pytest.mark.parametrize(("error", "text", "changes"), STEPS)
def test_a_broken_step_is_refused(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        check_step(step(**changes), vocab_size=10, block_size=16, blocks=5)
    assert text in str(caught.value)


def test_blocks_that_the_window_has_left_may_be_absent() -> None:
    gone = step(block_tables=np.array([[4, -1], [-1, 2]], np.int32))
    check_step(gone, block_size=16, blocks=5, window=3)
    with pytest.raises(DeviceError):
        check_step(gone, block_size=16, blocks=5, window=4)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("fmt", ["f32", "bf16", "q4_1", "q6_k"])
def test_an_expert_is_a_weight_of_its_own(fmt: str, apart: bool) -> None:
    with PartBuilder(1) as b:
        b.experts("stack", fmt, (3, 5, 256), apart=apart)
        b.part([])
        for index in range(3):
            one = expert(b.values["stack"], index)
            data = (Path(b.package) / FILE).read_bytes()
            row = formats.BY_NAME[fmt]
            pieces = {}
            for piece in one.pieces:
                raw = np.frombuffer(data[piece.offset : piece.offset + piece.length], np.uint8)
                kind = dtypes.BY_NAME[piece.dtype]
                shape = (*piece.shape[:-1], piece.shape[-1] * kind.bits // 8) if kind.bits < 8 else piece.shape
                pieces[piece.role] = raw.view(np.uint8 if kind.bits < 8 else kind.numpy).reshape(shape)
            assert np.array_equal(dequantise(row, pieces), b.arrays["stack"][index])
