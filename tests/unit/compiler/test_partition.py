import pytest

from datong.compiler import memory, verify
from datong.compiler.partition import Placer, partition
from datong.compiler.passes import select_rows
from datong.errors import Unsupported
from datong.spec.program import Program


def layer(sketch):
    """embedding, attention, take_rows x 2, linear, add."""
    x = sketch.embed()
    y = sketch.attention(x)
    return sketch.run(sketch.done(sketch.add(x, sketch.linear(y, 8, "o"))), select_rows)


def refuse(*ops):
    return lambda node, values: f"no kernel for {node.op}" if node.op in ops else ""


def test_one_backend_is_one_part(sketch, picky):
    parts, refusals = partition(layer(sketch), Placer([picky("chip", refuse())]))
    assert [(p.backend, len(p.nodes)) for p in parts] == [("chip", 6)] and refusals == ()


def test_neighbours_on_one_backend_are_one_part(sketch, picky):
    draft = layer(sketch)
    backends = [picky("chip", refuse("attention", "add")), picky("host", refuse())]
    parts, refusals = partition(draft, Placer(backends))
    assert [(p.backend, [n.op for n in p.nodes]) for p in parts] == [
        ("chip", ["embedding"]),
        ("host", ["attention"]),
        ("chip", ["take_rows", "linear", "take_rows"]),
        ("host", ["add"]),
    ]
    assert refusals == (
        ("chip", "attention_0", "no kernel for attention"),
        ("chip", draft.nodes[-1].name, "no kernel for add"),
    )
    embedding, attention, middle, last = parts
    assert embedding.inputs == ("ids",) and embedding.outputs == ("embedding_0.out",)
    assert attention.inputs == ("embedding_0.out",) and [c.layer for c in attention.caches] == [0]
    assert attention.values["embedding_0.out"].kind == "input"
    assert middle.inputs == ("rows", "attention_0.out", "embedding_0.out") and middle.caches == ()
    assert set(last.inputs) == {"o.out", "embedding_0.out@rows"} and last.outputs == (draft.output,)
    assert "embed" not in middle.values and "o.w" in middle.values  # each part has its own weights
    verify.program(Program("/nowhere", tuple(memory.plan(p) for p in parts), 8, 0))


def test_order_of_backends_is_order_of_preference(sketch, picky):
    parts, _ = partition(layer(sketch), Placer([picky("a", refuse()), picky("b", refuse())]))
    assert [p.backend for p in parts] == ["a"]


def test_a_node_that_nobody_takes(sketch, picky):
    backends = [picky("chip", refuse("attention", "add")), picky("host", refuse("attention"))]
    with pytest.raises(Unsupported, match=r"every node should run on a backend \(chip, host\) but 1 of 6 do not") as e:
        partition(layer(sketch), Placer(backends))
    assert e.value.reasons == [
        ("attention_0", "chip: no kernel for attention"),
        ("attention_0", "host: no kernel for attention"),
    ]


def test_strict_wants_the_first_backend(sketch, picky):
    backends = [picky("chip", refuse("add")), picky("host", refuse())]
    draft = layer(sketch)
    with pytest.raises(Unsupported, match="on backend `chip`, as strict asks") as error:
        partition(draft, Placer(backends), strict=True)
    assert error.value.reasons == [(draft.nodes[-1].name, "chip: no kernel for add")]


def test_no_backend_at_all(sketch):
    with pytest.raises(Unsupported, match="no backend was given"):
        partition(layer(sketch), Placer([]))


def test_each_node_is_asked_about_once(sketch, picky):
    asked = []
    placer = Placer([picky("chip", lambda node, _: asked.append(node.name) or "")])
    draft = layer(sketch)
    for _ in range(2):
        partition(draft, placer)
    assert sorted(asked) == sorted(n.name for n in draft.nodes)
