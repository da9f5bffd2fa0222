import pytest

from datong.compiler.partition import Placer
from datong.compiler.passes import assign_devices, fuse_linear_add, select_rows
from datong.errors import InvalidRequest


def layers(sketch, count=3, weights="model.layers.{}.o"):
    """embedding, then attention + linear + add per layer, then a norm and the logits; one rope table at the end."""
    x = sketch.embed()
    for layer in range(count):
        normed = sketch.norm(x, name=f"{weights.format(layer)}_norm")
        x = sketch.add(x, sketch.linear(sketch.attention(normed, layer), 8, weights.format(layer)))
    return sketch.done(sketch.linear(sketch.norm(x, name="model.norm"), 11, "lm_head"))


def stages(draft, splits):
    """Stage by node; the nodes stand stage by stage."""
    placer = Placer([], splits)
    moved = assign_devices.run(draft, placer)
    found = [placer._stages[node.name] for node in draft.nodes]
    assert found == sorted(found) and moved == sum(stage > 0 for stage in found)
    return placer._stages


def test_a_layer_goes_with_its_weights_and_attention(sketch):
    draft = layers(sketch)
    found = stages(draft, (1, 2))
    assert [found[f"attention_{i}"] for i in range(3)] == [0, 1, 2]
    assert [found[f"model.layers.{i}.o"] for i in range(3)] == [0, 1, 2]
    assert [found[f"model.layers.{i}.o_norm"] for i in range(3)] == [0, 1, 2]


def test_embedding_comes_first_and_logits_last(sketch):
    draft = layers(sketch)
    found = stages(draft, (2,))
    assert draft.nodes[0].op == "embedding" and found[draft.nodes[0].name] == 0
    assert found["model.norm"] == found["lm_head"] == 1
    adds = [found[node.name] for node in draft.nodes if node.op == "add"]
    assert adds == [0, 0, 1]  # without weights: with its inputs


@pytest.mark.parametrize("weights", ["blk.{}.attn", "transformer.h.{}.o", "{}.o", "model.layers.{}.experts.7.o"])
def test_names_of_other_families(sketch, weights):
    found = stages(layers(sketch, 9, weights), (4,))
    assert [found[weights.format(i)] for i in range(9)] == [0] * 4 + [1] * 5


def test_without_layers_in_names_attention_decides(sketch):
    """The norm before it then stays with the layer before: one value more crosses, the result is the same."""
    found = stages(layers(sketch, 3, "onnx::{}"), (1,))
    assert [found[f"attention_{i}"] for i in range(3)] == [0, 1, 1]
    assert [found[f"onnx::{i}_norm"] for i in range(3)] == [0, 0, 1]


def test_late_nodes_of_an_early_layer_move_forward(sketch):
    x = sketch.embed()
    late = sketch.linear(x, 8, "model.layers.0.side")
    y = sketch.attention(x, 0)
    z = sketch.attention(y, 1)
    again = sketch.linear(sketch.add(z, z), 8, "model.layers.0.shared")  # a weight of layer 0 used after layer 1
    draft = sketch.done(sketch.add(sketch.add(z, late), again))
    found = stages(draft, (1,))
    assert found["model.layers.0.side"] == 0 and found["model.layers.0.shared"] == 1
    made = set()
    for node in draft.nodes:  # still an order of execution
        assert all(name in made or draft.values[name].kind in ("weight", "input") for name in node.inputs)
        made.update(node.outputs)


def test_interleaved_nodes_are_sorted(sketch):
    """A graph may name all norms first; parts must still be one per device."""
    a = sketch.embed()
    left = sketch.linear(a, 8, "layers.1.x")
    right = sketch.linear(a, 8, "layers.0.x")
    draft = sketch.done(sketch.add(sketch.attention(sketch.attention(right, 0), 1), left))
    assign_devices.run(draft, Placer([], (1,)))
    assert [node.name for node in draft.nodes][:4] == ["embedding_0", "layers.0.x", "attention_0", "layers.1.x"]


def test_without_splits_nothing_happens(sketch):
    draft = layers(sketch)
    before = list(draft.nodes)
    assert assign_devices.run(draft, Placer([])) == 0 and draft.nodes == before


@pytest.mark.parametrize("splits", [(0,), (3,), (-1,), (1, 7)])
def test_a_split_outside_of_the_model(sketch, splits):
    with pytest.raises(
        InvalidRequest, match=f"should be from 1 to 2, got {next(s for s in splits if s != 1)}"
    ) as error:
        assign_devices.run(layers(sketch), Placer([], splits))
    assert error.value.hint == "the model has 3 layers, numbered from 0"


def test_no_fusion_crosses_a_split(sketch, picky):
    """The product of layer 0 is added in layer 1: on two devices they stay apart, also where one backend takes both."""
    x = sketch.embed()
    product = sketch.linear(sketch.attention(x, 0), 8, "layers.0.o")
    total = sketch.node("add", sketch.attention(x, 1), product, width=8)
    draft = sketch.run(sketch.done(total), select_rows)
    host = picky("host", lambda *_: "", ["linear_add"])
    chip = picky("chip", lambda *_: "no", ["linear_add"])
    placer = Placer([host, chip], (1,))
    assign_devices.run(draft, placer)
    assert fuse_linear_add.run(draft, placer) == 0
    assert fuse_linear_add.run(draft, Placer([host])) == 1
