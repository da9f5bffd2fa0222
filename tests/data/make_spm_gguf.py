"""Trains a small SentencePiece BPE on tokenizer/lines.json: a GGUF file for llama.cpp, and what the tests keep of it.

    pip install sentencepiece gguf
    python tests/data/make_spm_gguf.py spm.gguf
    python tests/data/capture_llama_tokens.py spm.gguf tests/data/tokenizer/spm.npz

Writes tests/data/tokenizer/spm.json: pieces, scores, types, and SentencePiece's own ids of every line that holds no
user-defined or control token (there, SentencePiece and its ports go different ways by design).
Made with sentencepiece 0.2.3, gguf 0.19.0.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import gguf
import sentencepiece

FOLDER = Path(__file__).parent / "tokenizer"
ADDED = ["<|im_start|>", "<repo_name>"]  # none that llama.cpp takes for the end of a turn and retypes


def train(lines: list[str]) -> sentencepiece.SentencePieceProcessor:
    """As Llama 2 was: identity normalisation, digits apart, bytes for what is rare, runs of spaces as pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(part for line in lines for part in line.split("\n") if "\0" not in part),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=ADDED,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def kind(model: sentencepiece.SentencePieceProcessor, index: int) -> int:
    """GGUF's token types."""
    if model.IsUnknown(index):
        return 2
    if model.IsControl(index):
        return 3
    if model.IsByte(index):
        return 6
    return 4 if model.IdToPiece(index) in ADDED else 1


def main(target: str) -> None:
    lines = json.loads((FOLDER / "lines.json").read_text())
    model = train(lines)
    size = model.GetPieceSize()
    fixture = {
        "tokens": [model.IdToPiece(i) for i in range(size)],
        "scores": [model.GetScore(i) for i in range(size)],
        "types": [kind(model, i) for i in range(size)],
        "ids": [
            None if any(t in line for t in [*ADDED, "<s>", "</s>", "<unk>"]) else model.Encode(line) for line in lines
        ],
    }
    (FOLDER / "spm.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(fixture["tokens"])
    writer.add_token_scores(fixture["scores"])
    writer.add_token_types(fixture["types"])
    for add, index in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(index)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
