"""A tensor on the simulated device: its data are a hidden tensor in host memory that nobody outside gets to see.

Every operator with such an operand comes to `Card.execute` (card.py), through `__torch_dispatch__`; one that only makes
such a tensor (`torch.empty(3, device="npu")`) comes there through the fallback that install.py registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from datong.errors import DatongError

if TYPE_CHECKING:
    from datong.backends.sim.card import Card
    from datong.backends.sim.memory import Allocation

_card: list[Card] = []  # of this process; one at most


def insert(card: Card) -> None:
    """Make it the card that holds every device tensor of this process."""
    _card[:] = [card]


def card() -> Card:
    """The card of this process."""
    if not _card:
        raise DatongError("sim", "a simulated chip should be installed in this process, there is none")
    return _card[0]


def wrap(hidden: torch.Tensor, allocation: Allocation, device: torch.device) -> DeviceTensor:
    """`hidden` as a tensor on the device, with its shape, strides and element type."""
    made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
        DeviceTensor,
        hidden.size(),
        strides=hidden.stride(),
        storage_offset=hidden.storage_offset(),
        dtype=hidden.dtype,
        device=device,
    )
    made.hidden, made.allocation = hidden, allocation
    return made


class DeviceTensor(torch.Tensor):
    """On the device for PyTorch; `hidden` on the host for us."""

    hidden: torch.Tensor
    allocation: Allocation

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator; see Card.execute."""
        return card().execute(operator, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        # a real adapter copies to the host to print, which is a synchronisation that nobody asked for
        return f"tensor(..., device='{self.device}', size={tuple(self.shape)}, dtype={self.dtype})"

    def numpy(self, *, force: bool = False) -> Any:
        """As on every device: only with `force`, and then through the host."""
        if not force:
            raise card().rules.host_access("aten::numpy")
        return self.cpu().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise card().rules.host_access("aten::numpy")

    def tolist(self) -> Any:
        """Through the host."""
        return self.cpu().tolist()
