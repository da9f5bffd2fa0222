"""Speculation changes how many steps an answer takes, never its tokens: heads against transformers, and both ways."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from datong.engine.load import load
from datong.engine.model import Model
from datong.engine.request import Request
from datong.engine.sampler import SamplingParams
from datong.engine.scheduler import Work
from datong.engine.sequence import State
from datong.errors import InvalidRequest
from datong.package.create import import_checkpoint
from datong.package.reader import Package
from datong.spec.program import Step

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
PROMPTS = [[5, 3, 9, 77, 1], [1, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1] * 9]


def with_heads(target: Path, family: str, count: int) -> Path:
    """A golden checkpoint with `count` random heads, whose layer is a copy of the last one of the model."""
    shutil.copytree(GOLDENS / family, target)
    config = json.loads((target / "config.json").read_text())
    last = config["num_hidden_layers"] - 1
    config["num_nextn_predict_layers"] = count
    (target / "config.json").write_text(json.dumps(config))
    tensors, rng = load_file(target / "model.safetensors"), np.random.default_rng(7)
    hidden = config["hidden_size"]
    for i in range(count):
        for name in [n for n in tensors if n.startswith(f"model.layers.{last}.")]:
            noise = rng.standard_normal(tensors[name].shape) * 0.02
            copy = name.replace(f"layers.{last}.", f"layers.{last + 1 + i}.")
            tensors[copy] = (tensors[name] + noise).astype(tensors[name].dtype)
        prefix = f"model.layers.{last + 1 + i}."
        tensors[f"{prefix}eh_proj.weight"] = (rng.standard_normal((hidden, 2 * hidden)) * 0.1).astype(np.float32)
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            tensors[f"{prefix}{norm}.weight"] = (1 + rng.standard_normal(hidden) * 0.1).astype(np.float32)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """By family; the heads of step3p5 are those of its golden checkpoint."""
    root = tmp_path_factory.mktemp("heads")
    shutil.copytree(GOLDENS / "step3p5", root / "step3p5")
    made = {family: with_heads(root / family, family, 2) for family in ("glm4_moe", "deepseek_v3")}
    return {name: import_checkpoint(path) for name, path in {"step3p5": root / "step3p5", **made}.items()}


def open_model(package: Package, device: str, **options: Any) -> Model:
    return load(package, device, **({"activations": "f32"} if device == "cpu" else {}), **options)


@pytest.mark.parametrize("device", ["reference", "cpu", "torch:cpu", "onnxruntime"])
@pytest.mark.parametrize("family", ["step3p5", "glm4_moe", "deepseek_v3"])
def test_heads_change_no_token(packages: dict[str, Package], family: str, device: str) -> None:
    plain, guessing = (open_model(packages[family], device, speculate=how) for how in (None, "heads"))
    wanted = [answer.tokens for answer in plain.generate(PROMPTS, max_tokens=30, ignore_eos=True)]
    got = guessing.generate(PROMPTS, max_tokens=30, ignore_eos=True)
    assert [answer.tokens for answer in got] == wanted
    assert all(answer.timings.guessed_tokens > 0 for answer in got)
    assert guessing.engine.pool.held == 0


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_a_head_gives_what_transformers_gives(
    packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Guesses of both heads after a prompt, and of each further token."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    package = packages[family]
    theirs = AutoModelForCausalLM.from_pretrained(package.root, dtype=torch.float32, attn_implementation="eager")
    layers = theirs.config.num_hidden_layers  # its own pattern knows the numbers of published models only
    own = re.compile(rf"layers\.({layers}|{layers + 1})\.")
    monkeypatch.setattr(MtpModel, "get_mtp_weights_regex", staticmethod(lambda model: own))
    heads = MtpModel.from_pretrained(theirs)
    ids = torch.tensor([PROMPTS[2][:20]])
    with torch.no_grad():
        first = theirs(ids, output_hidden_states=False).logits[:, -1].argmax(-1, keepdim=True)
        last = theirs.model(ids).last_hidden_state
        guesses, _, _ = heads(
            torch.cat([ids[:, 1:], first], 1), last, None, torch.arange(1, 21)[None], MtpCache(config=heads.config)
        )
    model = open_model(package, "reference", speculate="heads")
    request = Request(PROMPTS[2][:20], 40, SamplingParams())
    model.engine.submit(request)
    while not request.result.tokens:
        model.engine.step()
    assert request.result.tokens == [int(first)]
    assert request.sequence.guesses == guesses[0].tolist()
    model.engine.cancel(request)


class Knowing:
    """Guesses from the known answer; every fourth guess is wrong on purpose."""

    def __init__(self, answers: dict[int, list[int]], spoil: bool) -> None:
        self.answers, self.spoil, self.calls = answers, spoil, 0

    def guess(self, step: Step, done: list[tuple[Work, int]]) -> None:
        for work, _ in done:
            sequence = work.sequence
            if sequence.state is not State.RUNNING or sequence.pending != 1:
                continue
            self.calls += 1
            known = self.answers[sequence.tokens[0]]
            guesses = known[len(sequence.tokens) - sequence.prompt_len :][:3]
            if self.spoil and guesses and self.calls % 4 == 0:
                guesses[-1] = (guesses[-1] + 1) % 128
            sequence.guesses = guesses


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_right_guesses_are_kept_and_wrong_ones_are_not(packages: dict[str, Package], device: str, spoil: bool) -> None:
    plain = open_model(packages["glm4_moe"], device)
    wanted = plain.generate(PROMPTS, max_tokens=41, ignore_eos=True, logprobs=2)
    model = open_model(packages["glm4_moe"], device)
    answers = {prompt[0]: answer.tokens for prompt, answer in zip(PROMPTS, wanted, strict=True)}
    guesser = model.engine.guesser = Knowing(answers, spoil)
    got = model.generate(PROMPTS, max_tokens=41, ignore_eos=True, logprobs=2)
    assert [answer.tokens for answer in got] == [answer.tokens for answer in wanted]
    for mine, plain_answer in zip(got, wanted, strict=True):
        assert np.allclose([s.logprob for s in mine.logprobs], [s.logprob for s in plain_answer.logprobs], atol=1e-4)
        timings = mine.timings
        assert 0 < timings.accepted_tokens <= timings.guessed_tokens
        assert (timings.accepted_tokens < timings.guessed_tokens) == spoil
    assert guesser.calls < (25 if spoil else 3) * len(PROMPTS) * 4
    assert model.engine.pool.held == 0


def test_with_a_small_cache_and_preemption(packages: dict[str, Package]) -> None:
    plain = open_model(packages["step3p5"], "reference")
    wanted = [a.tokens for a in plain.generate(PROMPTS[:2] * 3, max_tokens=40, ignore_eos=True)]
    model = open_model(packages["step3p5"], "reference", speculate="heads", context=128, cache_tokens=128)
    assert [a.tokens for a in model.generate(PROMPTS[:2] * 3, max_tokens=40, ignore_eos=True)] == wanted
    assert model.engine.scheduler.preemptions > 0 and model.engine.pool.held == 0


def test_sampling_keeps_its_tokens_too(packages: dict[str, Package]) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "temperature": 0.8, "top_k": 5, "seed": 11}
    tokens = [
        open_model(packages["glm4_moe"], "reference", speculate=how).generate(PROMPTS[2], **options).tokens
        for how in (None, "lookup", "heads")
    ]
    assert tokens[0] == tokens[1] == tokens[2]


def test_lookup_finds_repetitions() -> None:
    from datong.engine.speculation import repeated

    assert repeated([1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5, 1, 2]
    assert repeated([1, 2, 3]) == [] and repeated([]) == [] and repeated([7]) == []
    assert repeated([9, 1, 2, 8, 1, 2, 7, 5, 1, 2]) == [7, 5, 1, 2]  # the last time counts
    assert repeated([0x010000, 0x000001, 5, 0, 0x0100, 5]) == []  # bytes that match between tokens do not count


def test_refusals(packages: dict[str, Package], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="should be heads or lookup, got `magic`"):
        open_model(packages["step3p5"], "reference", speculate="magic")
    shutil.copytree(GOLDENS / "llama3", tmp_path / "llama3")
    with pytest.raises(InvalidRequest, match="this one has none"):
        open_model(import_checkpoint(tmp_path / "llama3"), "reference", speculate="heads")
