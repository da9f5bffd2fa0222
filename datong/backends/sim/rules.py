"""The rules of one chip, as its descriptor says them, and the sentence for each that is broken.

    [sim:enflame-s60] `aten::add` should use element types of Enflame S60, its input is f64 (B: FlagGems ... enflame)

Only facts of grade A or B are rules (chips/schema.py). Rules that hold for every device with memory of its own name
PyTorch as their source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datong.chips.load import Chip
from datong.chips.schema import Fact
from datong.errors import RuleBroken

PYTORCH = "every PyTorch device with memory of its own"
REMOVED = "taken away by DATONG_SIM_WITHOUT or by a test"
_SETTING = re.compile(r"\b([A-Z][A-Z0-9_]{3,})=(\w+)")
_here: list[Rules] = []  # of the chip that this process simulates; one at most


@dataclass(frozen=True)
class Rules:
    """What may be done on a chip.

    Args:
        device: full name, for errors: `sim:ascend-910b`.
        chip: whose descriptor holds the rules.
        without: operators to take away besides those that the descriptor lists: `aten::mm`.
    """

    device: str
    chip: Chip
    without: frozenset[str] = field(default_factory=frozenset)

    def broken(self, operator: str, rule: str, came: str, source: str, hint: str | None = None) -> RuleBroken:
        """The error for one broken rule, in one sentence."""
        return RuleBroken(self.device, f"`{operator}` {rule}, {came} ({source})", hint)

    @cached_property
    def refused_dtypes(self) -> dict[str, tuple[str, str]]:
        """Element types with a rule of their own -> (rule, source): illegal ones, and gated ones whose gate is shut."""
        generation = self.chip.generation
        refused = {}
        for dtype in usable(generation.gated_dtypes):
            gate = _SETTING.findall(generation.gated_dtypes.note)
            if not gate or any(os.environ.get(name) != value for name, value in gate):
                switch = " and ".join(f"{name}={value}" for name, value in gate)
                only = f"only with {switch} set" if switch else "nowhere: it may fail"
                rule = f"should use {dtype} on {generation.title} {only}"
                refused[dtype] = (rule, cite(generation.gated_dtypes))
        for dtype in usable(generation.illegal_dtypes):
            rule = f"should use element types that {generation.title} has, without {dtype}"
            refused[dtype] = (rule, cite(generation.illegal_dtypes))
        return refused

    def dtype(self, operator: str, dtype: str, whose: str) -> RuleBroken | None:
        """May `operator` have an operand of this element type? `whose`: "an input" or "the output"."""
        generation = self.chip.generation
        if dtype in self.refused_dtypes:
            rule, source = self.refused_dtypes[dtype]
        elif generation.dtypes.usable and dtype not in {*usable(generation.dtypes), *usable(generation.gated_dtypes)}:
            rule = f"should use element types that {generation.title} has ({', '.join(usable(generation.dtypes))})"
            source = cite(generation.dtypes)
        else:
            return None
        return self.broken(operator, rule, f"{whose} is {dtype}", source)

    def missing(self, operator: str) -> RuleBroken | None:
        """Does the chip have the operator (`aten::mm`)?"""
        title, fact = self.chip.generation.title, self.chip.stack.missing_operators
        if operator in usable(fact):
            source = cite(fact)
        elif operator in self.without:
            source = REMOVED
        else:
            return None
        return self.broken(operator, f"should be an operator that {title} runs", "it is not", source)

    def block_size(self, operator: str, size: int) -> RuleBroken | None:
        """May a paged cache have blocks of `size` tokens? Any, where the descriptor does not know."""
        fact = self.chip.generation.kv_block_sizes
        allowed = usable(fact)
        if not allowed or size in allowed:
            return None
        rule = f"should have cache blocks of {' or '.join(map(str, allowed))} tokens on {self.chip.generation.title}"
        return self.broken(operator, rule, f"they have {size}", cite(fact))

    def host_sync(self, operator: str, what: str) -> RuleBroken:
        """The host waits for the device within a step."""
        rule = "should run without the host waiting between the begin of a step and its last download"
        hint = "keep lengths and tables on the host, or compute with tensors on the device"
        source = "a stall of the pipeline on every chip, and an error in graph capture"
        return self.broken(operator, rule, what, source, hint)

    def host_access(self, operator: str) -> RuleBroken:
        """The host reads device memory as if it were its own."""
        came = f"a tensor of {self.device} lies in the device's memory"
        return self.broken(operator, "should read host memory", came, PYTORCH, "copy it with .cpu() after the step")

    def capture(self, operator: str, what: str) -> RuleBroken:
        """Something that a captured graph cannot hold."""
        return self.broken(operator, "should be something that a captured graph can hold", what, self.graph_source)

    @property
    def graph_source(self) -> str:
        """Where graph capture is described."""
        fact = self.chip.stack.adapter.graph
        return cite(fact) if fact.usable else PYTORCH

    def mixed(self, operator: str, shape: Collection[int]) -> RuleBroken:
        """An operand in host memory beside one on the device."""
        came = f"an operand of shape {list(shape)} is in host memory"
        return self.broken(
            operator, "should have all operands on the device", came, PYTORCH, "move it with .to(device)"
        )

    def memory(self, operator: str, wanted: int, used: int, total: int) -> RuleBroken:
        """An allocation that does not fit."""
        fact = self.chip.generation.memory_bytes
        source = cite(fact) if fact.usable and fact.value == total else "limit of the test"
        came = f"it wants {wanted} bytes, {used} are in use, {wanted + used - total} too many"
        rule = f"should fit into the {total} bytes of {self.chip.generation.title}"
        return self.broken(operator, rule, came, source, "a smaller context or step_tokens leaves more room")


def usable(fact: Fact[Any]) -> list[Any]:
    """The list of a fact that code may act on, else nothing."""
    return list(fact.value) if fact.usable and fact.value else []


def cite(fact: Fact[Any]) -> str:
    """`B: FlagGems runtime/backend/_enflame`."""
    return f"{fact.grade}: {fact.source}"


def install(rules: Rules) -> None:
    """Make them the rules of this process."""
    _here[:] = [rules]


def here() -> Rules:
    """The rules of the chip that this process simulates."""
    return _here[0]


def demand(broken: RuleBroken | None) -> None:
    """Raise what a rule says, if anything.

    An exception in a variable of a frame that it went through is a cycle: the tensors of those frames would stay on the
    device until the next garbage collection.
    """
    try:
        if broken is not None:
            raise broken
    finally:
        del broken


# ---- for the vendors' operators (operators/<stack>.py) -----------------------------------------------------------


def require(condition: bool, operator: str, rule: str, came: str, source: Fact[Any] | str) -> None:
    """Raise RuleBroken unless `condition`: `[sim:…] `operator` rule, came (source)`.

    Args:
        condition: what must hold.
        operator: as the descriptor calls it: "torch_npu.npu_rotary_mul".
        rule: "should have cos and sin of the dtype of x".
        came: "cos is f32, x is bf16".
        source: the fact, or a text with its grade: "A: mcoplib_ops.md".
    """
    if not condition:
        raise here().broken(operator, rule, came, source if isinstance(source, str) else cite(source))


def require_block_size(operator: str, size: int) -> None:
    """Raise RuleBroken unless the chip's paged attention takes cache blocks of `size` tokens."""
    demand(here().block_size(operator, size))
