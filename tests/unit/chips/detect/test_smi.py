"""Reading the vendors' tables: every descriptor's expression, and which generation a name means."""

from __future__ import annotations

import re

import pytest

from datong.chips import load
from datong.chips.detect import smi
from datong.chips.detect.smi import ask
from datong.errors import ChipError


@pytest.mark.parametrize("name", sorted(load.stacks()))
def test_the_expression_has_the_groups_that_are_read(name: str) -> None:
    fact = load.stacks()[name].identity.smi_device_pattern
    if fact.value is None:
        pytest.skip("the table is not known")
    groups = set(re.compile(fact.value, re.MULTILINE).groupindex)
    assert "index" in groups and groups <= {"index", "device", "product", "memory_mib", "bus"}


@pytest.mark.parametrize(
    ("stack", "product", "generation"),
    [
        ("ascend", "910B3", "a2"),
        ("ascend", "910B4-1", "a2"),
        ("ascend", "910B9", None),
        ("ascend", "Ascend910", "a3"),
        ("ascend", "Ascend910_9392", "a3"),
        ("ascend", "910A", None),
        ("ascend", "310P3", "310p"),
        ("ascend", "Ascend950PR", "a5"),
        ("enflame", "Enflame S60", "gcu300"),
        ("enflame", "Enflame S600", None),
        ("enflame", "Enflame L300", "gcu400"),
        ("moorethreads", "MTT S5000", "mp31"),
        ("moorethreads", "MTT S80", "mp21"),
        ("iluvatar", "Iluvatar BI-V150S", "ivcore11"),
        ("metax", "MXC500", "c500"),
        ("metax", "MetaX C600", "c600"),
        ("metax", "MetaX N260", None),
        ("biren-br1xx", "Biren106M", "br106"),
        ("nvidia", "NVIDIA A100-SXM4-80GB", "ampere"),
        ("nvidia", "NVIDIA GeForce RTX 3090", None),
        ("ascend", None, None),
        ("ascend", "", None),
    ],
)
def test_which_generation_a_name_means(stack: str, product: str | None, generation: str | None) -> None:
    found = smi.generation(product, load.stacks()[stack])
    assert (found.name if found else None) == generation


def test_rows_of_processes_are_no_devices(make) -> None:
    machine = make("ascend-910b-x8")
    assert "4711" in (machine.root / "smi/npu-smi.txt").read_text()
    report = ask(machine, load.stacks()["ascend"], [])
    assert [row.number for row in report.rows] == list(range(8))


def test_a_tool_that_we_cannot_read_is_not_run(make) -> None:
    machine = make("hygon-k100")
    machine.run = None  # would fail
    report = ask(machine, load.stacks()["hygon"], [])
    assert report.output.state == "ok" and report.rows == () and "do not know how to read it" in report.doubt


def test_a_bad_expression_names_the_descriptor(make) -> None:
    import msgspec

    stack = load.stacks()["ascend"]
    fact = msgspec.structs.replace(stack.identity.smi_device_pattern, value="(")
    bad = msgspec.structs.replace(stack, identity=msgspec.structs.replace(stack.identity, smi_device_pattern=fact))
    with pytest.raises(ChipError, match=r"ascend\.toml.*smi_device_pattern should be a regular expression"):
        ask(make("ascend-910b-x8"), bad, [])
