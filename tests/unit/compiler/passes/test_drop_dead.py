from datong.compiler.passes import drop_dead


def test_what_nobody_reads_goes(sketch):
    x = sketch.embed()
    sketch.add(sketch.linear(x, 8, "unused"), x)
    draft = sketch.run(sketch.done(sketch.linear(x, 4, "head")), drop_dead)
    assert sketch.ops(draft) == ["embedding", "linear"]
    assert set(draft.values) == {"ids", "embed", "embedding_0.out", "head.w", "head.out"}


def test_attention_stays_for_its_cache(sketch):
    x = sketch.embed()
    sketch.attention(sketch.norm(x))
    draft = sketch.run(sketch.done(sketch.linear(x, 4)), drop_dead)
    assert sketch.ops(draft) == ["embedding", "rms_norm", "attention", "linear"]
