"""graph.onnx beside a checkpoint: passes ONNX's full check, runs in ONNX Runtime as it is, with the right logits.

Goldens come with their answer. The variants (windows, biases, stored types, rope types) are tiny seeded checkpoints
that transformers makes here, with its own logits as the answer. transformers opens every directory after the import.
"""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import datong
from datong.importer.hf import import_directory
from datong.importer.imported import Imported
from datong.package.create import import_checkpoint
from datong.package.reader import Package

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
NAMES = ["llama3", "llama3_sharded", "smollm2", "qwen2", "qwen3", "internlm2", "internlm3"]
BOUND = 2e-3  # max |logit difference|; tests/data/goldens/README.md says why


class Runner:
    """A package directory in ONNX Runtime, with its cache kept outside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.imported: Imported = import_directory(directory)
        self.path = directory / "graph.onnx"
        ir.save(self.imported.model, self.path)
        self.session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])

    def run(
        self, ids: np.ndarray, past: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits [batch, seq, vocab] of ids [batch, seq], and the cache after them."""
        if past is None:
            past = {
                f"past_key_values.{c.layer}.{part}": np.zeros((len(ids), c.kv_heads, 0, dim), np.float32)
                for c in self.imported.caches
                for part, dim in (("key", c.key_dim), ("value", c.value_dim))
            }
        start = next(iter(past.values())).shape[2]
        positions = np.broadcast_to(np.arange(start, start + ids.shape[1]), ids.shape)
        feed = {"input_ids": ids, "position_ids": np.ascontiguousarray(positions), **past}
        names = [o.name for o in self.session.get_outputs()]
        logits, *presents = self.session.run(names, feed)
        return logits, {n.replace("present", "past_key_values"): a for n, a in zip(names[1:], presents, strict=True)}

    def stepwise(self, ids: np.ndarray, first: int) -> np.ndarray:
        """Logits of `first` tokens at once and the rest one by one through the cache."""
        logits, past = self.run(ids[:, :first])
        parts = [logits]
        for i in range(first, ids.shape[1]):
            logits, past = self.run(ids[:, i : i + 1], past)
            parts.append(logits)
        return np.concatenate(parts, axis=1)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def check_all_ways(runner: Runner, ids: np.ndarray, logits: np.ndarray) -> None:
    """Whole prompt, prompt and steps, and a batch of unequal right-padded prompts."""
    assert gap(runner.run(ids)[0], logits) <= BOUND
    assert gap(runner.stepwise(ids, 13), logits) <= BOUND
    batch = np.concatenate([ids, ids])
    batch[1, 17:] = 0
    padded = runner.run(batch)[0]
    assert gap(padded[:1], logits) <= BOUND
    assert gap(padded[1:, :17], logits[:, :17]) <= BOUND


def transformers_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)).logits.numpy())


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Runner, np.ndarray, np.ndarray]:
    directory = tmp_path_factory.mktemp("golden") / request.param
    shutil.copytree(GOLDENS / request.param, directory)
    answer = load_file(directory / "golden.safetensors")
    (directory / "golden.safetensors").unlink()
    return Runner(directory), answer["input_ids"], answer["logits"]


def test_golden_logits(checkpoint: tuple[Runner, np.ndarray, np.ndarray]) -> None:
    check_all_ways(*checkpoint)


def test_golden_graph_passes_the_full_check(checkpoint: tuple[Runner, np.ndarray, np.ndarray]) -> None:
    runner = checkpoint[0]
    onnx.checker.check_model(str(runner.path), full_check=True)
    model = onnx.load(str(runner.path), load_external_data=False)
    assert {o.domain for o in model.opset_import} == {""} and not model.functions, "stock operators only"
    assert model.opset_import[0].version == 27 and model.ir_version == 13
    assert runner.path.stat().st_size < 40_000, "weights stay outside"


