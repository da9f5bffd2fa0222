"""Weights on the device, uploaded once: each matrix is dequantised a few rows at a time, so the host never holds two.

A matrix is used as `[out, in]` by whoever multiplies with it; in memory it may lie transposed (`Target.in_out`), which
is a matter of strides, or as oneDNN likes it (packed.py). Matrices that share their input become one, row after row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.reference.weights import Weights, constant
from datong.backends.torch import packed
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.target import Target
from datong.errors import DeviceError
from datong.spec.program import Part

CHUNK = 1 << 22  # elements that are dequantised at once: 16 MiB as f32
_Key = tuple[tuple[str, int, str, bool], ...]


class WeightStore:
    """The weights of one part."""

    def __init__(self, package: str, part: Part, target: Target, device: torch.device, dtype: str) -> None:
        self._values, self._target, self._device = part.values, target, device
        self._files = Weights(package, part.values, keep_bytes=0)
        self.dtype = DTYPES[dtype]
        self._packs = target.device == "cpu" and packed.packable(self.dtype)
        self._in_out = dtype in target.in_out
        self._kept: dict[tuple[_Key, torch.dtype | str], Tensor] = {}
        looked_up = {self._key(node.inputs[1:2]) for node in part.nodes if node.op == "embedding"}
        others = (node.inputs for node in part.nodes if node.op != "embedding")
        self._tied = looked_up & {self._key((n,)) for names in others for n in names if self._is_matrix(n)}

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
        key = self._key(names)
        if (key, dtype) not in self._kept:
            self._kept[key, dtype] = self._upload(names, dtype)
        return self._kept[key, dtype]

    def product(self, names: tuple[str, ...], biases: tuple[str, ...] = ()) -> Callable[[Tensor], Tensor]:
        """The function x [T, in] -> x @ weight.T + bias [T, sum of out], with the matrices of `names` stacked.

        A matrix that is also looked up by rows (tied embeddings) stays one tensor for both.
        """
        bias, key = self.biases(biases or ("",) * len(names), names), self._key(names)
        if not self._packs or key in self._tied:
            weight = self.stacked(names)
            return lambda x: functional.linear(x, weight, bias)
        tensor, function = packed.product(self._upload(names, self.dtype), bias)
        self._kept[key, "packed"] = tensor
        return function

    @property
    def addmm(self) -> bool:
        """Is residual + x @ weight.T best computed as one operator?"""
        return not self._packs

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

    def _key(self, names: tuple[str, ...]) -> _Key:
        values = [self._values[name] for name in names]
        return tuple((p.file, p.offset, p.role, value.swapped) for value in values for p in value.pieces)

    def _is_matrix(self, name: str) -> bool:
        return bool(name) and self._values[name].kind == "weight" and len(self._values[name].shape) == 2

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self._values[name].shape)

    def _upload(self, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        """Raises DeviceError where memory is short."""
        try:
            return self._fill(self._empty(names, dtype), names)
        except RuntimeError as error:
            text = f"weight `{names[0]}` should fit the device, got: {str(error).splitlines()[0]}"
            raise DeviceError(self._target.name, text, "a smaller compute_dtype, or two devices") from error

    def _empty(self, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        shapes = [self._shape(name) for name in names]
        rows, rest = sum(shape[0] for shape in shapes), shapes[0][1:]
        # What is looked up only stays row by row, and oneDNN takes matrices so.
        tied_or_plain = self._key(names) in self._tied or not self._packs
        if len(rest) == 1 and self._in_out and dtype is self.dtype and tied_or_plain:
            return torch.empty((*rest, rows), dtype=dtype, device=self._device).t()
        return torch.empty((rows, *rest), dtype=dtype, device=self._device)

    def _fill(self, target: Tensor, names: tuple[str, ...]) -> Tensor:
        """A few rows at a time."""
        step = max(1, CHUNK // max(1, math.prod(target.shape[1:])))
        start = 0
        for name in names:
            rows = self._shape(name)[0]
            for first in range(0, rows, step):
                host = torch.from_numpy(self._files.rows(name, slice(first, first + step))).to(target.dtype)
                target[start + first : start + first + host.shape[0]].copy_(host)
            start += rows
        return target
