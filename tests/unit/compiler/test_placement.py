from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import explain, memory
from datong.compiler.partition import Placer, partition
from datong.compiler.passes import assign_devices, fuse_linear_add, select_rows
from datong.compiler.placement import Fallback, Transfer, fallback_sentence, fallbacks, transfers
from datong.spec.program import Program


def program(sketch, backends, splits=(), fuse=False):
    """embedding; attention, linear, add; attention; attention, add; logits."""
    x = sketch.embed()
    x = sketch.add(x, sketch.linear(sketch.attention(x, 0), 8, "layers.0.o"))
    y = sketch.attention(x, 1)
    draft = sketch.done(sketch.linear(sketch.add(sketch.attention(y, 2), y), 11, "head"))
    sketch.run(draft, select_rows)
    placer = Placer(backends, splits)
    assign_devices.run(draft, placer)
    if fuse:
        fuse_linear_add.run(draft, placer)
    parts, refusals = partition(draft, placer)
    return Program("/p", tuple(map(memory.plan, parts)), 11, 0, refusals)


def chip(picky, *ops, fusions=()):
    return picky("chip", lambda node, _: f"no kernel for {node.op}" if node.op in ops else "", fusions)


def test_all_as_asked(sketch, picky):
    found = program(sketch, [chip(picky), ReferenceBackend()])
    assert fallbacks(found) == [] and fallback_sentence(found) == "" and transfers(found) == []


def test_what_left_its_device(sketch, picky):
    found = program(sketch, [chip(picky, "add", "embedding"), ReferenceBackend()])
    assert [(f.op, f.wanted, f.backend, f.reason, len(f.nodes)) for f in fallbacks(found)] == [
        ("embedding", "chip", "reference", "no kernel for embedding", 1),
        ("add", "chip", "reference", "no kernel for add", 2),
    ]
    assert fallback_sentence(found) == (
        "3 of 10 nodes run elsewhere than asked: embedding x1 on reference (chip: no kernel for embedding); "
        "add x2 on reference (chip: no kernel for add)"
    )
    assert isinstance(fallbacks(found)[0], Fallback)


def test_a_fusion_that_was_refused_is_no_fallback(sketch, picky):
    found = program(sketch, [chip(picky, "linear_add", fusions=["linear_add"]), ReferenceBackend()], fuse=True)
    assert found.refusals and fallbacks(found) == []


def test_transfers_name_value_and_bytes(sketch, picky):
    found = program(sketch, [chip(picky), ReferenceBackend()], (1,))
    assert [p.backend for p in found.parts] == ["chip", "reference"]
    (residual,) = found.parts[0].outputs
    assert transfers(found) == [Transfer(residual, "chip", "reference", 8 * 4, "token")]


def test_transfers_of_rows_and_over_several_parts(sketch, picky):
    found = program(sketch, [chip(picky, "add"), ReferenceBackend()])
    assert {t.per for t in transfers(found)} == {"token", "row"}
    assert {(t.source, t.target) for t in transfers(found)} == {("chip", "reference"), ("reference", "chip")}
    makers = {name: part.backend for part in found.parts for name in part.outputs}
    assert all(makers[t.value] == t.source for t in transfers(found))


def test_both_are_explained(sketch, picky):
    text = explain.explain(program(sketch, [chip(picky, "add"), ReferenceBackend()]))
    assert "elsewhere than asked\n  add x2 on reference, since chip refuses: no kernel for add\n" in text
    assert "transfers through the host, " in text and "chip -> reference  32 bytes  per token\n" in text


def test_nothing_to_say_is_empty(sketch, picky):
    data = explain.explain_data(program(sketch, [chip(picky), ReferenceBackend()]))
    assert data["fallbacks"] == data["transfers"] == []
