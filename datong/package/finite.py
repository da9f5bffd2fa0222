"""Weights that are no numbers: NaN and infinities in the floats of a package, scales of blocks included."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from datong import dtypes
from datong.errors import IntegrityError
from datong.package import graph
from datong.package.files import CHUNK, Progress, watch
from datong.package.reader import MAX_GRAPH, Package

# A float is no number when all of these bits are ones: its exponent (IEEE 754-2019, 3.4; bfloat16 is the upper half of
# a binary32), in E4M3, which has no infinity, its fraction as well (OCP OFP8 1.0, 5.1), and the whole of an E8M0 (OCP
# MX 1.0, 5.4.1). name -> (unsigned type of the same width, bits)
NO_NUMBER: dict[str, tuple[str, int]] = {
    dtypes.F32.name: ("<u4", 0x7F80_0000),
    dtypes.F16.name: ("<u2", 0x7C00),
    dtypes.BF16.name: ("<u2", 0x7F80),
    dtypes.F8E4M3.name: ("u1", 0x7F),
    dtypes.F8E8M0.name: ("u1", 0xFF),
}


def check_finite(package: Package, progress: Progress | None = None) -> str:
    """Read every float initializer of the model and its heads, 4 MiB at a time; `progress` is told of bytes read.

    Returns what was found.

    Raises IntegrityError with the first value that is no number: initializer, index and how many there are in it.
    """
    found = [one for name in package.graphs() for one in graph.externals(_parsed(package, name), name)]
    floats = list({(one.file, one.offset): one for one in found if one.dtype.name in NO_NUMBER}.values())
    total, done, tell = sum(one.length for one in floats), 0, watch(progress)
    for one in floats:
        bad = _not_finite(package, one)
        done += one.length
        tell("read weights", done, total)
        if bad.size:
            raise IntegrityError(
                one.file,
                f"initializer `{one.name}` should hold numbers, {bad.size} of its {math.prod(one.shape)} are NaN or "
                f"infinite, the first at {[int(i) for i in np.unravel_index(int(bad[0]), one.shape)]}",
                "the checkpoint was damaged or badly trained; get it again, and import it again",
            )
    return f"{total:,} bytes of floats in {len(floats)} initializers"


def _parsed(package: Package, name: str) -> ModelProto:
    return graph.parse(package.read(name, MAX_GRAPH), name)


def _not_finite(package: Package, one: graph.External) -> NDArray[np.int64]:
    """Flat indices of the values that are no numbers -> [N] i64."""
    stored, ones = NO_NUMBER[one.dtype.name]
    places = [np.empty(0, np.int64)]
    with open(package.path(one.file), "rb") as file:
        file.seek(one.offset)
        for begin in range(0, one.length, CHUNK):
            bits = np.frombuffer(file.read(min(CHUNK, one.length - begin)), stored)
            places.append(np.flatnonzero((bits & ones) == ones) + begin // bits.itemsize)
    return np.concatenate(places)
