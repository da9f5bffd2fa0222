"""Every operator on `torch:cpu` against its definition, and the aten operators that the lowering says it calls."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from datong.backends.torch import here, packed
from datong.backends.torch.backend import TorchBackend
from datong.backends.torch.lower import LOWER
from datong.backends.torch.target import Target, cpu_target
from datong.conformance.ops import Case, cases, run_cases
from datong.spec.ops import OPS

STOCK = replace(cpu_target(), in_out=frozenset())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few(op: str) -> list[Case]:
    """Every seventh case of an operator, the first and the last."""
    own = cases(lambda case: case.op == op)
    return list(dict.fromkeys([*own[::7], own[-1]]))


def check(backend: TorchBackend, selected: list[Case], options: dict[str, str]) -> None:
    results = run_cases(backend, options, selected)
    assert {r.state for r in results} == {"passed"}, [f"{r.case}: {r.reason}" for r in results if r.state != "passed"]


@pytest.mark.parametrize("op", OPS)
def test_every_case_is_right(op: str) -> None:
    check(here("torch:cpu"), cases(lambda case: case.op == op), {})


def with_layout(layout: str, **changes: object) -> TorchBackend:
    return TorchBackend(replace(cpu_target(), layout=layout, **changes))


@pytest.mark.parametrize("cache_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("buckets", ["off", "on"])
@pytest.mark.parametrize("layout", ["nhd", "hnd", "metax_paged"])
def test_attention_in_every_layout_and_dtype_of_the_cache(layout: str, buckets: str, cache_dtype: str) -> None:
    check(with_layout(layout), few("attention"), {"cache_dtype": cache_dtype, "buckets": buckets})


@pytest.mark.parametrize("op", ["latent_attention", "sparse_attention"])
@pytest.mark.parametrize("cache_dtype", ["f16", "bf16"])
@pytest.mark.parametrize("layout", ["nhd", "hnd", "metax_paged"])
def test_other_attention_in_every_layout_and_dtype(layout: str, cache_dtype: str, op: str) -> None:
    check(with_layout(layout), few(op), {"cache_dtype": cache_dtype, "compute_dtype": "f32"})


@pytest.mark.parametrize("changes", [{"places": False}, {"places": False, "index_dtype": "i32"}, {"block_size": 128}])
def test_attention_as_chips_have_it(changes: dict[str, object]) -> None:
    check(with_layout("nhd", **changes), few("attention"), {})


@pytest.mark.parametrize("op", ["linear", "linear_multi", "linear_glu", "linear_add", "embedding", "moe"])
def test_products_without_onednns_layout(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "packable", lambda dtype: False)
    for target in (cpu_target(), STOCK):
        check(TorchBackend(target), few(op), {})


def called(target: Target, op: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that the profiler sees while the cases of an operator run."""
    monkeypatch.setattr(packed, "packable", lambda dtype: False)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run_cases(TorchBackend(target), {}, few(op))
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize("op", LOWER)
def test_what_a_lowering_says_it_uses_it_calls(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = called(STOCK, op, monkeypatch)
    if op in ("attention", "moe"):
        seen |= called(replace(STOCK, places=False, index_dtype="i32"), op, monkeypatch)
    assert set(LOWER[op].uses) <= seen


@pytest.mark.parametrize("op", LOWER)
def test_an_operator_that_the_chip_lacks_is_a_refusal_with_its_source(op: str) -> None:
    lacking = LOWER[op].uses[0]
    backend = TorchBackend(replace(cpu_target(), missing={lacking: "a page of the vendor"}))
    (result,) = run_cases(backend, {}, few(op)[:1])
    assert result.state == "refused" and lacking in result.reason and "a page of the vendor" in result.reason


def test_every_operator_of_the_set_has_a_lowering() -> None:
    assert LOWER.keys() == OPS.keys()


def test_an_operator_taken_away() -> None:
    backend = here("torch:cpu", without={"linear_glu", "glu"})
    assert "linear_glu" not in backend.fusions()
    (result,) = run_cases(backend, {}, cases(lambda case: case.op == "glu")[:1])
    assert result.state == "refused" and "taken from this backend" in result.reason
