"""Level 3: whole small models on a device against the definition, however their tokens are cut into steps.

    for result in run_models("mychip"): ...            one ModelResult per row of MODELS

The models are made here, with random weights in f32, as a Hugging Face directory; they go the whole way through
importer, package, compiler and engine. Tokens come at once, in pieces, one by one, and in a batch of unequal lengths.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.engine.load import load
from datong.engine.model import Model
from datong.errors import DatongError, FallbackWarning
from datong.importer.layout import header
from datong.package.create import import_checkpoint

Array = NDArray[Any]

BOUND = 2e-3  # of a logit; they reach 5 to 8, and a feature left out moves them by 0.3 or more
TOKENS = 24
_BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 131,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama, grouped heads": {},
    "llama, tied, one key head": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "mistral, window of 5": {"model_type": "mistral", "sliding_window": 5},
    "qwen3, norms in the heads": {"model_type": "qwen3", "head_dim": 32},
}


@dataclass(frozen=True)
class ModelResult:
    """What came of one model. state: passed | failed."""

    model: str
    state: str
    worst: float = float("inf")  # largest difference of a logit, over all ways
    elsewhere: tuple[str, ...] = ()  # nodes that another backend ran
    reason: str = ""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: dtypes.DType = dtypes.F32

    @property
    def length(self) -> int:
        return 4 * int(np.prod(self.shape))


def run_models(device: str, options: Mapping[str, Any] | None = None) -> Iterator[ModelResult]:
    """Run every model on a device; `options` go to `datong.load`. An exception of Datong is a failure with its text."""
    with tempfile.TemporaryDirectory(prefix="datong-models-") as directory:
        for number, (name, changes) in enumerate(MODELS.items()):
            root = make_checkpoint(Path(directory) / str(number), {**_BASE, **changes}, seed=number)
            try:
                import_checkpoint(root)
                with warnings.catch_warnings(action="ignore", category=FallbackWarning):  # `elsewhere` says it
                    result = _run(name, root, device, options or {})
            except DatongError as error:
                result = ModelResult(name, "failed", reason=str(error))
            yield result


def _run(name: str, root: Path, device: str, options: Mapping[str, Any]) -> ModelResult:
    ids = np.random.default_rng(0).integers(0, 131, TOKENS)
    expected = load(root, "reference").logits(ids)
    worst, elsewhere = 0.0, []
    for step_tokens in (512, 7, 1):
        model = load(root, device, step_tokens=step_tokens, **options)
        elsewhere = [f"{placed.op} {placed.node}" for backend, placed in model.placement() if backend == "reference"]
        worst = max(worst, _difference(model, ids, expected))
    state = "passed" if worst <= BOUND else "failed"
    reason = "" if state == "passed" else f"a logit differs by {worst:.3g}, at most {BOUND} is allowed"
    return ModelResult(name, state, worst, tuple(elsewhere) if device != "reference" else (), reason)


def _difference(model: Model, ids: Array, expected: Array) -> float:
    """Of one sequence and of a batch of unequal ones."""
    lengths = [TOKENS, 1, 9, 17]
    answers = model.logits_batch([ids[:n] for n in lengths])
    return max(float(np.abs(answer - expected[:n]).max()) for n, answer in zip(lengths, answers, strict=True))


def make_checkpoint(directory: Path, config: Mapping[str, Any], seed: int) -> Path:
    """Write `config.json` and `model.safetensors` with random weights into a new directory; returns it."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    tensors, rng = list(_tensors(config)), np.random.default_rng(seed)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(header(tensors))
        for tensor in tensors:
            norm = len(tensor.shape) == 1 and "norm" in tensor.name
            size = 1.0 if norm else tensor.shape[-1] ** -0.5 if len(tensor.shape) == 2 else 0.1
            values = rng.standard_normal(tensor.shape, np.float32) * np.float32(0.2 if norm else size)
            file.write((values + np.float32(norm)).tobytes())
    return directory


def _tensors(c: Mapping[str, Any]) -> Iterator[_Tensor]:
    """The tensors of a Llama-shaped checkpoint, under their Hugging Face names."""
    width, inner = int(c["hidden_size"]), int(c["intermediate_size"])
    q, kv = (int(c[n]) * int(c["head_dim"]) for n in ("num_attention_heads", "num_key_value_heads"))
    yield _Tensor("model.embed_tokens.weight", (int(c["vocab_size"]), width))
    yield _Tensor("model.norm.weight", (width,))
    if not c["tie_word_embeddings"]:
        yield _Tensor("lm_head.weight", (int(c["vocab_size"]), width))
    linears = {
        "self_attn.q_proj": (q, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, q), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    for layer in range(int(c["num_hidden_layers"])):
        start = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield _Tensor(f"{start}.{name}.weight", (width,))
        if c["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                yield _Tensor(f"{start}.self_attn.{name}.weight", (int(c["head_dim"]),))
        for name, shape in linears.items():
            yield _Tensor(f"{start}.{name}.weight", shape)
            if c.get("attention_bias" if name.startswith("self_attn") else "mlp_bias"):
                yield _Tensor(f"{start}.{name}.bias", shape[:1])
