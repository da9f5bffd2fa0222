"""What 8-bit activations cost: perplexity at the defaults beside that with nothing rounded, on the same weights.

    python bench/perplexity.py MODEL TEXT [TEXT ...] [--isa avx2] [--tokens 20000] [--csv results/perplexity-NAME.csv]

The texts are read one behind another and cut into windows of 1,024 tokens, each on its own. Printed: both perplexities,
the difference with its standard error, and KL(exact || default) in nats per token. The difference of one short text is
mostly chance: its standard error is about sqrt(2 KL / tokens), its expectation about KL.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

import datong

WINDOW = 1024


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--isa")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    for path in given.texts:
        if not path.is_file():
            parser.error(f"{path} is no file")
    exact = datong.load(given.model, context=WINDOW, isa=given.isa, activations="f32", cache_dtype="f32")
    default = datong.load(given.model, context=WINDOW, isa=given.isa)
    ids = exact.tokenizer.encode("\n\n".join(path.read_text(encoding="utf-8") for path in given.texts))[: given.tokens]
    exact_nll, default_nll, kl = [], [], []
    for at in range(0, len(ids) - 1, WINDOW):
        window = ids[at : at + WINDOW]
        a, b = log_softmax(exact.logits(window)), log_softmax(default.logits(window))
        kl.append((np.exp(a) * (a - b)).sum(axis=-1))
        index = np.arange(len(window) - 1)
        exact_nll.append(-a[index, window[1:]])
        default_nll.append(-b[index, window[1:]])
        print(f"\r{at + len(window)} of {len(ids)} tokens", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    before, after = np.concatenate(exact_nll), np.concatenate(default_nll)
    difference = after - before
    row = {
        "model": Path(given.model).name,
        "isa": given.isa or "best",
        "tokens": len(before),
        "exact": f"{np.exp(before.mean()):.3f}",
        "default": f"{np.exp(after.mean()):.3f}",
        "percent": f"{100 * np.expm1(difference.mean()):+.3f}",
        "standard_error": f"{100 * difference.std() / len(difference) ** 0.5:.3f}",
        "kl": f"{np.concatenate(kl).mean():.5f}",
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    if given.csv:
        new = not given.csv.exists()
        with given.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
