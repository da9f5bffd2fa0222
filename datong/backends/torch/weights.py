"""Weights on the device, uploaded once: each matrix is dequantised a few rows at a time, so the host never holds two.

A matrix is used as `[out, in]` by whoever multiplies with it; in memory it may lie transposed (`Target.in_out`), which
is a matter of strides. Several matrices that share their input become one, row after row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from datong.backends.reference.weights import Weights, constant
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.target import Target
from datong.errors import DeviceError
from datong.spec.program import Value

CHUNK = 1 << 22  # elements that are dequantised at once: 16 MiB as f32
_Key = tuple[tuple[str, int, str], ...]


class WeightStore:
    """The weights of one part."""

    def __init__(self, package: str, values: Mapping[str, Value], target: Target, device: torch.device, dtype: str):
        self._files = Weights(package, values, keep_bytes=0)
        self._values, self._target, self._device = values, target, device
        self.dtype = DTYPES[dtype]
        self._transposed = dtype in target.in_out
        self._kept: dict[tuple[_Key, torch.dtype], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept.values())

    def get(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One weight in its logical shape; matrices that are the same bytes in the file are the same tensor."""
        return self.stacked((name,), dtype)

    def stacked(self, names: tuple[str, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Matrices of one width, row after row: [sum of out, in]; or one weight of any shape."""
        dtype = dtype or self.dtype
        key = (tuple((p.file, p.offset, p.role) for name in names for p in self._values[name].pieces), dtype)
        if key not in self._kept:
            try:
                self._kept[key] = self._upload(names, dtype)
            except RuntimeError as error:
                text = f"weight `{names[0]}` should fit the device, got: {str(error).splitlines()[0]}"
                raise DeviceError(self._target.name, text, "a smaller compute_dtype, or two devices") from error
        return self._kept[key]

    def biases(self, names: tuple[str, ...], weights: tuple[str, ...]) -> Tensor | None:
        """Biases of stacked matrices, zeros where one has none; None when none has."""
        if not any(names):
            return None
        host = [
            torch.from_numpy(self._files.rows(name, slice(None)))
            if name
            else torch.zeros(self._shape(weight)[0], dtype=torch.float32)
            for name, weight in zip(names, weights, strict=True)
        ]
        return torch.cat(host).to(self.dtype).to(self._device)

    def constant(self, name: str) -> Tensor:
        """A small constant of the program, in its own dtype."""
        return torch.from_numpy(constant(self._values[name])).to(self._device)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self._values[name].shape)

    def _upload(self, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        shapes = [self._shape(name) for name in names]
        rows, rest = sum(shape[0] for shape in shapes), shapes[0][1:]
        if len(rest) == 1 and self._transposed:
            target = torch.empty((*rest, rows), dtype=dtype, device=self._device).t()
        else:
            target = torch.empty((rows, *rest), dtype=dtype, device=self._device)
        step = max(1, CHUNK // max(1, int(np.prod(rest, dtype=np.int64))))
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            for first in range(0, shape[0], step):
                host = torch.from_numpy(self._files.rows(name, slice(first, first + step)))
                target[start + first : start + first + host.shape[0]].copy_(host.to(dtype))
            start += shape[0]
        return target
