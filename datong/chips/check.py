"""What a descriptor keeps to beyond its shape (schema.py): `problems` yields each breach, `load.read` raises the first.

1. A fact has a value exactly if its grade is not unknown; a fact with a value has a source.
2. Element types are names of datong/dtypes.py; no type is legal, illegal and gated at once, or two of these.
3. Regular expressions compile and have the groups that their readers ask for.
4. PCI ids are written as the kernel writes them: `0x19e5`.
5. Names are what a user types: lower case, and each means one generation.
6. A vendor operator implements one of ours, or a stage of attention; its schema has its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from datong import dtypes
from datong.chips.schema import Fact, FusedOperator, Generation, Pair, Stack
from datong.spec.ops import OPS

STAGES = ("attention.write", "attention.prefill", "attention.decode")  # of one attention node, in this order
LAYOUTS = ("nhd", "hnd", "metax_paged")  # of a paged cache: datong/backends/torch/layouts.py
SMI_GROUPS = {"index", "device", "product", "memory_mib", "bus"}
_PCI = re.compile(r"0x[0-9a-f]{4}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_SCHEMA = re.compile(r"(\w+)(?:\.\w+)?\(")


def problems(stack: Stack) -> Iterator[tuple[str, str]]:
    """(place, what should be and what is) for every breach, in the order of the file."""
    for place, fact in facts(stack):
        yield from ((place, text) for text in _fact(fact))
    yield from _pci(stack)
    yield from _patterns(stack)
    yield from _names(stack)
    for generation in stack.generations:
        yield from _generation(generation)
    for index, fused in enumerate(stack.fused):
        yield from ((f"fused[{index}]", text) for text in _fused(fused, stack))
    for index, pair in enumerate(stack.toolkit.pairs):
        yield from ((f"toolkit.pairs[{index}]", text) for text in _pair(pair))


def facts(stack: Stack) -> Iterator[tuple[str, Fact[Any]]]:
    """Every fact with its place: `identity.pci_vendor`, `generations.a2.dtypes`."""
    for place, part in (("", stack), ("identity.", stack.identity), ("adapter.", stack.adapter)):
        yield from _facts_of(place, part)
    yield from _facts_of("toolkit.", stack.toolkit)
    for generation in stack.generations:
        yield from _facts_of(f"generations.{generation.name}.", generation)


def _facts_of(place: str, part: msgspec.Struct) -> Iterator[tuple[str, Fact[Any]]]:
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if isinstance(value, Fact):
            yield place + name, value


def _fact(fact: Fact[Any]) -> Iterator[str]:
    if fact.grade == "unknown":
        if fact.value is not None:
            yield f"a fact of grade unknown should have no value, it is {fact.value!r}"
        return
    if fact.value is None:
        yield f"a fact of grade {fact.grade} should have a value, it has none"
    if not fact.source.strip():
        yield f"a fact of grade {fact.grade} should have a source, it has none"


def _pci(stack: Stack) -> Iterator[tuple[str, str]]:
    vendor, others = stack.identity.pci_vendor, stack.identity.pci_others
    ids = [("identity.pci_vendor", vendor.value)] if vendor.value is not None else []
    ids += [("identity.pci_others", name) for name in others.value or []]
    ids += [
        (f"generations.{g.name}.pci_devices", name) for g in stack.generations for name in g.pci_devices.value or []
    ]
    for place, name in ids:
        if not _PCI.fullmatch(name):
            yield place, f"a PCI id should look like `0x19e5`, it is `{name}`"


def _patterns(stack: Stack) -> Iterator[tuple[str, str]]:
    place = "identity.smi_device_pattern"
    pattern, text = _compiled(stack.identity.smi_device_pattern.value)
    if text:
        yield place, text
    elif pattern and not {"index"} <= set(pattern.groupindex) <= SMI_GROUPS:
        have = ", ".join(pattern.groupindex) or "none"
        yield place, f"the groups should be `index` and any of {', '.join(sorted(SMI_GROUPS))}, they are: {have}"
    pattern, text = _compiled(stack.toolkit.version_pattern.value)
    if text:
        yield "toolkit.version_pattern", text
    elif pattern and pattern.groups != 1:
        yield "toolkit.version_pattern", f"the pattern should have one group, the version; it has {pattern.groups}"


def _compiled(text: str | None) -> tuple[re.Pattern[str] | None, str]:
    try:
        return (re.compile(text, re.MULTILINE) if text is not None else None), ""
    except re.error as error:
        return None, f"a regular expression should compile, this one does not: {error}"


def _names(stack: Stack) -> Iterator[tuple[str, str]]:
    if not stack.generations:
        yield "generations", "a stack should have one generation at least, it has none"
    names = [name for g in stack.generations for name in {g.name, *g.products}]
    for name in (stack.name, *names):
        if not _NAME.fullmatch(name):
            yield "name", f"a name should be lower case, letters, digits and `-_.`, it is `{name}`"
    for name, count in Counter(names).items():
        if count > 1:
            yield "generations", f"`{name}` should mean one generation, it means {count}"


def _generation(generation: Generation) -> Iterator[tuple[str, str]]:
    place = f"generations.{generation.name}."
    kinds = {kind: set(getattr(generation, kind).value or ()) for kind in ("dtypes", "illegal_dtypes", "gated_dtypes")}
    named = {**kinds, "peak_flops": set(generation.peak_flops.value or ())}
    for kind, names in named.items():
        if foreign := sorted(names - dtypes.NAMES):
            known = ", ".join(sorted(dtypes.NAMES))
            yield place + kind, f"element types should be of {known}, here is `{foreign[0]}`"
    for one, other in (("dtypes", "illegal_dtypes"), ("dtypes", "gated_dtypes"), ("illegal_dtypes", "gated_dtypes")):
        if both := sorted(kinds[one] & kinds[other]):
            yield place + other, f"an element type should be in one list, `{both[0]}` is in {one} too"
    if generation.kv_layout.value is not None and generation.kv_layout.value not in LAYOUTS:
        yield place + "kv_layout", f"a layout should be of {', '.join(LAYOUTS)}, it is `{generation.kv_layout.value}`"
    numbers: list[tuple[str, Iterable[float]]] = [
        ("memory_bytes", [generation.memory_bytes.value or 1]),
        ("bandwidth", [generation.bandwidth.value or 1]),
        ("peak_flops", (generation.peak_flops.value or {}).values()),
        ("kv_block_sizes", generation.kv_block_sizes.value or []),
    ]
    for name, values in numbers:
        if any(value <= 0 for value in values):
            yield place + name, f"a number should be above zero, the lowest is {min(values)}"


def _fused(fused: FusedOperator, stack: Stack) -> Iterator[str]:
    if fused.implements not in (*OPS, *STAGES):
        wanted = "an operator of spec/ops.py or a stage of attention"
        yield f"`{fused.name}` should implement {wanted}, not `{fused.implements}`"
    known = [generation.name for generation in stack.generations]
    for name in fused.generations:
        if name not in known:
            yield f"`{fused.name}` should be of generations {', '.join(known)}, not `{name}`"
    if fused.grade == "unknown" or not fused.source.strip():
        yield f"`{fused.name}` should have a grade of A, B or C and a source"
    match = _SCHEMA.match(fused.schema)
    if fused.schema and (match is None or match[1] != fused.name.rpartition(".")[2]):
        yield f"the schema of `{fused.name}` should begin with its last name, it begins with `{fused.schema[:40]}`"


def _pair(pair: Pair) -> Iterator[str]:
    if pair.grade == "unknown" or not pair.source.strip():
        yield f"the pair of torch {pair.torch} should have a grade of A, B or C and a source"
