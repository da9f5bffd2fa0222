from datong.compiler.passes import drop_dead, merge_duplicates


def test_equal_nodes_become_one(sketch):
    x = sketch.embed()
    a, b = sketch.node("sigmoid", x, width=8), sketch.node("sigmoid", x, width=8)
    total = sketch.add(sketch.node("sigmoid", a, width=8), sketch.node("sigmoid", b, width=8))
    draft = sketch.run(sketch.done(total), merge_duplicates)
    assert sketch.ops(draft) == ["embedding", "sigmoid", "sigmoid", "add"]
    assert draft.nodes[-1].inputs == (draft.nodes[2].outputs[0],) * 2


def test_other_attributes_stay_apart(sketch):
    x = sketch.embed()
    parts = [sketch.node("slice", x, width=4, group=8, start=s, length=4) for s in (0, 4)]
    draft = sketch.run(sketch.done(sketch.add(*parts)), merge_duplicates)
    assert sketch.ops(draft) == ["embedding", "slice", "slice", "add"]


def test_attentions_and_the_output_stay(sketch):
    x = sketch.embed()
    total = sketch.add(sketch.attention(x, 0), sketch.attention(x, 1))
    sketch.add(total, total, out="twin")
    draft = sketch.run(sketch.done(sketch.add(total, total, out="logits")), merge_duplicates, drop_dead)
    assert sketch.ops(draft).count("attention") == 2
    assert draft.nodes[-1].outputs == ("logits",)
