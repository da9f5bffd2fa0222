import json
from dataclasses import replace

import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import memory, plan
from datong.compiler.partition import Placer, partition
from datong.compiler.passes import select_rows
from datong.errors import CompileError
from datong.spec.program import Program


@pytest.fixture
def program(sketch):
    x = sketch.embed(32)
    y = sketch.attention(sketch.linear(x, 32, "q", "q4_1", bias=True), window=7)
    draft = sketch.run(sketch.done(sketch.norm(sketch.add(x, y))), select_rows)
    parts, _ = partition(draft, Placer([ReferenceBackend()]))
    return Program("/p", tuple(map(memory.plan, parts)), 32, 99, (("chip", "a node", "a reason"),))


def test_there_and_back(program):
    data = plan.to_json(program)
    assert plan.from_json(data) == program
    assert plan.to_json(plan.from_json(data)) == data


def test_types_survive(program):
    back = plan.from_json(plan.to_json(program))
    attrs = {k: type(v) for k, v in back.parts[0].nodes[2].attrs.items()}
    assert attrs == {k: type(v) for k, v in program.parts[0].nodes[2].attrs.items()}
    assert all(isinstance(v.shape, tuple) and isinstance(v.data, tuple) for v in back.parts[0].values.values())


def test_attributes_of_every_type(program):
    part = program.parts[0]
    node = replace(part.nodes[0], attrs={"i": 1, "f": 1.0, "s": "text", "t": (1, 2), "u": (0.1, 1e-5)})
    odd = replace(program, parts=(replace(part, nodes=(node, *part.nodes[1:])),))
    back = plan.from_json(plan.to_json(odd)).parts[0].nodes[0].attrs
    assert back == node.attrs and type(back["f"]) is float and type(back["t"]) is tuple


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[: len(d) // 2],
        lambda d: b"[]",
        lambda d: b"{}",
        lambda d: b"\xff" + d,
        lambda d: d.replace(b'"nodes"', b'"knots"'),
        lambda d: d.replace(f'"version":{plan.VERSION}'.encode(), b'"version":0'),
        lambda d: d.replace(b'"datong-plan"', b'"other"'),
        lambda d: d.replace(b'"package":"/p"', b'"package":7'),
        lambda d: json.dumps({**json.loads(d), "parts": [{"nodes": 1}]}).encode(),
    ],
)
def test_damaged_plans_are_refused(program, damage):
    with pytest.raises(CompileError, match=r"\[plan\] wanted"):
        plan.from_json(damage(plan.to_json(program)))


def test_text_names_everything(program):
    text = plan.to_text(program)
    for part in ("q.w:q4_1[32,32]", "cache 0: window, 1 heads, key 32, value 32, window 7", "take_rows", "vocab 32",
                 "chip: a node: a reason", "@T+", "@R+"):  # fmt: skip
        assert part in text
    assert "/p" not in text.replace("//", "")
