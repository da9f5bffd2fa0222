from dataclasses import replace

import pytest

from datong.backends.torch.options import read
from datong.backends.torch.target import cpu_target
from datong.errors import DeviceError
from datong.spec.program import Part, Value

CHIP = replace(cpu_target("chip"), unpacked="")


def part(**formats: int) -> Part:
    """A part with one matrix per format, of so many rows."""
    values = {name: Value(name, "weight", "f32", (rows, 32), format=name) for name, rows in formats.items()}
    values["norm"] = Value("norm", "weight", "f32", (1000,), format="f32")
    return Part("x", values, (), (), (), ())


@pytest.mark.parametrize(
    ("formats", "legal", "want"),
    [
        ({}, None, "f32"),
        ({"f32": 4}, None, "f32"),
        ({"bf16": 4, "f32": 1}, None, "bf16"),
        ({"f16": 4}, None, "f16"),
        ({"bf16": 4}, {"f16", "f32"}, "f16"),
        ({"f32": 4}, {"f16", "bf16"}, "bf16"),
        ({"f16": 4}, {"f32"}, "f32"),
        ({"q4_1": 4, "f16": 3}, None, "bf16"),
        ({"q4_1": 4}, {"f16", "f32"}, "f16"),
    ],
)
def test_compute_dtype_follows_the_matrices(formats: dict[str, int], legal: set[str] | None, want: str) -> None:
    target = replace(CHIP, legal=None if legal is None else frozenset(legal))
    settings = read(target, part(**formats), {}, can_capture=False)
    assert (settings.dtype, settings.cache_dtype) == (want, want)


def test_on_the_processor_blocks_become_f32() -> None:
    assert read(cpu_target(), part(q8_0=4), {}, can_capture=False).dtype == "f32"


def test_asked_for() -> None:
    options = {"compute_dtype": "bf16", "cache_dtype": "f16", "threads": "3", "buckets": "on", "max_rows": "7"}
    settings = read(CHIP, part(), options, can_capture=False)
    assert (settings.dtype, settings.cache_dtype, settings.threads) == ("bf16", "f16", 3)
    assert settings.buckets and not settings.graphs


def test_graphs_bring_buckets() -> None:
    settings = read(CHIP, part(), {}, can_capture=True)
    assert settings.graphs and settings.buckets
    off = read(CHIP, part(), {"graphs": "off"}, can_capture=True)
    assert not off.graphs and not off.buckets


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compute": "f32"}, "option `compute` is not known"),
        ({"compute_dtype": "f64"}, "compute_dtype should be one of f32, bf16, f16, is `f64`"),
        ({"compute_dtype": "bf16"}, "should be one of f32, f16, `bf16` is not legal on this chip"),
        ({"cache_dtype": "fp8"}, "cache_dtype should be one of"),
        ({"threads": "two"}, "threads should be a whole number"),
        ({"graphs": "yes"}, "graphs should be auto, on or off"),
        ({"graphs": "on"}, "the adapter has no class"),
    ],
)
def test_what_cannot_be(options: dict[str, str], text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        read(replace(CHIP, illegal=frozenset({"bf16"})), part(), options, can_capture=False)


def test_a_chip_without_any_float() -> None:
    with pytest.raises(DeviceError, match="should have an element type for activations"):
        read(replace(CHIP, legal=frozenset({"i8"})), part(), {}, can_capture=False)
