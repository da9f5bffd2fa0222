import json

from datong.compiler import explain, memory
from datong.compiler.partition import Placer, partition
from datong.compiler.passes import select_rows
from datong.errors import Unsupported
from datong.spec.backend import Placed
from datong.spec.program import Program


def program(sketch, backends):
    x = sketch.embed()
    draft = sketch.run(sketch.done(sketch.linear(sketch.add(sketch.attention(x), x), 8)), select_rows)
    parts, refusals = partition(draft, Placer(backends))
    return Program("/p", tuple(map(memory.plan, parts)), 8, 0, refusals)


def backends(picky):
    return [
        picky("chip", lambda n, _: "no gather" if n.op in ("take_rows", "embedding") else ""),
        picky("host", lambda *_: ""),
    ]


def test_data(sketch, picky):
    both = backends(picky)
    data = explain.explain_data(program(sketch, both), both)
    assert {"op": "take_rows", "backend": "host", "implementation": "numpy take_rows", "count": 2} in data["placement"]
    (group,) = data["refusals"]
    assert (group["backend"], group["reason"], group["count"]) == ("chip", "no gather", 3)
    assert len(group["nodes"]) == 3
    assert [p["backend"] for p in data["parts"]] == ["host", "chip", "host", "chip"]
    json.dumps(data)


def test_text(sketch, picky):
    both = backends(picky)
    text = explain.explain(program(sketch, both), both)
    assert "  take_rows  host  numpy take_rows  x2\n" in text
    assert "  chip: no gather (x3)\n      embedding_0, " in text


def test_no_refusals(sketch, picky):
    assert "refusals: none" in explain.explain(program(sketch, backends(picky)[1:]))


def test_what_ran_goes_before_what_was_promised(sketch, picky):
    both = backends(picky)
    data = explain.explain_data(program(sketch, both), both, [Placed("attention_0", "attention", "flash")])
    assert {"op": "attention", "backend": "chip", "implementation": "flash", "count": 1} in data["placement"]


def test_many_nodes_are_counted_not_listed():
    error = Unsupported("compile", "no", reasons=[(f"n{i}", "same") for i in range(9)])
    assert "same (x9)\n      n0, n1, n2 and 6 more" in explain.explain_unsupported(error)
