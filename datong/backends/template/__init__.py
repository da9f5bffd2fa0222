"""The backend to copy: the smallest complete one. It runs `add` and refuses the rest with a reason.

docs/howto/add-a-chip.md walks through it. Lines marked CHIP are where yours differs; here the "device" is this process.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datong.errors import DeviceError, Unsupported
from datong.spec.backend import API_VERSION, Cache, CacheLayout, DeviceInfo, No, Placed, Yes
from datong.spec.check import check_part, check_step
from datong.spec.program import Node, Part, Step, Value


def create() -> TemplateBackend:
    """Make the backend: what the entry point names."""
    return TemplateBackend()


class TemplateBackend:
    """Answers questions and compiles; no device is needed before `compile`."""

    name = "template"  # CHIP: what users type
    api_version = API_VERSION

    def devices(self) -> list[DeviceInfo]:
        """The devices present now. CHIP: ask the driver; an empty list when it is not installed."""
        return [DeviceInfo(self.name, "the backend to copy; runs `add`", 0, "measured")]

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Yes or a reason, per node. CHIP: say what is in the way (`head size 80; this chip takes 64, 128`)."""
        if node.op != "add":
            return No(f"operator `{node.op}` is not implemented yet; this backend has add")
        widths = {values[name].shape[-1] for name in node.inputs}
        if len(widths) != 1:
            return No(f"add takes two inputs of one width, these have {sorted(map(str, widths))}")
        return Yes("template_add")

    def fusions(self) -> frozenset[str]:
        """No fused operators. CHIP: the compiler forms only those that are named here."""
        return frozenset()

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> TemplateExecutable:
        """Refuse what `supports` refuses, then build. CHIP: upload weights from `package` here, once."""
        answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
        if reasons := [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]:
            raise Unsupported(self.name, f"{len(reasons)} nodes are refused, first: {reasons[0][1]}", reasons=reasons)
        check_part(part)
        return TemplateExecutable(part)


class TemplateCache:
    """A paged K/V cache. CHIP: device memory for `blocks` blocks; here there is no attention, so it holds nothing."""

    layout = CacheLayout(block_size=16, dtype="f32", bytes_per_block=0)

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers: nothing to copy here."""


class TemplateExecutable:
    """A part that can run."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def create_cache(self, blocks: int) -> TemplateCache:
        """Allocate a cache of `blocks` blocks."""
        return TemplateCache(blocks)

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the nodes in order. CHIP: upload inputs, launch, download the outputs."""
        check_step(step)
        live = {"ids": step.ids, "positions": step.positions, "rows": step.rows, **inputs}
        if missing := [name for name in self._part.inputs if name not in live]:
            raise DeviceError("template", f"input `{missing[0]}` should be given, it is not")
        for node in self._part.nodes:
            a, b = (live[name] for name in node.inputs)
            live[node.outputs[0]] = a + b
        return {name: live[name] for name in self._part.outputs}

    def placement(self) -> list[Placed]:
        """Which implementation runs each node."""
        return [Placed(node.name, node.op, "template_add") for node in self._part.nodes]

    def memory(self) -> dict[str, int]:
        """Bytes by use. CHIP: count what the device holds."""
        return {"weights_mapped": 0, "weights_private": 0, "arena": 0}
