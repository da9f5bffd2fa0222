import pytest

from datong.compiler.passes import recognise_attention

OUTPUTS = ("y", "present.3.key", "present.3.value")


def attention(tiny, *, mask=None, past=True, cache_heads=2, layer=3, outputs=OUTPUTS, **attrs):
    q, k, v = tiny.act(32, "q"), tiny.act(16, "k"), tiny.act(8, "v")
    pasts = [tiny.past(layer, "key", cache_heads, 8), tiny.past(layer, "value", cache_heads, 4)] if past else []
    inputs = [q, k, v, mask, *pasts]
    every = {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1} | attrs
    return tiny.node("Attention", *inputs, outputs=outputs, name="attn", **every)


def test_caches_leave_the_graph(tiny):
    graph = tiny.run(attention(tiny), recognise_attention)
    assert tiny.ops(graph) == ["datong::attention"]
    assert [v.name for v in graph.inputs] == ["q", "k", "v"]
    assert [v.name for v in graph.outputs] == ["y"]
    assert tiny.attrs(graph.node(0)) == {
        "layer": 3, "num_heads": 4, "num_kv_heads": 2, "scale": pytest.approx(8**-0.5), "window": 0, "softcap": 0.0,
    }  # fmt: skip


def test_window_scale_and_softcap(tiny):
    graph = tiny.run(attention(tiny, left_window_size=15, scale=0.5, softcap=30.0), recognise_attention)
    attrs = tiny.attrs(graph.node(0))
    assert (attrs["window"], attrs["scale"], attrs["softcap"]) == (16, 0.5, 30.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"is_causal": 0}, "causal"),
        ({"kv_num_heads": 0}, "kv_num_heads"),
        ({"q_num_heads": 3, "kv_num_heads": 2}, "evenly"),
        ({"q_num_heads": 2, "kv_num_heads": 2}, "evenly"),
        ({"right_window_size": 4}, "right windows"),
        ({"past": False}, "without a cache"),
        ({"cache_heads": 4}, "should have 2 heads of 8"),
        ({"layer": 2}, "different layers"),
        ({"outputs": ("y", "present.3.value", "present.3.key")}, "key cache goes from"),
        ({"outputs": (*OUTPUTS, "scores")}, "its scores are read"),
    ],
)
def test_other_forms_are_noted(tiny, change, text):
    graph = tiny.run(attention(tiny, **change), recognise_attention)
    assert text in tiny.why(graph, "Attention")
    assert len(graph.outputs) >= 3  # nothing was taken away


def test_masks_are_noted(tiny):
    graph = tiny.run(attention(tiny, mask=tiny.act(7)), recognise_attention)
    assert "without a mask" in tiny.why(graph, "Attention")


def test_a_cache_with_other_readers_is_noted(tiny):
    outputs = attention(tiny)
    graph = tiny.run([*outputs, tiny.node("Sigmoid", outputs[1])], recognise_attention)
    assert "other readers" in tiny.why(graph, "Attention")
