"""The GGUF reader against the official writer, and against everything a file can get wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from datong.errors import CheckpointError
from datong.importer.gguf.reader import read_gguf
from datong.importer.gguf.types import ALL
from datong.importer.gguf.values import Strings

Save = Callable[[bytes], Path]


def test_types_equal_the_official_table() -> None:
    theirs = {int(k): (k.name, *size) for k, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {t.id: (t.name, t.block, t.nbytes) for t in ALL}
    assert {i: row for i, row in theirs.items() if i in ours} == ours


def test_reads_what_the_official_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200), writer.add_int8("t.i8", -3), writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000), writer.add_int32("t.i32", -5), writer.add_uint64("t.u64", 2**63)
    writer.add_int64("t.i64", -(2**62)), writer.add_float32("t.f32", 1e-5), writer.add_float64("t.f64", 1e-5)
    writer.add_bool("t.bool", True), writer.add_string("t.text", "héllo"), writer.add_array("t.texts", ["", "a", "中"])
    writer.add_array("t.ints", [1, -2, 3]), writer.add_array("t.floats", [0.5, 1.5])
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(5, dtype=np.float16)
    writer.add_tensor("a", first), writer.add_tensor("b", second)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()

    file = read_gguf(path)
    values = {k.removeprefix("t."): v for k, v in file.values.items() if k.startswith("t.")}
    texts, ints, floats = values.pop("texts"), values.pop("ints"), values.pop("floats")
    assert values == {
        "u8": 200, "i8": -3, "u16": 60000, "i16": -30000, "i32": -5, "u64": 2**63, "i64": -(2**62), "f32": 1e-5,
        "f64": 1e-5, "bool": True, "text": "héllo",
    }  # fmt: skip
    assert isinstance(texts, Strings) and list(texts) == ["", "a", "中"] and len(texts) == 3
    assert np.array_equal(ints, [1, -2, 3]) and np.array_equal(floats, [0.5, 1.5])
    for name, array in (("a", first), ("b", second)):
        tensor = file.tensors[name]
        found = np.frombuffer(file.data, array.dtype, array.size, tensor.offset).reshape(tensor.shape)
        assert np.array_equal(found, array) and tensor.length == array.nbytes


@pytest.mark.parametrize("version", [2, 3])
def test_versions(version: int, raw: SimpleNamespace, save: Save) -> None:
    assert read_gguf(save(raw.file({}, [], version=version))).version == version


def test_alignment_is_honoured(raw: SimpleNamespace, save: Save) -> None:
    entry = raw.tensor("a", [4], 0, 256)
    data = raw.file({"general.alignment": 256}, [entry], bytes(272), alignment=256)
    file = read_gguf(save(data))
    assert file.tensors["a"].offset == 512 and len(file.data) == 528


HUGE = 2**64 - 1


def entry(name: str = "a", dims: list[int] | None = None, kind: int = 0, offset: int = 0) -> Callable[[Any], bytes]:
    return lambda raw: raw.tensor(name, [4] if dims is None else dims, kind, offset)


def one(*entries: Callable[[Any], bytes], data: int = 64, **options: Any) -> Callable[[Any], bytes]:
    return lambda raw: raw.file({}, [e(raw) for e in entries], bytes(data), **options)


def key(payload: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda raw: raw.file({"k": payload(raw)}, [])


BAD: list[tuple[str, Callable[[Any], bytes], str]] = [
    ("empty", lambda raw: b"", "the file is empty"),
    ("short", lambda raw: b"GG", "byte 0: a GGUF file begins with `GGUF`, this one with b'GG'"),
    ("magic", one(magic=b"GGML"), "byte 0: a GGUF file begins with `GGUF`, this one with b'GGML'"),
    ("no version", lambda raw: b"GGUF\3\0", "byte 4: the version needs 4 bytes, the file has 2 left"),
    ("version 1", one(version=1), "byte 4: GGUF version should be 2 or 3, it is 1"),
    ("version 4", one(version=4), "byte 4: GGUF version should be 2 or 3, it is 4"),
    ("big-endian", one(version=3 << 24), "byte 4: the file is big-endian"),
    ("tensor count", one(n_tensors=HUGE), f"byte 8: tensor count {HUGE} cannot be"),
    ("key count", one(n_keys=10**9), "byte 16: key count 1000000000 cannot be"),
    ("more keys than there are", one(n_keys=1, data=0), "the type of `` needs 4 bytes, the file has 0 left"),
    ("key length", lambda raw: raw.file({}, [], n_keys=1)[:24] + struct.pack("<Q", HUGE) + bytes(32),
     f"byte 24: a key should have at most 65535 bytes, its length field says {HUGE}"),
    ("key twice", lambda raw: raw.file({}, [], n_keys=2)[:24] + 2 * (raw.text("k") + raw.typed(1)),
     "key `k` is given twice"),
    ("key not text", lambda raw: raw.file({}, [], n_keys=1)[:24] + raw.text(b"\xff") + raw.typed(1),
     "a key is not UTF-8"),
    ("key with a line break", lambda raw: raw.file({"a\nb": 1}, []), r"a key should be printable, it is 'a\\nb'"),
    ("tensor name with an escape", one(entry("a\x1b[2J")), r"a tensor name should be printable, it is 'a\\x1b"),
    ("value type", key(lambda raw: struct.pack("<I", 13)), "the type of `k` should be 0 to 12, it is 13"),
    ("string length", key(lambda raw: struct.pack("<I", 8) + raw.text("x", 10**12)),
     "the value of `k` needs 1000000000000 bytes, the file has"),
    ("string not text", key(lambda raw: struct.pack("<I", 8) + raw.text(b"\xc3(")), "the value of `k` is not UTF-8"),
    ("nested array", key(lambda raw: struct.pack("<IIQ", 9, 9, 1)), "`k` is an array of arrays"),
    ("array type", key(lambda raw: struct.pack("<IIQ", 9, 99, 1)),
     "the element type of `k` should be 0 to 12 and not 9, it is 99"),
    ("array count", key(lambda raw: struct.pack("<IIQ", 9, 4, HUGE)), f"the array `k` of {HUGE} elements needs"),
    ("string count", key(lambda raw: struct.pack("<IIQ", 9, 8, HUGE)),
     "the array `k` should have at most 4194304 strings"),
    ("string count 2", key(lambda raw: struct.pack("<IIQ", 9, 8, 10**6)),
     "the array `k` of 1000000 strings needs 8000000 bytes"),
    ("string in array", key(lambda raw: struct.pack("<IIQ", 9, 8, 2) + raw.text("a") + raw.text("b", 999)),
     "string 1 of `k` reaches to byte"),
    ("alignment 0", lambda raw: raw.file({"general.alignment": 0}, []), "`general.alignment` should be a power of two"),
    ("alignment 48", lambda raw: raw.file({"general.alignment": 48}, []),
     "`general.alignment` should be a power of two"),
    ("alignment text", lambda raw: raw.file({"general.alignment": "32"}, []),
     "`general.alignment` should be a power of two"),
    ("rank 0", one(entry(dims=[])), "tensor `a` should have 1 to 4 dims, it has 0"),
    ("rank 5", one(entry(dims=[1] * 5)), "tensor `a` should have 1 to 4 dims, it has 5"),
    ("dim 0", one(entry(dims=[4, 0])), r"tensor `a` has shape \[0, 4\]: every dim should be at least 1"),
    ("dims overflow", one(entry(dims=[2**33, 2**33])), "tensor `a` lies at bytes 96 to"),
    ("type number", one(entry(kind=4)), "tensor `a` has type number 4, which GGUF does not define"),
    ("half a block", one(entry(kind=8, dims=[48])),
     r"rows of tensor `a` \(Q8_0\) should be multiples of 32, they are 48"),
    ("offset unaligned", one(entry(offset=8)), "tensor `a` should begin at a multiple of 32, its offset is 8"),
    ("offset outside", one(entry(offset=1 << 40)),
     "tensor `a` lies at bytes 1099511627840 to 1099511627856, the file ends at 128"),
    ("offset huge", one(entry(offset=2**64 - 32)), "tensor `a` lies at bytes"),
    ("truncated", lambda raw: one(entry(dims=[16]))(raw)[:-1],
     "tensor `a` lies at bytes 64 to 128, the file ends at 127"),
    ("overlap", one(entry("a", [16]), entry("b", [4], offset=32)),
     "tensors `a` and `b` overlap: the first ends at byte 160, the second begins at 128"),
    ("name twice", one(entry(), entry(offset=32)), "tensor `a` is listed twice"),
    ("name length", one(entry("n" * 300)), "a tensor name should have at most 256 bytes, its length field says 300"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_damage_is_named(make: Callable[[Any], bytes], message: str, raw: SimpleNamespace, save: Save) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_gguf(save(make(raw)))
    assert caught.value.where == "m.gguf"


def test_every_cut_of_the_header_is_refused(raw: SimpleNamespace, save: Save) -> None:
    whole = raw.file({"a": "text", "b": ["x", "yz"], "c": [1, 2]}, [raw.tensor("t", [8], 0, 0)], bytes(32))
    read_gguf(save(whole))
    for end in range(len(whole)):
        with pytest.raises(CheckpointError):
            read_gguf(save(whole[:end]))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="directory"):
        read_gguf(tmp_path)


def test_a_string_that_is_not_text_is_found_when_read(raw: SimpleNamespace, save: Save) -> None:
    payload = struct.pack("<IIQ", 9, 8, 2) + raw.text("a") + raw.text(b"\xff")
    file = read_gguf(save(raw.file({"k": payload}, [])))
    with pytest.raises(CheckpointError, match="string 1 of `k` is not UTF-8"):
        list(file.values["k"])
