"""The layout of a safetensors file before it is written: what the official reader finds, where we said it would lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from datong import dtypes
from datong.dtypes import DType
from datong.errors import CheckpointError
from datong.importer import layout
from datong.importer.imported import PendingTensor

DTYPES = [dtypes.F32, dtypes.F16, dtypes.I8, dtypes.U8]


def pending(name: str, dtype: DType, count: int) -> PendingTensor:
    data = np.random.default_rng(len(name) + count).integers(0, 100, count).astype(dtype.numpy).tobytes()
    return PendingTensor(name, dtype, (count,), len(data), lambda: iter((data,)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 200)), max_size=12))
def test_every_tensor_lies_where_it_was_said(
    rows: list[tuple[DType, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = layout.file_order([pending(f"t{i}", dtype, count) for i, (dtype, count) in enumerate(rows)])
    head, places = layout.header(tensors), layout.offsets(tensors)
    assert len(head) % layout.ALIGN == 0 and sorted(places) == sorted(f"t{i}" for i in range(len(rows)))
    blob = head + b"".join(chunk for t in tensors for chunk in t.read())
    path: Path = tmp_path_factory.mktemp("layout") / "m.safetensors"
    path.write_bytes(blob)
    stored = load_file(path)
    for t in tensors:
        place = places[t.name]
        assert np.array_equal(np.frombuffer(blob, t.dtype.numpy, t.shape[0], place), stored[t.name])
        assert place % (layout.ALIGN if t.length % layout.ALIGN == 0 else t.dtype.numpy.itemsize) == 0


def test_order_is_kept_among_aligned_tensors() -> None:
    tensors = [
        pending("a", dtypes.U8, 7),
        pending("b", dtypes.U8, 64),
        pending("c", dtypes.F32, 3),
        pending("d", dtypes.F32, 16),
    ]
    assert [t.name for t in layout.file_order(tensors)] == ["b", "d", "c", "a"]


def test_header_is_json_with_spaces() -> None:
    head = layout.header([pending("a", dtypes.F16, 2)])
    assert int.from_bytes(head[:8], "little") == len(head) - 8
    assert json.loads(head[8:])["a"] == {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


def test_one_name_twice() -> None:
    with pytest.raises(CheckpointError, match="tensor `a` would be written twice"):
        layout.header([pending("a", dtypes.F16, 2), pending("a", dtypes.F16, 3)])
