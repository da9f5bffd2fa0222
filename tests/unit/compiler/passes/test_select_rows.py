from datong.compiler.passes import drop_dead, select_rows
from datong.spec.program import ROWS, TOKENS


def leads(draft):
    return {name: v.shape[0] for name, v in draft.values.items() if v.kind == "temp"}


def test_right_after_the_last_attention(sketch):
    x = sketch.embed()
    x1 = sketch.add(x, sketch.attention(x, 0), out="x1")
    y = sketch.attention(sketch.norm(x1, name="n1"), 1)
    x2 = sketch.add(x1, sketch.linear(y, 8, "o"), out="x2")
    draft = sketch.run(sketch.done(sketch.linear(sketch.norm(x2, name="n2"), 11, "head")), select_rows)
    assert [n.op for n in draft.nodes[4:]] == [
        "attention", "take_rows", "linear", "take_rows", "add", "rms_norm", "linear",
    ]  # fmt: skip
    lead = leads(draft)
    assert [lead[n] for n in ("x1", "attention_1.out", "n1.out")] == [TOKENS] * 3
    assert [lead[n] for n in ("o.out", "x2", "n2.out", "head.out")] == [ROWS] * 4


def test_one_take_for_many_readers(sketch):
    y = sketch.attention(sketch.embed())
    a = sketch.linear(y, 8, "a")
    draft = sketch.run(sketch.done(sketch.node("mul", sketch.add(a, y), y, width=8)), select_rows)
    assert sketch.ops(draft) == ["embedding", "attention", "take_rows", "linear", "add", "mul"]


def test_both_operands_the_same(sketch):
    y = sketch.attention(sketch.embed())
    draft = sketch.run(sketch.done(sketch.add(y, y)), select_rows)
    assert sketch.ops(draft) == ["embedding", "attention", "take_rows", "add"]


def test_no_attention_at_all(sketch):
    """What reads the step's ids must run on tokens."""
    draft = sketch.run(sketch.done(sketch.linear(sketch.embed(), 11)), select_rows)
    assert sketch.ops(draft) == ["embedding", "take_rows", "linear"]


def test_logits_made_on_tokens(sketch):
    draft = sketch.run(sketch.done(sketch.attention(sketch.embed())), select_rows, drop_dead)
    assert sketch.ops(draft) == ["embedding", "attention", "take_rows"]
    assert draft.output == "attention_0.out" and draft.values[draft.output].shape == (ROWS, 8)


def test_a_cache_written_beside_the_logits(sketch):
    """The attention's result is not used; its cache is, in later steps."""
    x = sketch.embed()
    sketch.attention(sketch.norm(x, name="n"))
    draft = sketch.run(sketch.done(sketch.linear(x, 11, "head")), select_rows)
    assert leads(draft)["n.out"] == TOKENS and leads(draft)["head.out"] == ROWS
