"""On the CPU an answer does not depend on its batch: the same bits whole, in chunks, one by one, in a batch."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import datong

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))
# frequencies of its rope depend on the length of the prompt: a token's logits change with what follows
PREFIX_FREE = {"internlm3_ntk"}
LENGTHS = (24, 1, 9, 17, 2)  # a batch of unequal sequences


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a.view(np.int32), b.view(np.int32)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - PREFIX_FREE))
def test_every_family_gives_the_same_bits(name: str) -> None:
    ids = load_file(GOLDENS / name / "golden.safetensors")["input_ids"][0]
    whole = datong.load(GOLDENS / name, threads=2)
    wanted = whole.logits(ids)
    for step in (7, 1):
        assert equal(wanted, datong.load(GOLDENS / name, threads=1, step_tokens=step).logits(ids)), step
    for n, got in zip(LENGTHS, whole.logits_batch([ids[:n] for n in LENGTHS]), strict=True):
        assert equal(wanted[:n], got), n


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"internlm3_ntk"}))  # whose context is 16
def test_a_large_step_gives_the_same_bits(name: str) -> None:
    """In one of 16 tokens per thread and more, each thread does some operators for tokens of its own."""
    models = [datong.load(GOLDENS / name, threads=n, step_tokens=128) for n in (1, 2)]
    length = min(101, models[0].context)
    assert length >= 2 * 16
    wanted, got = (
        model.logits(np.resize(load_file(GOLDENS / name / "golden.safetensors")["input_ids"][0], length))
        for model in models
    )
    assert equal(wanted, got)


@pytest.mark.smollm2
@pytest.mark.parametrize("isa", [None, "avx2", "ref"])
def test_a_quantised_model_gives_the_same_bits(isa: str | None) -> None:
    """8-bit activations turn a difference in the last place into another token; keys beyond one piece are merged."""
    rng = np.random.default_rng(3)
    ids = rng.integers(100, 40000, 60 if isa == "ref" else 560)
    wanted = datong.load("smollm2", threads=2, context=1024, isa=isa).logits(ids)
    for threads, step in ((1, 100), (2, 1)):
        model = datong.load("smollm2", threads=threads, context=1024, step_tokens=step, isa=isa)
        got = model.logits(ids[: 20 if isa == "ref" and step == 1 else 560])
        assert equal(wanted[: len(got)], got), (threads, step)
