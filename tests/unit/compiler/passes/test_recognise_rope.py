import pytest

from datong.compiler.passes import recognise_rope, recognise_rope_table


def run(tiny, half, **attrs):
    x = tiny.act(16)
    out = tiny.node("RotaryEmbedding", x, *tiny.table(half), **attrs)
    return x, tiny.run([out], recognise_rope_table, recognise_rope)


@pytest.mark.parametrize(
    ("half", "attrs", "interleaved"),
    [
        (4, {"num_heads": 2}, 0),
        (4, {"num_heads": 2, "interleaved": 1}, 1),
        (2, {"num_heads": 2, "rotary_embedding_dim": 4}, 0),
        (4, {"num_heads": 2, "rotary_embedding_dim": 8}, 0),
    ],
)
def test_rotates_packed_heads(tiny, half, attrs, interleaved):
    x, graph = run(tiny, half, **attrs)
    assert tiny.ops(graph) == ["datong::rope_table", "datong::rope"]
    node = tiny.only(graph, "rope")
    assert node.inputs[0] is x and node.inputs[1:] == tuple(tiny.only(graph, "rope_table").outputs)
    assert tiny.attrs(node) == {"num_heads": 2, "interleaved": interleaved}


@pytest.mark.parametrize(
    ("half", "attrs", "text"),
    [
        (4, {}, "num_heads x head_dim"),
        (4, {"num_heads": 3}, "num_heads x head_dim"),
        (2, {"num_heads": 2}, "it rotates 8 of 8 channels, the table is for 2 pairs"),
        (8, {"num_heads": 2, "rotary_embedding_dim": 16}, "16 of 8"),
    ],
)
def test_other_rotations_are_noted(tiny, half, attrs, text):
    _, graph = run(tiny, half, **attrs)
    assert text in tiny.why(graph, "RotaryEmbedding")


def test_position_input_is_noted(tiny):
    cos, sin = tiny.table(4)
    positions = next(v for v in tiny.inputs if v.name == "position_ids")
    out = tiny.node("RotaryEmbedding", tiny.act(16), cos, sin, positions, num_heads=2)
    assert "per token" in tiny.why(tiny.run([out], recognise_rope_table, recognise_rope), "RotaryEmbedding")


def test_foreign_tables_are_noted(tiny):
    out = tiny.node("RotaryEmbedding", tiny.act(16), tiny.act(4), tiny.act(4), num_heads=2)
    assert "Cos and Sin" in tiny.why(tiny.run([out], recognise_rope_table, recognise_rope), "RotaryEmbedding")
