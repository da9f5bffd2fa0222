"""GGUF tensor names -> Hugging Face names, and the order of rows where llama.cpp's converter changed it.

llama.cpp rotates neighbouring channels (2i, 2i+1) in its `llama` and `internlm2` architectures; Hugging Face rotates
channel i with i + D/2. Its converter therefore moves whole rows of q and k (weights and biases) within each head:

    file row  h·D + 2i + j   =   Hugging Face row  h·D + j·D/2 + i        i < D/2, j in {0, 1}

Here the rows go back. `qwen2` and `qwen3` are stored in Hugging Face order. `internlm2` has its packed `wqkv` split
into q, k, v by the converter, so under Llama's names it is a Llama.
Source: llama.cpp conversion/llama.py `permute`, conversion/internlm.py, gguf-py tensor_mapping.py.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

ROPE_FREQS = "rope_freqs.weight"  # f32 [D / 2]: divides the inverse frequencies

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")
_ORDER = {name: place for place, name in enumerate(LAYER)}


def hf_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None where there is no counterpart."""
    if name in TOP:
        return TOP[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in LAYER:
        return None
    return f"model.layers.{match[1]}.{LAYER[match[2]]}.{match[3]}"


def model_order(name: str) -> tuple[int, int, int, str]:
    """Sort key of a GGUF name: embedding, layers as they run, last norm, head. Files list tensors in any order."""
    match = _LAYER_NAME.fullmatch(name)
    if match is not None:
        return (1, int(match[1]), _ORDER.get(match[2], len(_ORDER)), name)
    return (0 if name == "token_embd.weight" else 2, 0, list(TOP).index(name) if name in TOP else len(TOP), name)


def permuted_heads(name: str, heads: int, kv_heads: int) -> int:
    """Over how many heads the converter permuted the rows of this tensor; 0 where it did not."""
    match = _LAYER_NAME.fullmatch(name)
    return 0 if match is None else {"attn_q": heads, "attn_k": kv_heads}.get(match[2], 0)


def row_order(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """[heads * head_dim]: where in the file each Hugging Face row of q or k lies; `head_dim` is even."""
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
