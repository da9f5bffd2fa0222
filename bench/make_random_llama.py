"""A Llama of 1.1 billion random parameters in Q4_0, for speed and memory where weights, not Python, are what is big.

    python bench/make_random_llama.py SOURCE.gguf rand1b.gguf

Shapes are TinyLlama's (22 layers, hidden 2048, 32 heads, 4 key-value heads), the tokenizer is SOURCE's (SmolLM2's).
Needs the PyPI package gguf. Seeded: the same bytes every time.
"""

import sys

import gguf
import numpy as np

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 2048, 5632, 22, 32, 4, 4096
SCALE = 0.02 / 4.6  # codes are uniform in -8..7, whose standard deviation is 4.6: weights get 0.02


def main() -> None:
    source, writer = gguf.GGUFReader(sys.argv[1]), gguf.GGUFWriter(sys.argv[2], "llama")
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.empty((rows, columns // 32, 18), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
        blocks[..., 2:] = rng.integers(0, 256, (rows, columns // 32, 16), dtype=np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    tokens = source.fields["tokenizer.ggml.tokens"].contents()
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(source.fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(source.fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    matrix("token_embd.weight", len(tokens), HIDDEN)
    matrix("output.weight", len(tokens), HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        matrix(f"{at}attn_q.weight", HIDDEN, HIDDEN)
        matrix(f"{at}attn_k.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        matrix(f"{at}attn_v.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        matrix(f"{at}attn_output.weight", HIDDEN, HIDDEN)
        matrix(f"{at}ffn_gate.weight", FFN, HIDDEN)
        matrix(f"{at}ffn_up.weight", FFN, HIDDEN)
        matrix(f"{at}ffn_down.weight", HIDDEN, FFN)
        norm(f"{at}attn_norm.weight")
        norm(f"{at}ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
