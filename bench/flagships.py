"""What it costs to import the largest models: sparse checkpoints of full size, as published, without their weights.

    python bench/flagships.py [NAME …] [--directory DIR]

Each checkpoint has the published shapes (bf16; `fp8`: projections and experts as published, in FP8 with a scale for
each tile of 128 x 128), a header for every tensor and a file of full length that holds no data.
A child process imports it in place; printed are its time and peak memory, the package's sizes, and the memory formula
beside a count by hand. CSV into bench/results/. Sources of the shapes: the makers' configs and technical reports.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compare import commit, machine

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Flagship:
    """A config, and what a person counts: parameters (10^9) and cache numbers per token in all layers together."""

    config: dict[str, Any]
    parameters: float
    per_token: int
    state_bytes: int = 0
    fp8: bool = False  # tiles of 128 x 128
    mxfp8: bool = False  # 32 neighbours


STEP35_LAYERS = 45
STEP35_KINDS = ["full_attention" if i % 4 == 0 else "sliding_attention" for i in range(STEP35_LAYERS + 3)]
MODELS = {
    # 60.9 M (attention) * 61 + experts 48 * 3 * 7168 * 5120 * 56 layers + shared + dense + embeddings
    "Step-3": Flagship(
        {"model_type": "step3_text", "hidden_size": 7168, "num_hidden_layers": 61, "intermediate_size": 18432,
         "vocab_size": 128815, "max_position_embedding": 65536, "rms_norm_eps": 1e-5, "rope_theta": 500000,
         "num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256, "share_q_dim": 2048,
         "moe_layers_enum": ",".join(map(str, range(4, 60))), "moe_num_experts": 48, "moe_top_k": 3,
         "moe_intermediate_size": 5120, "share_expert_dim": 5120, "norm_expert_weight": False},
        parameters=(61 * (7168 * 2048 + 2048 * 16384 + 2 * 7168 * 256 + 16384 * 7168)
                    + 56 * (49 * 3 * 7168 * 5120 + 48 * 7168) + 5 * 3 * 7168 * 18432 + 2 * 128815 * 7168) / 1e9,
        per_token=61 * 512,
    ),
    "Step-3.5-Flash": Flagship(
        {"model_type": "step3p5", "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
         "vocab_size": 128896, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144, "layer_types": STEP35_KINDS,
         "sliding_window": 512, "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128,
         "attention_other_setting": {"attention_type": "sliding_attention", "num_attention_heads": 96,
                                     "num_attention_groups": 8, "head_dim": 128},
         "rope_theta": [5e6 if k == "full_attention" else 1e4 for k in STEP35_KINDS],
         "partial_rotary_factors": [0.5 if k == "full_attention" else 1.0 for k in STEP35_KINDS],
         "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 131072,
                          "low_freq_factor": 1.0, "high_freq_factor": 32.0},
         "yarn_only_types": ["full_attention"], "moe_layers_enum": ",".join(map(str, range(3, 45))),
         "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280, "share_expert_dim": 1280,
         "moe_router_activation": "sigmoid", "moe_router_scaling_factor": 3.0, "norm_expert_weight": True,
         "swiglu_limits": [0.0] * 43 + [7.0, 7.0] + [0.0] * 3,
         "swiglu_limits_shared": [0.0] * 43 + [16.0, 16.0] + [0.0] * 3, "num_nextn_predict_layers": 3},
        parameters=(12 * 4096 * (64 + 64 + 8 + 8) * 128 + 33 * 4096 * (96 + 96 + 8 + 8) * 128
                    + 42 * (289 * 3 * 4096 * 1280 + 288 * 4096) + 3 * 3 * 4096 * 11264 + 2 * 128896 * 4096) / 1e9,
        per_token=45 * 2 * 8 * 128,
    ),
    "MiniMax-M1": Flagship(
        {"model_type": "minimax_m1", "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80,
         "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10, "num_attention_heads": 64, "num_key_value_heads": 8,
         "head_dim": 128, "rotary_dim": 64, "rope_theta": 1e7, "max_position_embeddings": 10240000,
         "rms_norm_eps": 1e-5, "vocab_size": 200064, "num_local_experts": 32, "num_experts_per_tok": 2,
         "postnorm": True, "hidden_act": "silu", "shared_intermediate_size": 0,
         "layernorm_full_attention_alpha": 3.5565588200778455, "layernorm_full_attention_beta": 1.0,
         "layernorm_linear_attention_alpha": 3.5565588200778455, "layernorm_linear_attention_beta": 1.0,
         "layernorm_mlp_alpha": 3.5565588200778455, "layernorm_mlp_beta": 1.0},
        parameters=(70 * 5 * 6144 * 8192 + 10 * 6144 * (64 + 64 + 8 + 8) * 128
                    + 80 * (32 * 3 * 6144 * 9216 + 32 * 6144) + 2 * 200064 * 6144) / 1e9,
        per_token=10 * 2 * 8 * 128, state_bytes=70 * 64 * 128 * 128 * 4,
    ),
    "MiniMax-M2 (bf16)": Flagship(
        {"model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
         "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "rotary_dim": 64, "rope_theta": 5e6,
         "max_position_embeddings": 196608, "rms_norm_eps": 1e-6, "vocab_size": 200064, "num_local_experts": 256,
         "num_experts_per_tok": 8, "attn_type_list": [1] * 62, "use_qk_norm": True, "qk_norm_type": "per_layer",
         "scoring_func": "sigmoid", "use_routing_bias": True, "use_mtp": True, "num_mtp_modules": 3},
        parameters=(62 * 3072 * (48 + 48 + 8 + 8) * 128 + 62 * (256 * 3 * 3072 * 1536 + 256 * 3072)
                    + 2 * 200064 * 3072) / 1e9,
        per_token=62 * 2 * 8 * 128,
    ),
    "DeepSeek-V3 (bf16)": Flagship(
        {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
         "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
         "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
         "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
         "scoring_func": "sigmoid", "topk_method": "noaux_tc", "first_k_dense_replace": 3,
         "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
         "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                          "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
        parameters=(61 * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)
                    + 58 * (257 * 3 * 7168 * 2048 + 256 * 7168) + 3 * 3 * 7168 * 18432 + 2 * 129280 * 7168) / 1e9,
        per_token=61 * (512 + 64),
    ),
    "MiniMax-M3 (bf16)": Flagship(
        {"model_type": "minimax_m3_vl", "text_config": {
            "model_type": "minimax_m3_vl_text", "hidden_size": 6144, "intermediate_size": 3072,
            "num_hidden_layers": 60, "dense_intermediate_size": 12288, "shared_intermediate_size": 3072,
            "n_shared_experts": 1, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
            "rotary_dim": 64, "rope_theta": 5e6, "max_position_embeddings": 524288, "vocab_size": 200064,
            "rms_norm_eps": 1e-6, "num_local_experts": 128, "num_experts_per_tok": 4, "routed_scaling_factor": 2.0,
            "scoring_func": "sigmoid", "hidden_act": "swigluoai", "use_routing_bias": True, "use_qk_norm": True,
            "qk_norm_type": "per_head", "use_gemma_norm": True, "moe_layer_freq": [0] * 3 + [1] * 57,
            "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
            "sparse_attention_config": {
                "use_sparse_attention": True, "sparse_num_index_heads": 4, "sparse_index_dim": 128,
                "sparse_block_size": 128, "sparse_topk_blocks": 16, "sparse_local_block": 1, "sparse_init_block": 0,
                "sparse_score_type": "max", "sparse_attention_freq": [0] * 3 + [1] * 57}}},
        parameters=(60 * 6144 * 128 * (64 + 64 + 4 + 4) + 57 * 6144 * 128 * (4 + 1) + 3 * 3 * 6144 * 12288
                    + 57 * (129 * 3 * 6144 * 3072 + 128 * 6144) + 2 * 200064 * 6144) / 1e9,
        per_token=60 * 2 * 4 * 128 + 57 * 128,  # keys and values, and one index key
    ),
    "SenseNova-U1-A3B": Flagship(
        {"model_type": "neo_chat", "llm_config": {
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "intermediate_size": 6144, "norm_topk_prob": True, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 5e6, "rope_theta_hw": 1e4, "max_position_embeddings": 262144,
            "max_position_embeddings_hw": 10000}},
        parameters=(48 * (2048 * (32 + 32 + 4 + 4) * 128 + 128 * 3 * 2048 * 768 + 128 * 2048)
                    + 2 * 151936 * 2048) / 1e9,
        per_token=48 * 2 * 4 * 128,
    ),
}  # fmt: skip


for _name in ("MiniMax-M2", "DeepSeek-V3"):
    MODELS[f"{_name} (fp8)"] = replace(MODELS[f"{_name} (bf16)"], fp8=True)

MODELS["MiniMax-M3 (mxfp8)"] = replace(MODELS["MiniMax-M3 (bf16)"], mxfp8=True)

# Published in FP8: projections and experts; not router, norms, embedding, head and the eh_proj of speculation.
IN_FP8 = re.compile(r".*(?<!eh)(_proj|_proj_with_mqa|\.w[123])\.weight")


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that the family reads, by name."""
    from datong.importer.registry import build_model
    from datong.importer.weights import StoredTensor, Weight, WeightMap
    from datong.spec.formats import PLAIN_BF16

    class Everything(WeightMap):
        """Has whatever is asked for, and remembers it."""

        def has(self, name: str) -> bool:
            return not name.endswith((".shared_head.head.weight", ".transformer.shared_head.output.weight"))

        def take(self, name: str, shape: tuple[int, ...]) -> Weight:
            if name not in self.weights:
                size = 2
                for dim in shape:
                    size *= dim
                stored = StoredTensor(name, PLAIN_BF16.codes, shape, "model.safetensors", 0, size)
                self.weights[name] = Weight(name, PLAIN_BF16, shape, {"codes": stored})
            self.taken.add(name)
            return self.weights[name]

    found = Everything({})
    build_model(config, found)
    return {name: weight.shape for name, weight in found.weights.items()}


