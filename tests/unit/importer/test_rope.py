"""Rope tables against transformers' own functions, in every spelling of the config."""

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from datong.errors import ConfigError
from datong.importer.config import Config
from datong.importer.rope import Rope, read_rope

MAX = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


FACTORS = [1.0 + i / 8 for i in range(32)]
LONGROPE = {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS, "attention_factor": 1.25}


def divisors(values: list[float]) -> dict[str, Any]:
    return {**LONGROPE, "short_factor": values, "long_factor": values}


def rope(values: dict[str, Any], head_dim: int = 64) -> Rope:
    config = Config(values, "llama")
    table = read_rope(config, head_dim, MAX)
    config.finish()
    return table


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 5e7])
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "dynamic", "factor": 6.0},
        LLAMA3,
        {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"},
        YARN,
        {**YARN, "truncate": False},
        {**YARN, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.8},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0},
        {**YARN, "factor": 0.5},
        {"rope_type": "yarn", "factor": 4.0},
        LONGROPE,
    ],
    ids=lambda p: "-".join(str(v)[:12] for v in p.values()) if isinstance(p, dict) else str(p),
)
def test_tables_equal_those_of_transformers(parameters: dict[str, Any], theta: float, head_dim: int) -> None:
    if "short_factor" in parameters:  # one divisor per frequency
        parameters = divisors((FACTORS * 2)[: head_dim // 2])
    theirs = LlamaConfig(
        hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=MAX,
        rope_parameters={**parameters, "rope_theta": theta},
    )  # fmt: skip
    kind = parameters["rope_type"]
    default = LlamaRotaryEmbedding.compute_default_rope_parameters
    inv_freq, scale = default(theirs) if kind == "default" else ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    own = rope({"rope_parameters": {**parameters, "rope_theta": theta}}, head_dim)
    assert own.inv_freq.dtype == np.float32 and own.inv_freq.shape == (head_dim // 2,)
    # A few units in the last place: float32 powers differ that much between libraries.
    np.testing.assert_allclose(own.inv_freq, inv_freq.numpy(), rtol=1e-6, atol=0)
    assert own.scale == pytest.approx(scale, rel=1e-7)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {"rope_theta": 500000, "rope_scaling": LLAMA3},
        {"rope_theta": 500000, "rope_scaling": {"type" if k == "rope_type" else k: v for k, v in LLAMA3.items()}},
        {"rope_theta": 500000, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_theta": 500000, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {"rope_theta": 500000, "rope_parameters": None, "rope_scaling": LLAMA3, "partial_rotary_factor": 1.0},
    ],
)
def test_all_spellings_mean_the_same(values: dict[str, Any]) -> None:
    expected = rope({"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}})
    assert np.array_equal(rope(values).inv_freq, expected.inv_freq)


def test_no_rope_keys_at_all_is_the_default() -> None:
    default = rope({"rope_theta": 10000.0})
    for values in ({}, {"rope_scaling": None}, {"rope_parameters": {}}, {"rope_scaling": {"type": "default"}}):
        assert np.array_equal(rope(values).inv_freq, default.inv_freq)
    assert default.scale == 1.0 and default.inv_freq[0] == 1.0


@pytest.mark.parametrize(
    ("parameters", "context"),
    [
        ({"rope_type": "dynamic", "factor": 6.0}, MAX),
        (YARN, 4096),
        ({**YARN, "factor": 8}, 8192),
        ({"rope_type": "yarn", "factor": 4}, 4 * MAX),
    ],
)
def test_context(parameters: dict[str, Any], context: int) -> None:
    assert rope({"rope_parameters": parameters}).context_length == context


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rope_scaling": {"type": "su", "factor": 2}}, "rope type `su` is not known for model_type `llama`"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [2.0] * 32}}, "should have equal `short_factor`"),
        ({"rope_scaling": divisors([1.0] * 31)}, "a list of 32 numbers above 0"),
        ({"rope_scaling": divisors([1.0] * 31 + [0])}, "a list of 32 numbers above 0"),
        ({"rope_scaling": {"type": "longrope"}}, "rope key `short_factor` is missing"),
        ({"rope_scaling": {"type": "linear"}}, "rope key `factor` is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope key `factor` should be a number"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 1}}, "rope key `beta_fast` should be None"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "finetuned": True}}, "rope key `finetuned` is not known"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}},
            "rope `type` is `linear` and `rope_type` is `yarn`",
        ),
        ({"rope_scaling": [1]}, "`rope_scaling` should be an object"),
        ({"rope_scaling": {"type": 3}}, "rope key `rope_type` should be a string"),
        ({"rope_scaling": {"type": ["x"]}}, "rope key `rope_type` should be a string"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "contradict each other"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "`rope_theta` is 10000 and 1e"),
        ({"rope_theta": 1}, "`rope_theta` should be above 1"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` should be 1.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "`partial_rotary_factor` should be 1.0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "should be below"),
        ({"rope_scaling": {**YARN, "beta_fast": 1.0}}, "should be above"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "rope key `truncate` should be true or false"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "should be a whole number"),
        ({"rope_parameters": {"mrope_section": [8, 8, 8]}}, "rope key `mrope_section` is not known"),
    ],
)
def test_wrong_rope_keys_are_named(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rope(values)