def test_golden_shapes_are_what_inference_finds(checkpoint: tuple[Runner, np.ndarray, np.ndarray]) -> None:
    """Every shape that we state is what ONNX infers on its own, where it infers one."""
    stated = onnx.load(str(checkpoint[0].path), load_external_data=False)
    shapes = {v.name: v.type for v in stated.graph.value_info}
    del stated.graph.value_info[:]
    inferred = {v.name: v.type for v in onnx.shape_inference.infer_shapes(stated, strict_mode=True).graph.value_info}
    assert len(inferred) > 20 and set(inferred) <= set(shapes)
    for name, found in inferred.items():
        ours = shapes[name].tensor_type
        assert ours.elem_type == found.tensor_type.elem_type, name
        for own, other in zip(ours.shape.dim, found.tensor_type.shape.dim, strict=True):
            assert not other.HasField("dim_value") or own.dim_value == other.dim_value, name


def test_golden_directory_still_opens_in_transformers(checkpoint: tuple[Runner, np.ndarray, np.ndarray]) -> None:
    runner, ids, logits = checkpoint
    if runner.imported.family == "internlm2":
        assert "internlm2" not in transformers.CONFIG_MAPPING  # should it appear, this test must cover it
        return
    assert gap(transformers_logits(runner.directory, ids), logits) <= BOUND


def test_internlm3_refuses_nothing_within_its_context_and_says_where_it_ends() -> None:
    """Beyond max_position_embeddings `dynamic` rope depends on the whole prompt: the context stops before."""
    assert import_directory(GOLDENS / "internlm3_ntk").context_length == 16


# ---- variants: checkpoints made here -------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


