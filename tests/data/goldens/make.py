#!/usr/bin/env python3
"""Make the checkpoints and reference logits of the families below, from transformers: `python make.py [NAME …]`.

The others in this folder were made elsewhere, see README.md; this is how to add one. Weights are seeded noise, norms
and biases moved off 1 and 0; logits are those of float32, eager attention, on the CPU.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
LENGTH = 24
Files = tuple[dict[str, Any], dict[str, torch.Tensor]]
TEXT = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
SIGLIP = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48}
GEMMA = {**TEXT, "num_hidden_layers": 4, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 7,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}  # fmt: skip
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


def flat(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Files:
    """As Qwen2.5-VL is published: text keys beside `vision_config`, rope as transformers 4 wrote it."""
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    del text["layer_types"]
    return {**text, **config}, tensors


def chat(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Files:
    """As InternVL is published by its makers: `llm_config`, `vision_model.`, `mlp1.`."""
    text = config.pop("text_config")
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["tie_word_embeddings"] = False
    keep = ("downsample_ratio", "dtype", "vision_config")
    outer = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "llm_config": text,
             "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "tie_word_embeddings": False,
             "hidden_size": 48}  # fmt: skip
    names = {"vision_tower.": "vision_model.", "multi_modal_projector.linear_": "mlp1."}
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = new + name[len(old) :] if name.startswith(old) else name
        if not name.startswith("multi_modal_projector"):
            renamed[name] = tensor
    return {**outer, **{key: config[key] for key in keep}}, renamed


def stepped(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Files:
    """As Step3-VL-10B and Step-3 are published: the text model with its own names, beside a vision tower."""
    qwen = config["model_type"] == "qwen3"
    noise = {"vision_model.conv1.weight": (16, 3, 2, 2), "vision_model.positional_embedding": (4, 16),
             "vit_downsampler1.weight": (32, 16, 3, 3), "vit_large_projector.weight": (48, 64)}  # fmt: skip
    vision = {"width": 16, "layers": 1, "heads": 2, "image_size": 28, "patch_size": 14}
    text = {key: value for key, value in config.items() if key != "architectures"}
    outer = {"model_type": "step_robotics" if qwen else "step3_vl", "text_config": text, "vision_config": vision,
             "architectures": ["StepVLForConditionalGeneration" if qwen else "Step3VLForConditionalGeneration"],
             "image_token_id": 90, "understand_projector_stride": 2, "projector_bias": not qwen,
             "hidden_size": config["hidden_size"], "tie_word_embeddings": False}  # fmt: skip
    return outer, {**tensors, **{name: torch.full(shape, 0.5) for name, shape in noise.items()}}


def m1(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Files:
    """As MiniMax-M1 is published: Text-01's layers and names under a model type of its own."""
    return {**config, "model_type": "minimax_m1", "architectures": ["MiniMaxM1ForCausalLM"]}, tensors


@dataclass(frozen=True)
class Spec:
    """One checkpoint: a class of transformers, its config, and how the published files differ from what it saves."""

    model: str
    config: dict[str, Any] | str  # a name: of a golden whose text model this one has
    published: Callable[..., Files] = lambda config, tensors: (config, tensors)


SPECS = {
    "gemma3": Spec("Gemma3ForConditionalGeneration", {
        "text_config": {**GEMMA, "layer_types": KINDS}, "vision_config": SIGLIP, "mm_tokens_per_image": 4,
    }),
    "gemma3_text": Spec("Gemma3ForCausalLM", {**GEMMA, "layer_types": KINDS}),
    "internvl": Spec("InternVLForConditionalGeneration", {
        "text_config": {**TEXT, "model_type": "qwen2"}, "tie_word_embeddings": True,
        "vision_config": {**SIGLIP, "image_size": [28, 28], "patch_size": [14, 14]},
    }),
    "internvl_chat": Spec("InternVLForConditionalGeneration", {
        "text_config": {**TEXT, "model_type": "qwen2"}, "tie_word_embeddings": False,
        "vision_config": {**SIGLIP, "image_size": [28, 28], "patch_size": [14, 14]},
    }, chat),
    "minimax_m1": Spec("", "minimax_text01", m1),
    "mistral": Spec("MistralForCausalLM", {**TEXT, "head_dim": 24, "sliding_window": 9}),
    "mixtral": Spec("MixtralForCausalLM", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi3": Spec("Phi3ForCausalLM", {**TEXT, "sliding_window": 9}),
    "phi4_mini": Spec("Phi3ForCausalLM", {
        **TEXT, "hidden_size": 64, "original_max_position_embeddings": 64, "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                            "short_factor": [1.0, 1.1, 1.2, 1.5, 1.9, 2.6],
                            "long_factor": [1.0, 1.4, 2.1, 4.4, 8.0, 20.0]},
    }),
    "qwen2_5_vl": Spec("Qwen2_5_VLForConditionalGeneration", {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
                                                    "mrope_section": [2, 2, 2]}},
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]},
    }, flat),
    "qwen3_5": Spec("Qwen3_5ForConditionalGeneration", {
        "text_config": {**TEXT, "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2,
                        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5,
                                            "mrope_section": [2, 1, 1], "mrope_interleaved": True}},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
    }),
    "qwen3_vl": Spec("Qwen3VLForConditionalGeneration", {
        "text_config": {**TEXT, "head_dim": 16,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2],
                                            "mrope_interleaved": True}},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    }),
    "step3_vl": Spec("", "step3_text", stepped),
    "step_robotics": Spec("Qwen3ForCausalLM", {**TEXT, "head_dim": 16}, stepped),
}  # fmt: skip


def build(spec: Spec, seed: int) -> tuple[Files, dict[str, torch.Tensor]]:
    """The files as transformers saves them, and the answer."""
    model_class = getattr(transformers, spec.model)
    torch.manual_seed(seed)
    assert isinstance(spec.config, dict)
    config = model_class.config_class(**spec.config)
    model = model_class._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            size = 0.1 if re.search(r"norm\w*\.weight$", key) else 0.05 if key.endswith("bias") else 0.0
            tensor.add_(torch.randn(tensor.shape, generator=generator) * size)
        ids = torch.randint(3, 94, (1, LENGTH), generator=generator)
        logits = model(input_ids=ids, use_cache=False).logits
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        return read(Path(saved)), {"input_ids": ids, "logits": logits.contiguous()}


def read(directory: Path) -> Files:
    """A checkpoint of one file."""
    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def make(name: str, seed: int = 0) -> None:
    """Write one directory."""
    spec, directory = SPECS[name], HERE / name
    if isinstance(spec.config, str):
        files, golden = read(HERE / spec.config), load_file(HERE / spec.config / "golden.safetensors")
    else:
        files, golden = build(spec, seed)
    config, tensors = spec.published(*files)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    save_file(golden, directory / "golden.safetensors")
    size = sum(f.stat().st_size for f in directory.iterdir()) // 1024
    print(f"{name}: {size} KiB, logits up to {float(golden['logits'].abs().max()):.2f}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or SPECS:
        make(wanted)
