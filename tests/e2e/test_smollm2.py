"""A real model, real weights: SmolLM2-135M-Instruct from its Q4_1 GGUF, held against llama.cpp on the same bits.

llama.cpp's answers were captured by tests/data/smollm2/capture_llama_cpp.py, so no peer is needed here.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import datong

pytestmark = pytest.mark.smollm2
DATA = Path(__file__).resolve().parents[1] / "data" / "smollm2"
PEER = json.loads((DATA / "llama_cpp.json").read_text(encoding="utf-8"))
LARGEST_GAP = 0.05  # logits; the bound on a first differing token
PERPLEXITY = 0.005  # relative


@pytest.fixture(scope="module")
def model() -> "datong.Model":
    return datong.load("smollm2", device="cpu", context=2048)


def log_likelihood(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(rows).sum(axis=1))


@pytest.mark.parametrize("case", PEER["greedy"], ids=lambda c: c["prompt"][:16].strip())
def test_greedy_continuation_equals_llama_cpp(model: "datong.Model", case: dict) -> None:
    answer = model.generate(case["ids"], max_tokens=len(case["tokens"]), temperature=0, ignore_eos=True)
    differs = [i for i, (a, b) in enumerate(zip(answer.tokens, case["tokens"], strict=True)) if a != b]
    if differs:
        step = differs[0]
        theirs = {int(i): logit for i, logit in case["top"][step]}
        assert answer.tokens[step] in theirs, f"step {step}: our token is not among llama.cpp's first ten"
        gap = theirs[case["tokens"][step]] - theirs[answer.tokens[step]]
        assert gap < LARGEST_GAP, f"step {step}: llama.cpp prefers its token by {gap}"


def test_prompts_are_tokenised_as_llama_cpp_does(model: "datong.Model") -> None:
    for case in PEER["greedy"]:
        assert model.tokenizer.encode(case["prompt"]) == case["ids"]


def test_perplexity_is_within_half_a_percent_of_llama_cpp(model: "datong.Model") -> None:
    ids = PEER["text"]["ids"]
    perplexity = float(np.exp(-log_likelihood(model.logits(np.asarray(ids)), ids).mean()))
    assert perplexity == pytest.approx(PEER["text"]["perplexity"], rel=PERPLEXITY)


def test_text_of_the_perplexity_test_is_tokenised_alike(model: "datong.Model") -> None:
    assert model.tokenizer.encode((DATA / "text.txt").read_text(encoding="utf-8")) == PEER["text"]["ids"]


CHILD = """
import json, re, sys
import datong
model = datong.load("smollm2", device="cpu", context=256)
answer = model.generate("The capital of France is", max_tokens=8, temperature=0)
entry = re.compile(r"model.safetensors")
private = shared = 0
weights = False
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        weights = line.rstrip().endswith("model.safetensors")
    elif weights and line.startswith(("Private_Dirty", "Anonymous")):
        private += int(line.split()[1])
    elif weights and line.startswith("Rss"):
        shared += int(line.split()[1])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"private": private, "mapped": shared, "peak": peak, "memory": model.memory()}))
"""


@pytest.fixture(scope="module")
def child(model: "datong.Model") -> dict:
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(run.stdout)


def test_a_second_process_maps_the_weights_without_a_copy(child: dict) -> None:
    assert child["private"] == 0
    assert child["mapped"] * 1024 > 80e6  # the weights really were read through the mapping
    assert child["memory"]["weights_private"] < 0.01 * child["memory"]["weights_mapped"]