def tensors(model: Flagship) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Name -> type, shape and bytes of every tensor of the checkpoint."""
    found: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name, shape in shapes(model.config).items():
        if model.fp8 and IN_FP8.fullmatch(name):
            tiles = tuple(-(-dim // 128) for dim in shape)
            found[name] = "F8_E4M3", shape, math.prod(shape)
            found[f"{name}_scale_inv"] = "F32", tiles, 4 * math.prod(tiles)
        elif model.mxfp8 and IN_FP8.fullmatch(name):
            found[name] = "F8_E4M3", shape, math.prod(shape)
            found[f"{name}_scale_inv"] = "U8", (*shape[:-1], shape[-1] // 32), math.prod(shape) // 32
        else:
            found[name] = "BF16", shape, 2 * math.prod(shape)
    return found


def write(directory: Path, model: Flagship) -> int:
    """A sparse checkpoint; returns its length in bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, size) in tensors(model).items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    mxfp8 = {"quant_method": "mxfp8", "activation_scheme": "dynamic", "weight_block_size": [1, 32]}
    config = model.config
    if model.fp8 or model.mxfp8:
        config = {**model.config, "quantization_config": fp8 if model.fp8 else mxfp8}
    (directory / "config.json").write_text(json.dumps(config))
    return 8 + len(text) + at


