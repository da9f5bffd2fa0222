"""The descriptors that ship: each keeps to the rules, and all of them together name every device once."""

from __future__ import annotations

import fnmatch
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from datong import dtypes
from datong.chips.check import LAYOUTS, STAGES, facts, problems
from datong.chips.load import DATA, Chip, chips, find, stacks
from datong.chips.schema import FusedOperator, Stack
from datong.spec.ops import OPS

SHARED = "/dev/dri/"  # nodes of any graphics card
OPERATORS = [pytest.param(f, id=f"{s.name}:{f.implements}:{f.name}") for s in stacks().values() for f in s.fused]


@pytest.fixture(params=stacks().values(), ids=stacks().keys())
def stack(request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.param
    return found


@pytest.fixture(params=chips(), ids=lambda chip: chip.name)
def chip(request: pytest.FixtureRequest) -> Chip:
    found: Chip = request.param
    return found


def test_there_is_a_descriptor_for_each_stack() -> None:
    six = {"ascend", "biren-br1xx", "biren-br2xx", "enflame", "moorethreads", "iluvatar", "metax"}
    assert set(stacks()) == six | {"nvidia", "amd", "hygon", "cambricon", "kunlunxin"}


def test_keeps_the_rules(stack: Stack) -> None:
    assert list(problems(stack)) == []


def written(table: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Places of all tables of a descriptor's file that have a grade and are facts."""
    for name, value in table.items():
        if isinstance(value, dict):
            if "grade" in value:
                yield place + name
            else:
                yield from written(value, f"{place}{name}.")
        elif name == "generations":
            for generation in value:
                yield from written(generation, f"generations.{generation['name']}.")


def test_every_fact_has_grade_and_source(stack: Stack) -> None:
    """The rule once more, without check.py; and check.py overlooks no fact that the file has."""
    places = dict(facts(stack))
    assert set(written(tomllib.loads((DATA / f"{stack.name}.toml").read_text(encoding="utf-8")))) <= set(places)
    for place, fact in places.items():
        assert (fact.grade == "unknown") == (fact.value is None), place
        assert fact.value is None or fact.source, place
        assert fact.usable == (fact.grade in ("A", "B")), place


def test_element_types(chip: Chip) -> None:
    generation = chip.generation
    lists = [generation.dtypes, generation.illegal_dtypes, generation.gated_dtypes]
    names = [name for fact in lists for name in fact.value or ()]
    assert set(names) <= dtypes.NAMES
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_what_the_simulation_needs(chip: Chip) -> None:
    """A usable list of element types is a whitelist: without floats or integers nothing would run."""
    if chip.generation.dtypes.usable:
        assert {"f32", "f16", "i32", "bool"} <= set(chip.generation.dtypes.value or ())


def test_products_are_of_one_chip() -> None:
    names = [product for chip in chips() for product in chip.generation.products]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_no_stack_is_a_product_of_another() -> None:
    full = [
        f"{chip.stack.name}-{alias}" for chip in chips() for alias in {chip.generation.name, *chip.generation.products}
    ]
    assert len(full) == len(set(full))
    assert set(full).isdisjoint(stacks())


def test_pci_vendors_are_of_one_vendor() -> None:
    owners: dict[str, set[str]] = {}
    for stack in stacks().values():
        if stack.identity.pci_vendor.value is not None:
            owners.setdefault(stack.identity.pci_vendor.value, set()).add(stack.vendor)
    assert {vendor: names for vendor, names in owners.items() if len(names) > 1} == {}
    assert len(owners) == 10  # Biren's is not known


def test_device_nodes_are_of_one_vendor() -> None:
    """A node that one vendor's pattern stands for matches no pattern of another vendor."""
    patterns = [
        (stack.vendor, pattern)
        for stack in stacks().values()
        for pattern in stack.identity.device_nodes.value or ()
        if not pattern.startswith(SHARED)
    ]
    for vendor, pattern in patterns:
        for digits in ("0", "7", "15"):
            node = pattern.replace("[0-9]*", digits).replace("[0-9]", digits[0])
            owners = {other for other, theirs in patterns if fnmatch.fnmatch(node, theirs)}
            assert owners == {vendor}, node


def test_manager_nodes_are_no_devices(stack: Stack) -> None:
    for entry in stack.identity.manager_nodes.value or ():
        for node in entry.split("|"):
            assert not any(fnmatch.fnmatch(node, p) for p in stack.identity.device_nodes.value or ()), node


@pytest.mark.parametrize("fused", OPERATORS)
def test_vendor_operator(fused: FusedOperator) -> None:
    assert fused.implements in (*OPS, *STAGES)
    if not fused.schema:
        assert "never called" in fused.note
        return
    torch = pytest.importorskip("torch")
    schema = torch._C.parse_schema(fused.schema)
    assert schema.name == fused.name.rpartition(".")[2]


def test_an_operator_is_listed_once_for_each_of_ours(stack: Stack) -> None:
    rows = Counter((fused.implements, fused.name) for fused in stack.fused)
    assert [row for row, count in rows.items() if count > 1] == []


def test_one_signature_for_each_vendor_operator(stack: Stack) -> None:
    """An operator that does two of ours has one schema and one module to import."""
    signatures: dict[str, set[tuple[str, str]]] = {}
    for fused in stack.fused:
        signatures.setdefault(fused.name, set()).add((fused.schema, fused.module))
    assert {name: found for name, found in signatures.items() if len(found) > 1} == {}


def test_layouts_are_those_of_the_torch_backend() -> None:
    pytest.importorskip("torch")
    from datong.backends.torch import layouts

    assert set(LAYOUTS) == set(layouts.LAYOUTS)


def test_block_sizes_that_the_vendors_force() -> None:
    """The two that a wrong cache would show first."""
    assert find("biren-br2xx").generation.kv_block_sizes.value == [128]
    assert find("enflame-s60").generation.kv_block_sizes.value == [64]
    assert find("biren-br1xx").generation.kv_block_sizes.grade == "unknown"


def test_unknown_stays_unknown() -> None:
    """Peaks that no source gives: see the list of what remains unknown in docs/chips."""
    for name in ("biren-br1xx", "biren-br2xx", "enflame-s60", "metax-c500"):
        assert find(name).generation.peak_flops.grade == "unknown", name
    assert stacks()["biren-br1xx"].identity.pci_vendor.grade == "unknown"
    assert stacks()["biren-br1xx"].adapter.dist_backend.grade == "unknown"
