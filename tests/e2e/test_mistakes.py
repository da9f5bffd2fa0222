"""Facts about families, got wrong on purpose: the goldens must see it, far beyond their bound."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from datong.backends.reference import ReferenceBackend
from datong.compiler.pipeline import compile_graph
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.graph import GraphBuilder
from datong.importer.models import recurrent, step1
from datong.importer.models.decoder import Decoder, Glu, Layer
from datong.importer.models.layers import build
from datong.importer.models.mixers import Lightning, Residual
from datong.importer.rope import default_frequencies
from datong.spec.program import Step

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
BOUNDS = {"minimax_text01": 2e-3, "qwen3_next": 1e-2, "qwen3_5_text": 1e-2, "gemma3_text": 2e-3, "phi3": 2e-3,
          "phi4_mini": 2e-3, "deepseek_v32": 2e-3, "minimax_m3_vl": 2e-3}  # fmt: skip
SEEN = 10  # times the bound: what a mistake moves at least
Change = Callable[[Decoder], Decoder]
Patch = pytest.MonkeyPatch


def error(family: str, change: Change = lambda decoder: decoder) -> float:
    """The largest difference to the golden's logits, of the whole prompt at once."""
    root = GOLDENS / family
    values, weights = json.loads((root / "config.json").read_text()), checkpoint.read_weights(root)
    config = Config(values, values["model_type"])
    decoder = change(registry.FAMILIES[values["model_type"]](config))
    model, backend = build(family, config, decoder, weights).model, ReferenceBackend()
    [part] = compile_graph(model, root, [backend], strict=True).parts
    stored = load_file(root / "golden.safetensors")
    ids = stored["input_ids"][0]
    places = np.arange(len(ids))
    step = Step(ids, places, np.array([0, 24]), np.array([24]), np.array([[0, 1]], np.int32), places,
                np.array([[0, 1]], np.int32), state_slots=np.array([0], np.int32))  # fmt: skip
    executable = backend.compile(part, str(root), {"cache_dtype": "f32"})
    got = executable.run(step, executable.create_cache(2, 2, 1), {})["logits"]
    return float(np.abs(got - stored["logits"][0]).max())


def each_layer(**changes: Callable[[Layer, int, int], Any]) -> Change:
    """A change of fields of every layer: field -> (layer, its number, how many there are) -> value."""

    def change(d: Decoder) -> Decoder:
        layers = [
            replace(layer, **{field: make(layer, i, len(d.layers)) for field, make in changes.items()})
            for i, layer in enumerate(d.layers)
        ]
        return replace(d, layers=tuple(layers))

    return change


def lightning(make: Callable[[Lightning, int, int], Lightning]) -> Change:
    return each_layer(mixer=lambda layer, i, n: layer.mixer and make(layer.mixer, i, n))


DECAY = lightning(lambda m, i, n: replace(m, slopes=step1.slopes(m.heads)))
LATER = lightning(lambda m, i, n: replace(m, slopes=tuple(s * (1 - (i + 1) / n) for s in step1.slopes(m.heads))))
NO_DECAY = lightning(lambda m, i, n: replace(m, slopes=(0.0,) * m.heads))
SUM = each_layer(attn_residual=lambda *_: None)
ALPHA = each_layer(mlp_residual=lambda *_: Residual(1.0, 1.0))
OTHER = each_layer(attn_residual=lambda layer, *_: layer.mixer and Residual(1.0, 3.5565588200778455))


def experts(**changes: Any) -> Change:
    return each_layer(experts=lambda layer, *_: layer.experts and replace(layer.experts, **changes))


def sparse(**changes: Any) -> Change:
    return each_layer(sparse=lambda layer, *_: layer.sparse and replace(layer.sparse, **changes))


DECODERS: dict[tuple[str, str], Change] = {
    ("deepseek_v32", "every key is seen"): each_layer(sparse=lambda *_: None),
    ("deepseek_v32", "no relu"): sparse(kind="plain"),
    ("deepseek_v32", "one key more"): sparse(top_k=5),
    ("minimax_m3_vl", "every key is seen"): each_layer(sparse=lambda *_: None),
    ("minimax_m3_vl", "the own block is not always seen"): sparse(local=0),
    ("minimax_m3_vl", "smaller blocks"): sparse(block=3),
    ("minimax_m3_vl", "norms not (1 + w)"): lambda d: replace(d, norm_offset=0.0),
    ("minimax_m3_vl", "one block more"): sparse(top_k=3),
    ("minimax_text01", "decay by head alone"): DECAY,
    ("minimax_text01", "decay of the layer after"): LATER,
    ("minimax_text01", "no decay"): NO_DECAY,
    ("minimax_text01", "the residual is the input"): SUM,
    ("minimax_text01", "no alpha"): ALPHA,
    ("minimax_text01", "alpha and beta exchanged"): OTHER,
    ("minimax_text01", "the whole head rotates"): lambda d: replace(
        d, ropes=(replace(d.ropes[0], inv_freq=np.repeat(d.ropes[0].inv_freq, 2)),)
    ),
    ("minimax_text01", "weights not renormalised"): experts(renorm=False),
    ("qwen3_next", "norms not (1 + w)"): lambda d: replace(d, norm_offset=0.0),
    ("qwen3_next", "the shared expert without its gate"): experts(shared_gate=""),
    ("qwen3_next", "weights not renormalised"): experts(renorm=False),
    ("qwen3_next", "no norms of q and k"): lambda d: replace(d, qk_norm=""),
    ("gemma3_text", "norms not (1 + w)"): lambda d: replace(d, norm_offset=0.0),
    ("gemma3_text", "embeddings not scaled"): lambda d: replace(d, embed_scale=0.0),
    ("gemma3_text", "scores by the size of a head"): lambda d: replace(d, attn_scale=0.0),
    ("gemma3_text", "ropes exchanged"): lambda d: replace(d, ropes=d.ropes[::-1]),
    ("gemma3_text", "a window too large by one"): each_layer(
        window=lambda layer, *_: layer.window and layer.window + 1
    ),
    ("gemma3_text", "silu"): each_layer(glu=lambda *_: Glu()),
    ("gemma3_text", "no norms of q and k"): lambda d: replace(d, qk_norm=""),
    ("phi3", "packed per key-value head"): lambda d: replace(d, qkv_whole=False),
    ("phi3", "no window"): each_layer(window=lambda *_: 0),
    ("phi4_mini", "cos and sin not scaled"): lambda d: replace(d, ropes=(replace(d.ropes[0], scale=1.0),)),
    ("phi4_mini", "no divisors"): lambda d: replace(
        d, ropes=(replace(d.ropes[0], inv_freq=default_frequencies(1e4, 12)),)
    ),
}


