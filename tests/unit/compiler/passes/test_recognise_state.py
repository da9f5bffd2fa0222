import numpy as np
import pytest

from datong.compiler.passes import recognise_functions


def state(tiny, kind, heads, key, value, layer=4):
    past = tiny.input(f"past_state.{layer}.{kind}", ["batch", heads, key, value])
    past.meta["dims"] = ("batch", heads, key, value)
    return past


def conv(tiny, *, kind="conv", taps=4, shape=None, channels=6, present="present_state.4.conv", weight=None):
    """A short convolution whose weight is stored [C, 1, K], but for what a test changes."""
    x, past = tiny.act(6), state(tiny, kind, *(shape or (1, 6, taps - 1)))
    if weight is None:
        weight = tiny.reshape(tiny.weight("w", (6, 1, taps)), 6, taps)
    return tiny.node("CausalConv", x, weight, None, past, domain="datong", outputs=["y", present], name="conv",
                     kind="silu", channels=channels)  # fmt: skip


def delta(tiny, *, key=8, present="present_state.4.recurrent", a_log=None):
    q, k, v, a, b = (tiny.act(width) for width in (2 * 8, 2 * 8, 4 * 5, 4, 4))
    vectors = [a_log or tiny.weight("A_log", (4,)), tiny.weight("dt_bias", (4,))]
    past = state(tiny, "recurrent", 4, key, 5)
    return tiny.node("GatedDelta", q, k, v, a, b, *vectors, past, domain="datong", outputs=["y", present], name="delta",
                     num_k_heads=2, num_v_heads=4, scale=0.25, eps=1e-6)  # fmt: skip


def linear(tiny, past=None):
    q, k, v = (tiny.act(width) for width in (2 * 8, 2 * 8, 2 * 5))
    slopes = tiny.const([0.5, 0.25], np.float32)
    past = past or state(tiny, "recurrent", 2, 8, 5)
    return tiny.node("LinearAttention", q, k, v, slopes, past, domain="datong",
                     outputs=["y", "present_state.4.recurrent"], name="lightning", num_heads=2, scale=1.0)  # fmt: skip


def why(graph):
    [node] = [node for node in graph if node.domain == "datong"]
    return str(node.meta.get("why"))


def test_a_convolution_stored_with_a_dim_of_one(tiny):
    graph = tiny.run(conv(tiny), recognise_functions)
    node = tiny.only(graph, "causal_conv")
    assert tiny.attrs(node) == {"layer": 4, "kind": "silu"}
    bound = node.inputs[1].meta["bound"]
    assert bound.shape == (6, 4) and bound.pieces[0].shape == (6, 4) and len(node.inputs) == 2
    assert [v.name for v in graph.inputs] == ["x0"] and [v.name for v in graph.outputs] == ["y"]


def test_a_convolution_stored_as_it_is_used(tiny):
    graph = tiny.run(conv(tiny, weight=tiny.weight("w", (6, 4))), recognise_functions)
    assert tiny.only(graph, "causal_conv").inputs[1].meta["bound"].shape == (6, 4)


def test_the_delta_rule(tiny):
    graph = tiny.run(delta(tiny), recognise_functions)
    node = tiny.only(graph, "gated_delta")
    wanted = {"layer": 4, "num_k_heads": 2, "num_v_heads": 4, "scale": 0.25, "eps": pytest.approx(1e-6)}
    assert tiny.attrs(node) == wanted
    assert len(node.inputs) == 7 and node.outputs[0].meta["dims"] == ("batch", "seq", 20)


def test_lightning(tiny):
    graph = tiny.run(linear(tiny), recognise_functions)
    node = tiny.only(graph, "linear_attention")
    assert tiny.attrs(node) == {"layer": 4, "num_heads": 2, "scale": 1.0} and len(node.inputs) == 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda t: conv(t, kind="recurrent"), "not from past_state to present_state of a layer"),
        (lambda t: conv(t, present="present_state.5.conv"), "not from past_state to present_state of a layer"),
        (lambda t: conv(t, shape=(1, 6, 4)), "should be [batch, 1, 6, 3]"),
        (lambda t: conv(t, channels=3), "[channels, taps] in a file"),
        (lambda t: conv(t, weight=t.const(np.ones((6, 4)), np.float32)), "[channels, taps] in a file"),
        (lambda t: conv(t, weight=t.reshape(t.weight("w", (24, 1)), 6, 4)), "[channels, taps] in a file"),
        (lambda t: delta(t, key=5), "should be [batch, 4, 8, 5]"),
        (lambda t: delta(t, a_log=t.node("Exp", t.weight("w", (4,)))), "should be a plain weight, or an inline vector"),
        (lambda t: linear(t, t.act(4)), "not from past_state to present_state of a layer"),
    ],
)
def test_what_is_no_operator_has_a_note(tiny, make, text):
    graph = tiny.run(make(tiny), recognise_functions)
    assert text in why(graph)


def test_a_state_with_other_readers_stays(tiny):
    past = state(tiny, "recurrent", 2, 8, 5)
    other = tiny.node("Exp", past)
    graph = tiny.run([*linear(tiny, past), other], recognise_functions)
    assert "has other readers" in why(graph) and len(graph.inputs) == 4