def child(directory: str) -> None:
    """Import, and say what came of it."""
    from datong.package.create import import_checkpoint

    begin = time.perf_counter()
    package = import_checkpoint(directory)
    seconds = time.perf_counter() - begin
    m = package.manifest
    print(json.dumps({
        "seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": m.weights.parameters / 1e9, "weight_bytes": m.weights.bytes,
        "per_token": sum(use.layers * use.values_per_token for use in m.memory.cache),
        "state_bytes": m.memory.state_bytes,
        "graph_mib": (package.root / "graph.onnx").stat().st_size / 2**20, "heads": len(m.speculation),
        "manifest_mib": (package.root / "datong.json").stat().st_size / 2**20,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    rows = []
    heads = (("model", -22), ("checkpoint", 12), ("import", 9), ("memory", 10), ("parameters", 13), ("by hand", 10),
             ("per token", 11), ("by hand", 9))  # fmt: skip
    print("".join(f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in heads))
    for name in options.names:
        model = MODELS[name]
        directory = Path(tempfile.mkdtemp(dir=options.directory))
        try:
            length = write(directory, model)
            command = [sys.executable, __file__, "--child", str(directory)]
            out = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
            if out.returncode:
                print(f"{name:<22}{out.stderr.strip().splitlines()[-1] if out.stderr else 'failed'}")
                continue
            got = json.loads(out.stdout)
        finally:
            shutil.rmtree(directory)
        print(f"{name:<22}{length / 1e9:>9.0f} GB{got['seconds']:>7.1f} s{got['peak_mib']:>6.0f} MiB"
              f"{got['parameters']:>11.2f} B{model.parameters:>8.2f} B{got['per_token']:>11}"
              f"{model.per_token:>9}")  # fmt: skip
        rows.append([name, length, round(got["seconds"], 2), round(got["peak_mib"]), round(got["parameters"], 3),
                     round(model.parameters, 3), got["per_token"], model.per_token, got["state_bytes"],
                     model.state_bytes, got["heads"], round(got["graph_mib"], 1),
                     round(got["manifest_mib"], 1)])  # fmt: skip
    target = HERE / "results" / "flagships.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f"# {machine()} | commit {commit()} | python bench/flagships.py"])
        writer.writerow(["model", "checkpoint bytes", "import s", "peak MiB", "parameters 1e9", "by hand",
                         "cache per token", "by hand", "state bytes", "by hand", "heads", "graph MiB",
                         "manifest MiB"])  # fmt: skip
        writer.writerows(rows)


if __name__ == "__main__":
    main()
