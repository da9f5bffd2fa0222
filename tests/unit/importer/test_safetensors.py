"""The header parser believes nothing: what is valid parses as the official reader sees it, the rest is refused."""

import hashlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from datong.errors import CheckpointError, DatongError
from datong.importer.safetensors import BITS, MAX_HEADER, parse_header, read_header

GOLDEN = Path(__file__).parents[2] / "data" / "goldens" / "llama3" / "model.safetensors"


def head(header: Any) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def parse(header: Any, data: int) -> Any:
    raw = head(header)
    return parse_header("x.safetensors", raw, len(raw) + data)


def test_real_file_agrees_with_the_official_reader() -> None:
    header, raw = read_header(GOLDEN), GOLDEN.read_bytes()
    official = safetensors.numpy.load_file(GOLDEN)
    assert set(header.tensors) == set(official)
    for name, entry in header.tensors.items():
        own = np.frombuffer(raw[entry.offset : entry.offset + entry.length], np.float32).reshape(entry.shape)
        assert entry.dtype == "F32" and np.array_equal(own, official[name])
    assert header.metadata == {"format": "pt"}
    assert header.file_size == len(raw)
    assert header.header_sha256 == hashlib.sha256(raw[: header.data_start]).hexdigest()


def test_tensors_come_in_data_order() -> None:
    header = parse({"b": tensor("U8", [2], 0, 2), "a": tensor("F16", [1], 2, 4)}, 4)
    assert list(header.tensors) == ["b", "a"]


def test_types_that_nothing_here_computes_with_are_parsed() -> None:
    header = parse(
        {"a": tensor("F8_E4M3", [3], 0, 3), "b": tensor("F4", [2, 2], 3, 5), "c": tensor("F64", [], 5, 13)}, 13
    )
    assert [e.length for e in header.tensors.values()] == [3, 2, 8]


def test_empty_file_and_empty_tensors() -> None:
    assert parse({}, 0).tensors == {}
    assert parse({"a": tensor("F32", [0, 7], 0, 0), "b": tensor("U8", [1], 0, 1)}, 1).tensors["a"].length == 0


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        (b"[]", 0, "should be a JSON object"),
        (b"{", 0, "should be a JSON object"),
        (b"\xff\xff", 0, "should be a JSON object"),
        (b"[" * 100_000, 0, "nested too deeply"),
        (b'{"a": NaN}', 0, "`NaN` is not JSON"),
        (b'{"a": 1, "a": 2}', 0, "a name occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "should be a JSON object"),
        ({"__metadata__": {"a": 1}}, 0, "`__metadata__` should map strings to strings"),
        ({"a": 1}, 0, "`dtype`, `shape` and `data_offsets` are wanted"),
        ({"a": {**tensor("U8", [], 0, 1), "more": 1}}, 1, "and nothing else"),
        ({"": tensor("U8", [], 0, 1)}, 1, "1 to 4096 printable characters"),
        ({"a\nb": tensor("U8", [], 0, 1)}, 1, "1 to 4096 printable characters"),
        (b'{"\\ud800": 1}', 0, "1 to 4096 printable characters"),
        ({"a": tensor("Q4", [1], 0, 1)}, 1, "dtype `Q4` is not one that safetensors has"),
        ({"a": tensor(["U8"], [1], 0, 1)}, 1, "is not one that safetensors has"),
        ({"a": tensor("U8", [-1], 0, 1)}, 1, "shape should be a list of whole numbers"),
        ({"a": tensor("U8", [True], 0, 1)}, 1, "shape should be a list of whole numbers"),
        ({"a": tensor("U8", [1.0], 0, 1)}, 1, "shape should be a list of whole numbers"),
        ({"a": tensor("U8", "1", 0, 1)}, 1, "shape should be a list of whole numbers"),
        ({"a": tensor("U8", [2**63], 0, 1)}, 1, "shape should be a list of whole numbers"),
        ({"a": tensor("U8", [2**40, 2**40], 0, 1)}, 1, "more elements than memory can have"),
        ({"a": tensor("U8", [1], 0)}, 1, "data_offsets should be two whole numbers"),
        ({"a": tensor("U8", [1], -1, 0)}, 1, "data_offsets should be two whole numbers"),
        ({"a": tensor("U8", [1], 1, 0)}, 1, "takes 1 bytes"),
        ({"a": tensor("F32", [2], 0, 4)}, 4, "takes 8 bytes, data_offsets [0, 4] give 4"),
        ({"a": tensor("F4", [3], 0, 1)}, 1, "does not end on a whole byte"),
        ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, 3, "tensor `b` starts at byte"),
        ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 0, 2)}, 2, "overlaps `a`"),
        ({"a": tensor("U8", [2], 1, 3)}, 3, "leaves a hole after `the header`"),
        ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 3, 5)}, 5, "leaves a hole after `a`"),
        ({"a": tensor("U8", [9], 0, 9)}, 8, "the file has only"),
        ({"a": tensor("U8", [2**62], 0, 2**62)}, 8, "the file has only"),
        ({"a": tensor("U8", [2], 0, 2)}, 3, "1 bytes after the last tensor belong to none"),
        ({}, 3, "3 bytes after the last tensor belong to none"),
    ],
)
def test_broken_headers_are_refused_in_one_sentence(header: Any, data: int, text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        parse(header, data)
    assert text in error.value.message and error.value.where == "x.safetensors" and error.value.hint
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "at least 8 bytes, this one has 0"),
        (b"1234567", "at least 8 bytes, this one has 7"),
        (struct.pack("<Q", 50) + b"{}", "the header should have 50 bytes, the file has 10"),
        (struct.pack("<Q", 2**64 - 1), f"the header may have {MAX_HEADER} bytes"),
        (struct.pack("<Q", 0), "should be a JSON object"),
    ],
)
def test_broken_prefixes_are_refused(tmp_path: Path, raw: bytes, text: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=text):
        read_header(path)


