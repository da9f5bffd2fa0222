"""Pieces taken out of GGUF blocks stand for the same numbers as the official `gguf` package reads from them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer.gguf import blocks
from datong.importer.gguf.reader import GgufFile, GgufTensor
from datong.importer.gguf.types import ALL, BY_NAME, GgufType
from datong.spec.formats import Format

CARRIED = [t for t in ALL if t.format]


def random_blocks(kind: GgufType, rows: int, per_row: int, seed: int) -> np.ndarray:
    """[rows, per_row * block bytes] u8: random bits, but finite f16 fields, so that values compare."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, per_row, kind.nbytes), dtype=np.uint8)
    halves = {"Q6_K": [208], "F16": [0], "BF16": []}.get(
        kind.name, [0, 2] if kind.format and kind.format.has_min else [0]
    )
    if kind.name == "F32":
        return rng.standard_normal((rows, per_row)).astype("<f4").view(np.uint8)
    if kind.name == "BF16":
        return (rng.standard_normal((rows, per_row)).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    for at in halves:
        raw[..., at : at + 2] = rng.standard_normal((rows, per_row, 1)).astype("<f2").view(np.uint8)
    return raw.reshape(rows, -1)


def as_file(raw: np.ndarray, kind: GgufType, shape: tuple[int, ...]) -> tuple[GgufFile, GgufTensor]:
    data = b"\0" * 32 + raw.tobytes()
    return GgufFile(Path("x.gguf"), 3, data), GgufTensor("w", kind, shape, 32, len(data) - 32)  # type: ignore[arg-type]


def read_pieces(raw: np.ndarray, kind: GgufType, shape: tuple[int, int], order: np.ndarray | None = None) -> dict:
    file, tensor = as_file(raw, kind, shape)
    return {p: b"".join(blocks.stream_piece(file, tensor, p, order)) for p in kind.format.pieces}


def dequantise(form: Format, pieces: dict[str, bytes], out: int, in_: int) -> np.ndarray:
    """The definition in spec/formats.py, in f32."""

    def array(piece: str) -> np.ndarray:
        dtype, shape = form.piece_dtype(piece), form.piece_shape(piece, out, in_)
        values = np.frombuffer(pieces[piece], dtype.numpy)
        if dtype.bits == 4:
            nibbles = np.stack([values & 15, values >> 4], axis=-1).astype(np.int8)
            values = nibbles - 16 * (nibbles > 7) if dtype is dtypes.I4 else nibbles
        return values.reshape(shape).astype(np.float32)

    codes = array("codes")
    if not form.block:
        return codes
    scale = array("scale")
    minimum = array("min") if form.has_min else None
    if form.super_block:
        scale = array("super_scale") * scale
        minimum = array("super_min") * minimum if minimum is not None else None
    values = codes * scale.reshape(out, -1, 1)
    if minimum is not None:
        values = values + form.min_sign * minimum.reshape(out, -1, 1)
    return values.reshape(out, in_)


@pytest.mark.parametrize("kind", CARRIED, ids=lambda t: t.name)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 7), per_row=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_values_equal_the_official_reader(kind: GgufType, rows: int, per_row: int, seed: int) -> None:
    raw, in_ = random_blocks(kind, rows, per_row, seed), per_row * kind.block
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    found = dequantise(kind.format, read_pieces(raw, kind, (rows, in_)), rows, in_)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", CARRIED, ids=lambda t: t.name)
def test_pieces_have_the_stated_size_and_lose_no_bit(kind: GgufType) -> None:
    rows, in_ = 3, 2 * kind.block
    raw = random_blocks(kind, rows, 2, 1)
    pieces = read_pieces(raw, kind, (rows, in_))
    for piece, data in pieces.items():
        count = int(np.prod(kind.format.piece_shape(piece, rows, in_)))
        assert len(data) == kind.format.piece_dtype(piece).nbytes(count), piece
    # every bit of the block reaches some piece: flipping it changes the pieces
    for byte in range(kind.nbytes):
        changed = raw.copy()
        changed[1, byte] ^= 0x81
        assert read_pieces(changed, kind, (rows, in_)) != pieces, byte


@pytest.mark.parametrize("kind", CARRIED, ids=lambda t: t.name)
def test_rows_move_whole(kind: GgufType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, in_ = 9, kind.block
    raw, order = random_blocks(kind, rows, 1, 2), np.random.default_rng(3).permutation(9)
    moved = read_pieces(raw[order], kind, (rows, in_))
    monkeypatch.setattr(blocks, "CHUNK", 4 * kind.nbytes)  # several chunks, the last one short
    assert read_pieces(raw, kind, (rows, in_), order) == moved


def test_other_types_are_refused_by_name() -> None:
    tensor = GgufTensor("blk.0.ffn_up.weight", BY_NAME["IQ2_XS"], (4, 256), 0, 74 * 4)
    with pytest.raises(CheckpointError, match=r"\[m.gguf\] tensor `blk.0.ffn_up.weight` is stored as IQ2_XS.*\n.*Q4_K"):
        blocks.check_carried(tensor, "m.gguf")
