"""TorchBackend: the protocol of spec/backend.py over PyTorch, on whatever device its target names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

from datong.backends.torch.options import KNOWN
from datong.backends.torch.options import read as read_options
from datong.backends.torch.target import FLOATS, Target, memory_bytes, open_target
from datong.errors import Unsupported, VerifyError
from datong.spec.backend import API_VERSION, DeviceInfo, No, Yes
from datong.spec.check import check_node, check_part
from datong.spec.ops import FUSED
from datong.spec.program import Node, Part, Value

# The rest of this folder imports torch, and so does making a TorchBackend.
from datong.backends.torch import graphs, lower  # isort: skip
from datong.backends.torch.executable import Guard, TorchExecutable  # isort: skip


class TorchBackend:
    """One device of PyTorch.

    Args:
        target: the device.
        without: operators to refuse, so that what happens then can be seen.
        guard: see TorchExecutable.
    """

    api_version = API_VERSION
    option_names = frozenset(KNOWN)

    def __init__(self, target: Target, *, without: Iterable[str] = (), guard: Guard = nullcontext) -> None:
        self.name, self.target = target.name, target
        self._without, self._guard = frozenset(without), guard
        self._device = open_target(target)

    def devices(self) -> list[DeviceInfo]:
        """This device."""
        import torch

        chip = self.target.chip
        title = f"{chip.generation.title}, " if chip else ""
        text = f"{title}PyTorch {torch.__version__} on `{self._device}`"
        return [DeviceInfo(self.name, text, memory_bytes(self.target), self.target.evidence)]

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Yes, or the rule, element type or operator that is in the way."""
        try:
            check_node(node, values)
        except VerifyError as error:
            return No(error.message)
        if node.op in self._without:
            return No(f"operator `{node.op}` was taken from this backend")
        if node.op not in lower.LOWER:
            return No(f"operator `{node.op}` has no form in PyTorch yet")
        if not self.target.floats:
            return No(f"activations should be {', '.join(FLOATS)}, none of them is legal on this chip")
        if reason := lower.missing(node, values, self.target):
            return No(reason)
        return Yes(f"torch {node.op}")

    def fusions(self) -> frozenset[str]:
        """The fused operators that cost fewer calls or products here."""
        return frozenset(op.name for op in FUSED if op.name in lower.LOWER) - self._without

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> TorchExecutable:
        """Check the part, upload its weights, make its closures."""
        answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
        if reasons := [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]:
            raise Unsupported(self.name, f"{len(reasons)} nodes are refused, first {reasons[0][1]}", reasons=reasons)
        check_part(part)
        settings = read_options(self.target, part, options, graphs.can_capture(self.target))
        if settings.threads and self.target.device == "cpu":
            import torch

            torch.set_num_threads(settings.threads)
        return TorchExecutable(part, package, self.target, self._device, settings, self._guard)