def test_missing_file_directory_and_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, text in (("none", "cannot be read: No such file"), ("", "regular file"), ("pipe", "regular file")):
        with pytest.raises(CheckpointError, match=text):
            read_header(tmp_path / name)


def test_every_prefix_of_a_file_is_refused() -> None:
    raw = head({"a": tensor("U8", [3], 0, 3)}) + b"abc"
    for length in range(len(raw)):
        with pytest.raises(CheckpointError):
            parse_header("x", raw[: min(length, len(raw) - 3)], length)


TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


NAME = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)
SHAPE = st.lists(st.integers(0, 5), max_size=3)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(NAME, st.tuples(st.sampled_from(sorted(TYPES)), SHAPE), max_size=6))
def test_what_the_official_writer_writes_is_read(tensors: dict[str, tuple[str, list[int]]]) -> None:
    arrays = {
        n: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(TYPES[t]) for n, (t, shape) in tensors.items()
    }
    raw = safetensors.numpy.save(arrays)
    header = parse_header("x", raw, len(raw))
    assert {n: (e.dtype, list(e.shape)) for n, e in header.tensors.items()} == tensors
    for name, entry in header.tensors.items():
        assert raw[entry.offset : entry.offset + entry.length] == arrays[name].tobytes()


SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(sorted(BITS))
)
JUNK = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries({"dtype": JUNK, "shape": JUNK, "data_offsets": JUNK})


@settings(deadline=None, derandomize=True)
@given(JUNK | st.dictionaries(st.text(max_size=4), ENTRY | JUNK, max_size=4), st.integers(0, 40))
def test_any_json_gives_a_header_or_a_checkpoint_error(header: Any, data: int) -> None:
    try:
        parsed = parse(header, data)
    except CheckpointError:
        return
    assert sum(e.length for e in parsed.tensors.values()) == data


def test_mutated_bytes_give_a_header_or_a_datong_error(tmp_path: Path) -> None:
    original, path, refused = GOLDEN.read_bytes()[:4000], tmp_path / "m.safetensors", 0
    rng = random.Random(7)
    for _ in range(600):
        raw = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(rng.choice((8, 200, len(raw))))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            read_header(path)
        except DatongError:
            refused += 1
    assert refused == 600  # the data is cut off, so no mutation can make this valid


def test_a_sparse_file_of_100_gb_is_read_in_no_time(tmp_path: Path) -> None:
    size = 100 * 10**9
    raw = head({"a": tensor("BF16", [size // 2], 0, size)})
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    os.truncate(path, len(raw) + size)
    before = _bytes_read()
    assert read_header(path).tensors["a"].length == size
    assert _bytes_read() - before < 1_000_000


def _bytes_read() -> int:
    """Bytes that this process has asked read() for so far."""
    return int(Path("/proc/self/io").read_text().split()[1])
