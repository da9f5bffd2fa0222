"""The rules of a chip are its descriptor's, and each broken one is a sentence with its source."""

import msgspec
import pytest

from datong.backends.sim import rules
from datong.backends.sim.rules import Rules, require, require_block_size
from datong.chips.load import Chip, chips, find
from datong.chips.schema import Fact
from datong.errors import RuleBroken


def of(chip: str, *without: str) -> Rules:
    return Rules(f"sim:{chip}", find(chip), frozenset(without))


def test_illegal_dtype_names_operator_rule_value_and_source() -> None:
    error = of("ascend-910b").dtype("aten::add", "f64", "an input")
    fact = find("ascend-910b").generation.illegal_dtypes
    assert isinstance(error, RuleBroken)
    assert str(error) == (
        "[sim:ascend-910b] `aten::add` should use element types that Ascend 910B (A2) has, without f64, an input is "
        f"f64 ({fact.grade}: {fact.source})"
    )


def test_a_dtype_that_is_not_in_the_list() -> None:
    error = of("iluvatar-bi-v150").dtype("aten::_to_copy", "f8e4m3", "the output")
    assert "(f32, f16, bf16, i8, i32, i64, u8, bool), the output is f8e4m3 (B: " in str(error)
    assert of("ascend-910b").dtype("aten::add", "c64", "an input") is not None


@pytest.mark.parametrize("chip", [c.name for c in chips()])
def test_what_a_descriptor_lists_is_legal(chip: str) -> None:
    rules, generation = of(chip), find(chip).generation
    for dtype in rules_list(generation.dtypes):
        assert rules.dtype("aten::add", dtype, "an input") is None
    assert rules.dtype("aten::add", "f32", "an input") is None


def rules_list(fact: object) -> list[str]:
    return rules.usable(fact)  # type: ignore[arg-type]


def test_a_gated_dtype_works_after_its_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = "TORCH_GCU_ENABLE_INT64_AND_UINT64"
    monkeypatch.delenv(switch, raising=False)
    error = of("enflame-s60").dtype("aten::arange", "i64", "the output")
    assert f"only with {switch}=1 set, the output is i64 (B: " in str(error)
    monkeypatch.setenv(switch, "1")
    assert of("enflame-s60").dtype("aten::arange", "i64", "the output") is None


def test_a_gate_without_a_switch_stays_shut() -> None:
    chip = find("ascend-910b")
    gated: Fact[list[str]] = Fact("A", ["f64"], "page", "it may fail")
    generation = msgspec.structs.replace(chip.generation, gated_dtypes=gated, illegal_dtypes=Fact("unknown"))
    error = Rules("sim:x", Chip(chip.stack, generation)).dtype("aten::add", "f64", "an input")
    assert f"should use f64 on {generation.title} nowhere: it may fail, an input is f64 (A: page)" in str(error)


def test_facts_of_low_grade_are_no_rules() -> None:
    """Biren BR1xx's list of types is from the press (grade C)."""
    assert find("biren-br1xx").generation.illegal_dtypes.grade == "C"
    assert of("biren-br1xx").dtype("aten::add", "f64", "an input") is None


def test_an_operator_taken_away() -> None:
    rules = of("metax-c500", "aten::mm")
    assert rules.missing("aten::addmm") is None
    assert str(rules.missing("aten::mm")) == (
        "[sim:metax-c500] `aten::mm` should be an operator that MetaX C500, C550 runs, it is not "
        "(taken away by DATONG_SIM_WITHOUT or by a test)"
    ).replace("MetaX C500, C550", find("metax-c500").generation.title)


def test_cache_blocks() -> None:
    assert of("biren-br2xx").block_size("attention", 128) is None
    error = of("biren-br2xx").block_size("attention", 16)
    assert "should have cache blocks of 128 tokens on" in str(error)
    assert "they have 16 (A: BIRENSUPA/vllm-supa" in str(error)
    assert of("biren-br1xx").block_size("attention", 16) is None  # nobody knows


def test_memory_says_the_numbers() -> None:
    total = find("ascend-910b").generation.memory_bytes.value
    assert total is not None
    error = of("ascend-910b").memory("aten::empty", 10, total - 9, total)
    assert f"{total} bytes of" in str(error)
    assert f"it wants 10 bytes, {total - 9} are in use, 1 too many (B: " in str(error)
    assert "(limit of the test)" in str(of("ascend-910b").memory("aten::empty", 10, 91, 100))


def test_a_vendor_operator_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_here", [])
    rules.install(of("biren-br2xx"))
    require(True, "suattention.f", "should", "", "A: page")
    require_block_size("suattention.f", 128)
    with pytest.raises(RuleBroken, match=r"`suattention.f` should be one, it is two \(A: page\)") as caught:
        require(False, "suattention.f", "should be one", "it is two", "A: page")
    assert caught.value.where == "sim:biren-br2xx"
    with pytest.raises(RuleBroken, match="blocks of 128 tokens on"):
        require_block_size("suattention.f", 16)