@pytest.mark.parametrize("family", BOUNDS)
def test_nothing_changed(family: str) -> None:
    assert error(family) <= BOUNDS[family]


@pytest.mark.parametrize(("family", "mistake"), DECODERS)
def test_a_wrong_decoder_is_seen(family: str, mistake: str) -> None:
    assert error(family, DECODERS[family, mistake]) > SEEN * BOUNDS[family]


# ---- mistakes in the graph ------------------------------------------------------------------------------------------


def other_order(names: str, order: str) -> Callable[[Patch], None]:
    """Slices of these names come in another order."""

    def patch(m: Patch) -> None:
        slices = GraphBuilder.slices

        def wrong(self: GraphBuilder, x: Any, group: int, lengths: Any, own: Any) -> Any:
            if list(own) != names.split():
                return slices(self, x, group, lengths, own)
            sizes = [lengths[own.index(name)] for name in order.split()]
            found = dict(zip(order.split(), slices(self, x, group, sizes, order.split()), strict=True))
            return [found[name] for name in own]

        m.setattr(GraphBuilder, "slices", wrong)

    return patch


def attribute(function: str, name: str, value: Any) -> Callable[[Patch], None]:
    """Calls of a function with a state have another attribute."""

    def patch(m: Patch) -> None:
        call = GraphBuilder.with_state

        def wrong(self: GraphBuilder, fn: str, inputs: Any, spec: Any, width: int, attributes: Any, label: str) -> Any:
            attributes = {**attributes, name: value} if fn == function else attributes
            return call(self, fn, inputs, spec, width, attributes, label)

        m.setattr(GraphBuilder, "with_state", wrong)

    return patch


def offset_behind_delta(m: Patch) -> None:
    norm = GraphBuilder.head_norm

    def wrong(self: GraphBuilder, x: Any, weight: str, eps: float, dim: int, name: str, offset: float = 0.0) -> Any:
        return norm(self, x, weight, eps, dim, name, 1.0 if name == "out_norm" else offset)

    m.setattr(GraphBuilder, "head_norm", wrong)


def exchanged(first: int, second: int) -> Callable[[Patch], None]:
    """Two of what the matrices of the delta rule give take each other's place: [q, k, v], z, b, a."""

    def patch(m: Patch) -> None:
        right = recurrent._separate

        def wrong(*args: Any) -> Any:
            found = list(right(*args))
            found[first], found[second] = found[second], found[first]
            return tuple(found)

        m.setattr(recurrent, "_separate", wrong)

    return patch


GRAPHS: dict[tuple[str, str], Callable[[Patch], None]] = {
    ("minimax_text01", "no silu of q, k, v"): lambda m: m.setattr(GraphBuilder, "silu", lambda self, x, name: x),
    ("minimax_text01", "rows of qkv: k before q"): other_order("q k v", "k q v"),
    ("qwen3_next", "the gate before q"): other_order("q q_gate", "q_gate q"),
    ("qwen3_next", "a before b"): other_order("beta a", "a beta"),
    ("qwen3_next", "z before v"): other_order("q_in k_in v_in z", "q_in k_in z v_in"),
    ("qwen3_next", "keys and queries exchanged"): other_order("q k v", "k q v"),
    ("qwen3_next", "no silu in the convolution"): attribute("CausalConv", "kind", "none"),
    ("qwen3_next", "eps of the lengths"): lambda m: m.setattr(recurrent, "UNIT_EPS", 0.1),
    ("qwen3_next", "q not scaled"): attribute("GatedDelta", "scale", 1.0),
    ("qwen3_next", "(1 + w) behind the delta rule"): offset_behind_delta,
    ("qwen3_5_text", "a and b exchanged"): exchanged(2, 3),
    ("qwen3_5_text", "no silu in the convolution"): attribute("CausalConv", "kind", "none"),
    ("qwen3_5_text", "the gate before q"): other_order("q q_gate", "q_gate q"),
}


@pytest.mark.parametrize(("family", "mistake"), GRAPHS)
def test_a_wrong_graph_is_seen(family: str, mistake: str, monkeypatch: Patch) -> None:
    GRAPHS[family, mistake](monkeypatch)
    assert error(family) > SEEN * BOUNDS[family]
