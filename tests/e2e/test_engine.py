"""Golden checkpoints through the public API: the logits of the official implementation, however they are asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import datong

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
FAMILIES = ["internlm2", "internlm3", "llama3", "llama3_sharded", "qwen2", "qwen3", "smollm2"]
FAMILIES += ["glm4", "neo_chat", "step1"]
FAMILIES += ["glm4_moe", "gpt_oss", "minimax_m2", "qwen3_moe", "step3_text", "step3p5", "step3p7"]
FAMILIES += ["deepseek_v3", "glm4_moe_lite"]
FAMILIES += ["minimax_text01", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"]
DEVICES = ["reference", "cpu"]
BOTH = [(family, device) for family in FAMILIES for device in DEVICES]
BOUND = 2e-3  # tests/data/goldens/README.md


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache directory for the module, so that every family is imported and compiled once per device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def load(cache):
    """`load(family, device, …)` with models kept for the module."""
    kept: dict[object, datong.Model] = {}

    def loaded(family: str, device: str, **options) -> datong.Model:
        key = (family, device, *sorted(options.items()))
        if key not in kept:
            kept[key] = datong.load(GOLDENS / family, device, cache_dtype="f32", strict=True, **options)
        return kept[key]

    return loaded


def answer(family: str) -> tuple[np.ndarray, np.ndarray]:
    """ids [24], logits [24, vocab]."""
    stored = load_file(GOLDENS / family / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


@pytest.mark.parametrize(("family", "device"), BOTH)
def test_whole_prompt(load, family, device):
    ids, logits = answer(family)
    got = load(family, device).logits(ids)
    assert got.shape == logits.shape and got.dtype == np.float32
    assert np.abs(got - logits).max() <= BOUND


@pytest.mark.parametrize("step_tokens", [7, 1], ids=["chunks", "token by token"])
@pytest.mark.parametrize(("family", "device"), BOTH)
def test_cut_into_steps(load, family, device, step_tokens):
    ids, logits = answer(family)
    assert np.abs(load(family, device, step_tokens=step_tokens).logits(ids) - logits).max() <= BOUND


@pytest.mark.parametrize(("family", "device"), BOTH)
def test_batch_of_unequal_sequences(load, family, device):
    ids, logits = answer(family)
    lengths = [24, 1, 9, 17, 2]
    for options in ({}, {"step_tokens": 10, "step_rows": 6}):
        batch = load(family, device, **options).logits_batch([ids[:n] for n in lengths])
        assert [len(rows) for rows in batch] == lengths
        assert max(np.abs(rows - logits[: len(rows)]).max() for rows in batch) <= BOUND


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_in_a_batch_equals_alone_and_the_argmax_of_the_logits(load, device):
    model = load("llama3", device)
    ids, _ = answer("llama3")
    prompts = [ids[:n].tolist() for n in (24, 3, 11)]
    alone = [model.generate(p, max_tokens=10).tokens for p in prompts]
    assert [r.tokens for r in model.generate(prompts, max_tokens=10)] == alone
    assert [r.tokens for r in load("llama3", device, step_tokens=5).generate(prompts, max_tokens=10)] == alone
    for prompt, tokens in zip(prompts, alone, strict=True):
        forced = model.logits([*prompt, *tokens])
        assert forced[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens


def test_devices_agree_on_greedy_tokens(load):
    ids, _ = answer("qwen3")
    assert len({tuple(load("qwen3", device).generate(ids[:9], max_tokens=12).tokens) for device in DEVICES}) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_short_cache_preempts_and_changes_nothing(load, device):
    ids, _ = answer("smollm2")
    prompts = [ids[:n].tolist() for n in (20, 18, 16, 14)]
    want = [r.tokens for r in load("smollm2", device).generate(prompts, max_tokens=40)]
    short = load("smollm2", device, context=64, cache_tokens=96)
    assert [r.tokens for r in short.generate(prompts, max_tokens=40)] == want
    assert short.engine.scheduler.preemptions > 0 and short.engine.pool.held == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_reused_beginning_changes_nothing(load, device):
    ids, logits = answer("internlm2")
    model = load("internlm2", device, context=128)
    first = model.generate([*ids.tolist(), *ids.tolist()], max_tokens=4)
    again = model.generate([*ids.tolist(), *ids.tolist()], max_tokens=4)
    assert again.tokens == first.tokens and again.cached_tokens >= 32 > first.cached_tokens
    assert np.abs(model.logits(ids) - logits).max() <= BOUND


def test_window_layers_in_a_long_answer(load):
    """Qwen 2's sliding window is shorter than this; the reference computes each token from the whole text anew."""
    ids, _ = answer("qwen2")
    tokens = load("qwen2", "cpu").generate(ids[:5], max_tokens=40).tokens
    forced = load("qwen2", "reference").logits([*ids[:5].tolist(), *tokens])
    best = forced[4:-1].max(axis=1) - forced[np.arange(4, 4 + len(tokens)), tokens]
    assert len(tokens) == 40 and best.max() <= BOUND


