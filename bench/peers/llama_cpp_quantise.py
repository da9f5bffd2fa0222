"""llama.cpp's own quantiser, and the log-likelihoods of a text. One job a call; see bench/quantise.py.

llama_cpp_quantise.py quantise IN.gguf OUT.gguf F32|Q4_0|Q8_0
llama_cpp_quantise.py score MODEL.gguf IDS.json       prints a JSON list, log p of each token but the first
llama_cpp_quantise.py version
"""

import json
import sys

import llama_cpp
import numpy as np

FTYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7}  # enum llama_ftype of llama.h


def quantise(source: str, target: str, kind: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FTYPES[kind], 2, True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        sys.exit(f"llama_model_quantize failed on {source}")


def score(path: str, ids_file: str) -> None:
    with open(ids_file) as file:
        ids = json.load(file)
    model = llama_cpp.Llama(path, n_ctx=2048, n_batch=512, n_threads=2, n_threads_batch=2, logits_all=True,
                            verbose=False)  # fmt: skip
    model.eval(ids)
    rows = np.asarray(model.scores[: len(ids) - 1], dtype=np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    found = rows[np.arange(len(rows)), ids[1:]] - np.log(np.exp(rows).sum(axis=1))
    print(json.dumps([round(float(x), 6) for x in found]))


def main() -> None:
    match sys.argv[1:]:
        case ["quantise", source, target, kind]:
            quantise(source, target, kind)
        case ["score", path, ids]:
            score(path, ids)
        case ["version"]:
            print(llama_cpp.__version__)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
