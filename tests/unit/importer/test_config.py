"""Every config key is read, ignored with a reason, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

from datong.errors import ConfigError
from datong.importer.config import IGNORED, Config


def config(**values: Any) -> Config:
    return Config({"model_type": "llama", **values}, "llama")


def test_values_defaults_and_null() -> None:
    c = config(a=3, b=None, d=2, e=True, f="x")
    assert (c.integer("a"), c.integer("b", 7), c.integer("z", 8), c.number("d")) == (3, 7, 8, 2.0)
    assert (c.flag("e"), c.text("f"), c.raw("b"), c.raw("y", 5)) == (True, "x", None, 5)
    c.finish()


@pytest.mark.parametrize(
    ("read", "value", "wanted"),
    [
        (Config.integer, 0, "a whole number from 1"),
        (Config.integer, 2**31, "a whole number from 1"),
        (Config.integer, 1.0, "a whole number from 1"),
        (Config.integer, True, "a whole number from 1"),
        (Config.integer, "8", "a whole number from 1"),
        (Config.integer, None, "a whole number from 1"),
        (Config.number, 0, "a number from 1e-15"),
        (Config.number, -1.5, "a number from 1e-15"),
        (Config.number, float("inf"), "a number from 1e-15"),
        (Config.number, float("nan"), "a number from 1e-15"),
        pytest.param(Config.number, 10**400, "a number from 1e-15", id="huge"),
        (Config.number, True, "a number from 1e-15"),
        (Config.flag, 1, "true or false"),
        (Config.flag, "true", "true or false"),
        (Config.text, 1, "a string"),
        (Config.text, ["silu"], "a string"),
    ],
)
def test_wrong_kinds(read: Callable[[Config, str], Any], value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"config key `k` should be {wanted}"):
        read(config(k=value), "k")


def test_missing_key_names_key_and_family() -> None:
    with pytest.raises(ConfigError, match="config key `hidden_size` is missing for model_type `llama`"):
        config().integer("hidden_size")


def test_unknown_key_names_key_and_family_and_says_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match="config key `sliding_window_pattern` is not known for model_type `llama`"
    ) as e:
        config(sliding_window_pattern=6).finish()
    assert "ignore it with the reason" in (e.value.hint or "")


def test_ignored_keys_have_reasons() -> None:
    c = config(use_cache=True, torch_dtype="bfloat16", odd=1)
    c.ignore("odd", "because")
    c.ignore("absent", "because")
    c.finish()
    assert set(c.ignored) == {"use_cache", "torch_dtype", "odd"} and all(c.ignored.values())
    assert all(len(reason) > 15 for reason in IGNORED.values())


def test_expected_values() -> None:
    config(pretraining_tp=1).expect("pretraining_tp", 1, "why")
    config(pretraining_tp=None).expect("pretraining_tp", 1, "why")
    config().expect("pretraining_tp", 1, "why")
    for value in (2, True, "1"):
        with pytest.raises(ConfigError, match="`pretraining_tp` should be 1") as error:
            config(pretraining_tp=value).expect("pretraining_tp", 1, "why")
        assert error.value.hint == "why"


@pytest.mark.parametrize(
    ("quantisation", "name"), [({"quant_method": "awq", "bits": 4}, "`awq`"), ({"bits": 4}, "`mlx`"), ("x", "`x`")]
)
def test_quantised_checkpoints_are_named(quantisation: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"weights of format {name} are not supported yet"):
        config(quantization_config=quantisation).finish()
    with pytest.raises(ConfigError, match=f"`quantization`: weights of format {name} are"):
        config(quantization=quantisation).finish()
    config(quantization_config=None).finish()


def test_models_with_an_encoder_are_refused() -> None:
    config(is_encoder_decoder=False, add_cross_attention=False, is_decoder=True).finish()
    for key in ("is_encoder_decoder", "add_cross_attention"):
        with pytest.raises(ConfigError, match=f"`{key}` should be False, it is True"):
            config(**{key: True}).finish()


def test_a_long_or_strange_value_does_not_flood_the_message() -> None:
    for value in ("x" * 10_000, "\x1b[31m" * 1000, [[1] * 1000] * 50):
        with pytest.raises(ConfigError) as error:
            config(k=value).integer("k")
        assert len(str(error.value)) < 300 and "\x1b" not in str(error.value)