# ---- requests that cannot be carried out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        ([[1, 2], [3, 4]], datong.errors.ShapeError, r"shape \[T\], got \[2, 2\]"),
        ([[1, 2], [3]], datong.errors.ShapeError, "lists of different lengths"),
        ([0.5], datong.errors.DtypeError, "should be integers, got float64"),
        (["a"], datong.errors.DtypeError, "should be integers"),
        ([10**6], datong.errors.InvalidRequest, "token ids should be 0 to"),
        ([-1], datong.errors.InvalidRequest, "got -1"),
    ],
)
def test_ids_that_are_none(load, ids, error, text):
    with pytest.raises(error, match=text):
        load("llama3", "cpu").logits(ids)


def test_no_ids_give_no_rows(load):
    model = load("llama3", "cpu")
    assert model.logits([]).shape == (0, model.vocab_size)
    assert [len(rows) for rows in model.logits_batch([[], [1, 2], []])] == [0, 2, 0]


def test_options_are_checked_by_name(load):
    model = load("llama3", "cpu")
    for options, text in [
        ({"max_tokens": 0}, "max_tokens should be a whole number from 1"),
        ({"temperture": 1}, "option `temperture` is not known"),
        ({"top_p": 2}, "top_p should be"),
        ({"stop": "x"}, "stop strings need a tokenizer"),
    ]:
        with pytest.raises(datong.errors.InvalidRequest, match=text):
            model.generate([1, 2], **options)
    with pytest.raises(datong.errors.TokenizerError, match=r"should hold a tokenizer\.json"):
        model.generate("text")


def test_a_prompt_longer_than_the_context(load):
    model = load("llama3", "cpu", context=20)
    with pytest.raises(
        datong.errors.ContextOverflow, match="20 tokens and an answer of at least 1 should fit a context of 20"
    ):
        model.generate([1] * 20)
    assert len(model.generate([1] * 12, max_tokens=100, ignore_eos=True).tokens) == 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context": 10**9}, "context should be at most"),
        ({"threads": 0}, "threads should be"),
        ({"context": "x"}, "context should"),
    ],
)
def test_load_options_are_checked(options, text):
    with pytest.raises(datong.errors.InvalidRequest, match=text):
        datong.load(GOLDENS / "llama3", "cpu", **options)


def test_unknown_devices_and_models_say_what_there_is():
    with pytest.raises(datong.errors.BackendMissing, match="`cpu`"):
        datong.load(GOLDENS / "llama3", "npu:7")
    with pytest.raises(datong.errors.PackageError, match="neither a path that exists nor a known name"):
        datong.load("no-such-model")


# ---- the warm path ---------------------------------------------------------------------------------------------------

WARM = """
import json, sys
import datong
model = datong.load(sys.argv[1], device="cpu", cache_dtype="f32")
model.generate([1, 2, 3], max_tokens=2)
heavy = ["onnx", "onnx_ir", "sympy", "torch", "transformers", "google.protobuf", "jinja2", "typer", "ml_dtypes"]
heavy += ["numpy.random", "importlib.metadata", "tempfile", "tomllib", "pydantic", "rich", "_hashlib"]
heavy += ["datong.spec.reference"]
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def test_the_warm_path_imports_nothing_heavy():
    datong.compile(GOLDENS / "llama3", "cpu")  # imported and compiled
    run = subprocess.run(
        [sys.executable, "-c", WARM, str(GOLDENS / "llama3")], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == []
