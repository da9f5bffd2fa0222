"""Ask llama.cpp what it makes of our prompts and text, on the same GGUF file: the oracle of tests/e2e/test_smollm2.py.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36
    python tests/data/smollm2/capture_llama_cpp.py i8 path/to/SmolLM2-135M-Instruct.Q4_1.gguf

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS" pip install llama-cpp-python==0.3.36
    python tests/data/smollm2/capture_llama_cpp.py f32 path/to/SmolLM2-135M-Instruct.Q4_1.gguf

The first is llama.cpp as people use it: activations are rounded to 8 bits, which moves logits by 0.1 (standard
deviation), and differently in any two programs, or with two instruction sets of one. The second is made after it.
It multiplies batches of 32 tokens and more in f32 (ggml's BLAS backend); every token is therefore computed within a
batch of at least 64.

Writes llama_cpp_i8.json or llama_cpp_f32.json beside this file: for each prompt its token ids, 64 greedy tokens, and at
each step the ten highest logits; for the text its token ids and the negative log-likelihood of each token given all
before.
"""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama

HERE = Path(__file__).parent
STEPS, TOP = 64, 10


def top(logits: np.ndarray) -> list[list[float]]:
    order = np.argsort(-logits)[:TOP]
    return [[int(i), round(float(logits[i]), 4)] for i in order]


def greedy(model: Llama, prompt: str) -> dict[str, object]:
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    tokens, tops, feed = [], [], ids
    model.reset()
    for _ in range(STEPS):
        model.eval(feed)
        tops.append(top(np.asarray(model.scores[model.n_tokens - 1])))
        tokens.append(tops[-1][0][0])
        feed = [tokens[-1]]
    return {"prompt": prompt, "ids": ids, "tokens": tokens, "top": tops}


def greedy_in_batches(model: Llama, prompt: str) -> dict[str, object]:
    """The same, each token computed in a batch with all before it: a draft is checked until nothing changes."""
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    known = json.loads((HERE / "llama_cpp_i8.json").read_text(encoding="utf-8"))["greedy"]
    draft = next(case["tokens"] for case in known if case["prompt"] == prompt)
    while True:
        model.reset()
        model.eval(ids + draft)  # what follows a token does not change it: the model is causal
        rows = np.asarray(model.scores[len(ids) - 1 : len(ids) - 1 + STEPS])
        tokens = [int(t) for t in rows.argmax(axis=1)]
        if tokens == draft:
            return {"prompt": prompt, "ids": ids, "tokens": tokens, "top": [top(row) for row in rows]}
        draft = tokens


def losses(model: Llama, text: str) -> dict[str, object]:
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    model.reset()
    model.eval(ids)
    scores = np.asarray(model.scores[: len(ids)], dtype=np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    nll = -log_probs[np.arange(len(ids) - 1), ids[1:]]
    return {"ids": ids, "nll": [round(float(x), 5) for x in nll], "perplexity": float(np.exp(nll.mean()))}


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    run = {"i8": greedy, "f32": greedy_in_batches}[kind]
    model = Llama(str(path), n_ctx=2048, n_batch=512, n_threads=2, n_threads_batch=2, logits_all=True, verbose=False)
    prompts = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    answer = {
        "made_by": f"llama-cpp-python {llama_cpp.__version__}, CPU, 2 threads, activations {kind}",
        "file": path.name,
        "greedy": [run(model, p) for p in prompts],
        "text": losses(model, (HERE / "text.txt").read_text(encoding="utf-8")),
    }
    (HERE / f"llama_cpp_{kind}.json").write_text(json.dumps(answer, separators=(",", ":")) + "\n", encoding="utf-8")
    print(answer["text"]["perplexity"], len(answer["text"]["ids"]))


if __name__ == "__main__":
    main()
