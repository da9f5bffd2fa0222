"""The reference backend: each node is one call of spec/reference.py.

Options of `compile`: `cache_dtype`, f32 (default), f16 or bf16; `keep_mb`, megabytes of dequantised weights to keep,
256. `threads`, `isa`, `max_tokens`, `max_rows` are accepted and have no meaning here.

Every model is offered to this backend last. What it takes to run is imported when a node comes, which on most devices
is never.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from datong.errors import DeviceError, Unsupported, VerifyError
from datong.spec.backend import API_VERSION, DeviceInfo, No, Yes
from datong.spec.ops import FUSED, OPS
from datong.spec.program import Node, Part, Value

if TYPE_CHECKING:
    from datong.backends.reference.executable import ReferenceExecutable

_OPTIONS = ("threads", "isa", "cache_dtype", "max_tokens", "max_rows", "keep_mb")


class ReferenceBackend:
    """Runs every operator of ops.py by its definition.

    Fused operators are claimed only on request (`ReferenceBackend.with_fusions()`), so that the compiler's fusions can
    be tested against their expansion without any chip.
    """

    name = "reference"
    api_version = API_VERSION
    option_names = frozenset(_OPTIONS)

    def __init__(self, fusions: Iterable[str] = ()) -> None:
        self._fusions = frozenset(fusions)

    @classmethod
    def with_fusions(cls) -> ReferenceBackend:
        """An instance that claims every fused operator."""
        return cls(op.name for op in FUSED)

    def devices(self) -> list[DeviceInfo]:
        """One device, this process."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return [DeviceInfo("reference", f"NumPy {np.__version__}, the definition", memory, "measured")]

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Yes to every node that obeys its row; No with the rule that it breaks."""
        from datong.spec.check import check_node

        try:
            check_node(node, values)
        except VerifyError as error:
            return No(error.message)
        if OPS[node.op].tier == "fused" and node.op not in self._fusions:
            return No(f"fused operator `{node.op}` is not claimed by this instance")
        return Yes(f"numpy {node.op}")

    def fusions(self) -> frozenset[str]:
        """The fused operators given to the constructor."""
        return self._fusions

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> ReferenceExecutable:
        """Check the part and map its weights."""
        from datong.backends.reference.executable import ReferenceExecutable
        from datong.spec.check import check_part

        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise DeviceError("reference", f"option `{unknown[0]}` is not known", f"options: {', '.join(_OPTIONS)}")
        answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
        if reasons := [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]:
            raise Unsupported("reference", f"{len(reasons)} nodes are refused, first {reasons[0][1]}", reasons=reasons)
        check_part(part)
        return ReferenceExecutable(part, package, options)
