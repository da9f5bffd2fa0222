import pytest

from datong.compiler import memory, verify
from datong.compiler.partition import Placer, partition
from datong.compiler.passes import assign_devices, select_rows
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
    with pytest.raises(
        Unsupported, match=r"every node should run on a backend \(`chip`, `host`\) but 1 of 6 do not"
    ) as e:
        partition(layer(sketch), Placer(backends))
    assert e.value.reasons == [
        ("attention_0", "chip: no kernel for attention"),
        ("attention_0", "host: no kernel for attention"),
    ]


def test_strict_says_so(sketch, picky):
    draft = layer(sketch)
    with pytest.raises(Unsupported, match="on backend `chip`, as strict asks") as error:
        partition(draft, Placer([picky("chip", refuse("add"))], strict=True))
    assert error.value.reasons == [(draft.nodes[-1].name, "chip: no kernel for add")]
    both = [picky("chip", refuse("add")), picky("host", refuse("add"))]
    with pytest.raises(Unsupported, match="on a backend of `chip`, `host`, as strict asks, but 1 of 6"):
        partition(draft, Placer(both, strict=True))


# ---- devices in a row ------------------------------------------------------------------------------------------------


def layers(sketch, count):
    x = sketch.embed()
    for i in range(count):
        x = sketch.add(x, sketch.linear(sketch.attention(x, i), 8, f"layers.{i}.o"))
    return sketch.run(sketch.done(sketch.linear(x, 11, "head")), select_rows)


def in_a_row(sketch, backends, count=2, **options):
    draft, placer = layers(sketch, count), Placer(backends, (1,), **options)
    assign_devices.run(draft, placer)
    return partition(draft, placer)


def test_a_row_of_devices_gives_one_part_each(sketch, picky):
    parts, refusals = in_a_row(sketch, [picky("a", refuse()), picky("b", refuse()), picky("host", refuse())], 3)
    assert [(p.backend, [c.layer for c in p.caches]) for p in parts] == [("a", [0]), ("b", [1, 2])]
    assert refusals == ()
    first, second = parts
    assert first.inputs == ("ids",) and len(first.outputs) == 1  # the residual stream
    assert second.inputs == ("rows", *first.outputs) and second.outputs == ("head.out",)
    assert "layers.0.o.w" in first.values and "layers.0.o.w" not in second.values
    verify.program(Program("/nowhere", tuple(memory.plan(p) for p in parts), 8, 0))


def test_in_a_row_the_other_device_comes_before_the_rest(sketch, picky):
    backends = [picky("a", refuse("attention", "add")), picky("b", refuse("add")), picky("host", refuse())]
    parts, refusals = in_a_row(sketch, backends)
    where = {node.name: part.backend for part in parts for node in part.nodes}
    assert (where["attention_0"], where["attention_1"], where["layers.0.o"]) == ("b", "b", "a")
    assert [b for b, node, _ in refusals if node == "attention_0"] == ["a"]
    assert [where[node] for node in where if node.startswith("add")] == ["host", "host"]


def test_in_a_row_strict_keeps_each_layer_on_its_own(sketch, picky):
    backends = [picky("a", refuse()), picky("b", refuse("attention"))]
    with pytest.raises(Unsupported, match="its layer's backend of `a`, `b`, as strict asks, but 1 of") as error:
        in_a_row(sketch, backends, strict=True)
    assert error.value.reasons == [("attention_1", "b: no kernel for attention")]


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
