"""Names and rows go back to what the official converter started from."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from datong.importer.gguf.names import hf_name, model_order, permuted_heads, row_order


@pytest.mark.parametrize("arch", ["LLAMA", "QWEN2", "QWEN3"])
def test_names_are_the_inverse_of_the_official_map(arch: str) -> None:
    official = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], 3)
    parts = ["input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    parts += ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    parts += ["self_attn.q_norm", "self_attn.k_norm"] if arch == "QWEN3" else []
    theirs = [f"model.layers.{i}.{p}.{s}" for i in range(3) for p in parts for s in ("weight", "bias")]
    theirs += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for name in theirs:
        short = official.get_name(name, try_suffixes=(".weight", ".bias"))
        assert short is not None and hf_name(short) == name


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q", "blk.01.attn_q.weight", "blk.0.ffn_gate_exps.weight", "x", "blk.-1.attn_q.weight"]
)
def test_unknown_names(name: str) -> None:
    assert hf_name(name) is None


@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 8), (4, 64)])
def test_rows_go_back(heads: int, dim: int) -> None:
    """The converter's own permutation, conversion/llama.py `permute`, undone."""
    rows = np.arange(heads * dim * 5).reshape(heads * dim, 5)
    permuted = rows.reshape(heads, 2, dim // 2, 5).swapaxes(1, 2).reshape(rows.shape)
    assert np.array_equal(permuted[row_order(heads, dim)], rows)
    assert dim == 2 or not np.array_equal(permuted, rows)


def test_only_q_and_k_are_permuted() -> None:
    found = {
        n: permuted_heads(f"blk.0.{n}", 4, 2)
        for n in ("attn_q.weight", "attn_k.bias", "attn_v.weight", "ffn_up.weight")
    }
    assert found == {"attn_q.weight": 4, "attn_k.bias": 2, "attn_v.weight": 0, "ffn_up.weight": 0}
    assert permuted_heads("output.weight", 4, 2) == 0


def test_order_is_that_of_the_model() -> None:
    names = [
        "output.weight",
        "blk.10.attn_q.weight",
        "blk.2.ffn_down.weight",
        "output_norm.weight",
        "blk.2.attn_norm.weight",
    ]
    assert sorted([*names, "token_embd.weight"], key=model_order) == [
        "token_embd.weight", "blk.2.attn_norm.weight", "blk.2.ffn_down.weight", "blk.10.attn_q.weight",
        "output_norm.weight", "output.weight",
    ]  # fmt: skip