SLIDES = ["sliding_attention", "full_attention", "sliding_attention"]
VARIANTS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama_biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama_attention_bias": (transformers.LlamaConfig, {"attention_bias": True}),
    "llama_linear": (transformers.LlamaConfig, {"rope_parameters": rope("linear", factor=3.0)}),
    "llama_head_dim": (transformers.LlamaConfig, {"head_dim": 24, "num_key_value_heads": 1}),
    "llama_bf16": (transformers.LlamaConfig, {"dtype": "bfloat16"}),
    "llama_f16_tied": (transformers.LlamaConfig, {"dtype": "float16", "tie_word_embeddings": True}),
    "mistral_window": (transformers.MistralConfig, {"sliding_window": 5, "head_dim": 32}),
    "mistral_full": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "qwen2_window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2_layer_types": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3, "layer_types": SLIDES},
    ),
    "qwen3_yarn": (
        transformers.Qwen3Config,
        {"head_dim": 32, "rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=16)},
    ),
    "qwen3_biases": (transformers.Qwen3Config, {"head_dim": 16, "attention_bias": True}),
    "internlm3_biases": (transformers.InternLM3Config, {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
}


def make_checkpoint(directory: Path, config_class: type[Any], changes: dict[str, Any]) -> np.ndarray:
    """Save a seeded model, norms and biases off their trivial values, in the config's dtype; 24 token ids."""
    values = {"rope_parameters": rope()} | SIZES | changes
    dtype = getattr(torch, values.pop("dtype", "float32"))
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**values), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.2 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(directory)
    return np.random.default_rng(1).integers(3, 96, (1, 24))


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_logits(name: str, tmp_path: Path) -> None:
    ids = make_checkpoint(tmp_path, *VARIANTS[name])
    logits = transformers_logits(tmp_path, ids)
    runner = Runner(tmp_path)
    onnx.checker.check_model(str(runner.path), full_check=True)
    check_all_ways(runner, ids, logits)
    runner.path.unlink()
    for device in ("cpu", "reference"):
        check_backend(import_checkpoint(tmp_path, force=True), device, ids[0], logits[0])


def check_backend(package: Package, device: str, ids: np.ndarray, logits: np.ndarray) -> None:
    """Whole prompt, chunks, token by token, and a batch of unequal prompts, on one of our backends."""
    for step in (64, 7, 1):
        model = datong.load(package, device=device, cache_dtype="f32", step_tokens=step)
        assert gap(model.logits(ids), logits) <= BOUND
    long, short = model.logits_batch([ids, ids[:11]])
    assert gap(long, logits) <= BOUND
    assert gap(short, logits[:11]) <= BOUND


def rewrite(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    values = json.loads((directory / "config.json").read_text(encoding="utf-8")) | config
    values = {k: v for k, v in values.items() if v is not ...}
    (directory / "config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_internlm2_with_biases_is_a_packed_llama(tmp_path: Path) -> None:
    """transformers has no internlm2: its answer is Llama's, with q, k, v interleaved per key-value head by hand."""
    ids = make_checkpoint(tmp_path, *VARIANTS["llama_attention_bias"])
    logits = transformers_logits(tmp_path, ids)
    names = {
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    }  # fmt: skip
    source, tensors = load_file(tmp_path / "model.safetensors"), {}
    for name, array in source.items():
        if "q_proj" in name:
            q, k, v = (
                source[name.replace("q_proj", f"{p}_proj")].reshape(2, g, 16, -1)
                for p, g in (("q", 2), ("k", 1), ("v", 1))
            )
            packed = np.concatenate([q, k, v], axis=1)
            packed = packed.reshape(-1, *array.shape[1:])
            tensors[name.replace("self_attn.q_proj", "attention.wqkv")] = np.ascontiguousarray(packed)
        elif "k_proj" not in name and "v_proj" not in name:
            tensors[functools.reduce(lambda n, old: n.replace(old, names[old]), names, name)] = array
    config = {"model_type": "internlm2", "bias": True, "attention_bias": ..., "mlp_bias": ...}
    rewrite(tmp_path, config, tensors)
    check_all_ways(Runner(tmp_path), ids, logits)


def test_internlm3_with_biases_on_qkv_alone(tmp_path: Path) -> None:
    """transformers refuses `qkv_bias` without `bias`: the answer is Llama's with the bias of o set to zero."""
    ids = make_checkpoint(tmp_path, *VARIANTS["llama_attention_bias"])
    tensors = load_file(tmp_path / "model.safetensors")
    for name in tensors:
        tensors[name] = tensors[name] * (0 if name.endswith("o_proj.bias") else 1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    logits = transformers_logits(tmp_path, ids)
    kept = {n: a for n, a in tensors.items() if not n.endswith("o_proj.bias")}
    config = {
        "model_type": "internlm3",
        "qkv_bias": True,
        "bias": False,
        "attention_bias": ...,
        "mlp_bias": ...,
        "pretraining_tp": ...,
    }
    rewrite(tmp_path, config, kept)
    check_all_ways(Runner(tmp_path), ids, logits)


@pytest.mark.parametrize("name", ["mistral_window", "qwen2_window", "qwen2_layer_types"])
def test_windows_matter(name: str, tmp_path: Path) -> None:
    """The comparison above can fail: with the window taken away the logits are far off."""
    ids = make_checkpoint(tmp_path, *VARIANTS[name])
    logits = transformers_logits(tmp_path, ids)
    runner = Runner(tmp_path)
    model = onnx.load(str(runner.path), load_external_data=False)
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name != "left_window_size"]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(model, str(runner.path))
    runner.session = onnxruntime.InferenceSession(str(runner.path), providers=["CPUExecutionProvider"])
    assert gap(runner.run(ids)[0], logits) > 0.1


def test_stored_types_are_kept(tmp_path: Path) -> None:
    """The graph points at the BF16 bytes as they are; the cast is a node."""
    make_checkpoint(tmp_path, *VARIANTS["llama_bf16"])
    runner = Runner(tmp_path)
    model = onnx.load(str(runner.path), load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    assert len(external) == 3 + 9 * 3
    assert {t.data_type for t in external} == {onnx.TensorProto.BFLOAT16}
    assert {e.value for t in external for e in t.external_data if e.key == "location"} == {"model.safetensors"}


def test_tied_embedding_is_one_initializer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, *VARIANTS["llama_f16_tied"])
    model = onnx.load(str(Runner(tmp_path).path), load_external_data=False)
    assert [t.name for t in model.graph.initializer if "embed" in t.name] == ["model.embed_tokens.weight"]
    assert not any("lm_head" in t.name for t in model.graph.initializer)


def test_same_checkpoint_same_bytes(tmp_path: Path) -> None:
    """Two imports of one checkpoint, from different places, write the same graph."""
    graphs = []
    for place in ("a", "b"):
        shutil.copytree(GOLDENS / "qwen3", tmp_path / place / "qwen3")
        graphs.append(Runner(tmp_path / place / "qwen3").path.read_bytes())
    assert graphs[0] == graphs[1]
