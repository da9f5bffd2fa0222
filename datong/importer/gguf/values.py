"""The key-value part of a GGUF file: a cursor that never leaves the file, and values that are decoded when asked for.

A vocabulary is 100,000 strings and more; finding where each begins is all that parsing does with them.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datong.errors import CheckpointError

# The largest vocabulary today has 262,144 tokens, the longest merge list 446,189; each string costs 8 bytes here.
MAX_STRINGS = 1 << 22
MAX_KEY = 65_535  # bytes; the limit that the format states

FLOAT, BOOL, STRING, ARRAY = 6, 7, 8, 9
# value type -> struct code; 64-bit types come last in the format's own numbering
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip

Scalar = int | float | bool | str
Value: TypeAlias = "Scalar | Strings | npt.NDArray[np.generic]"


class Cursor:
    """Reads forward through the mapped file; every step is checked against its end."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.at, self.end = data, where, 0, len(data)

    def fail(self, message: str, hint: str | None = None) -> CheckpointError:
        """The error for what was found at the present place."""
        return CheckpointError(self.where, f"byte {self.at}: {message}", hint)

    def need(self, count: int, what: str) -> None:
        """Raises CheckpointError unless `count` more bytes exist."""
        if count > self.end - self.at:
            raise self.fail(
                f"{what} needs {count} bytes, the file has {self.end - self.at} left",
                "the file is damaged or was not downloaded completely",
            )

    def scalar(self, code: str, what: str) -> int | float:
        """One number in `struct` notation."""
        size = struct.calcsize(code)
        self.need(size, what)
        value: int | float = struct.unpack_from(code, self.data, self.at)[0]
        self.at += size
        return value

    def u32(self, what: str) -> int:
        """One unsigned 32-bit number."""
        return int(self.scalar("<I", what))

    def u64(self, what: str) -> int:
        """One unsigned 64-bit number."""
        return int(self.scalar("<Q", what))

    def text(self, what: str, limit: int | None = None) -> str:
        """A length-prefixed UTF-8 string; with a limit of bytes it is a name, and must be printable."""
        begin = self.at
        length = self.u64(f"the length of {what}")
        if limit is not None and length > limit:
            self.at = begin
            raise self.fail(f"{what} should have at most {limit} bytes, its length field says {length}")
        self.need(length, what)
        raw = self.data[self.at : self.at + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None
        if limit is not None and not text.isprintable():
            raise self.fail(f"{what} should be printable, it is {ascii(text)[:80]}")
        self.at += length
        return text

    def value(self, kind: int, key: str) -> Value:
        """The value of `key`, whose type number is `kind`."""
        if kind == STRING:
            return self.text(f"the value of `{key}`")
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            raise self.fail(f"the type of `{key}` should be 0 to 12, it is {kind}")
        value = self.scalar(SCALARS[kind], f"the value of `{key}`")
        if kind == FLOAT:  # the shortest decimal of the same f32: 1e-05, not 9.999999747378752e-06
            return float(str(np.float32(value)))
        return bool(value) if kind == BOOL else value

    def _array(self, key: str) -> Strings | npt.NDArray[np.generic]:
        kind, count = self.u32(f"the element type of `{key}`"), self.u64(f"the element count of `{key}`")
        if kind == ARRAY:
            raise self.fail(f"`{key}` is an array of arrays, which no reader of GGUF accepts")
        if kind == STRING:
            return self._strings(key, count)
        if kind not in SCALARS:
            raise self.fail(f"the element type of `{key}` should be 0 to 12 and not 9, it is {kind}")
        dtype = np.dtype(np.bool_) if kind == BOOL else np.dtype(SCALARS[kind])
        self.need(count * dtype.itemsize, f"the array `{key}` of {count} elements")
        values = np.frombuffer(self.data, np.uint8 if kind == BOOL else dtype, count, self.at)
        self.at += count * dtype.itemsize
        return values.astype(np.bool_) if kind == BOOL else values

    def _strings(self, key: str, count: int) -> Strings:
        if count > MAX_STRINGS:
            raise self.fail(
                f"the array `{key}` should have at most {MAX_STRINGS} strings, its count field says {count}"
            )
        self.need(count * 8, f"the array `{key}` of {count} strings")
        starts, unpack, data, at, end = array("Q"), struct.Struct("<Q").unpack_from, self.data, self.at, self.end
        append = starts.append
        for index in range(count):
            stop = at + 8
            if stop <= end:
                stop += unpack(data, at)[0]
            if stop > end:
                self.at = at
                raise self.fail(
                    f"string {index} of `{key}` reaches to byte {stop}, the file ends at {end}",
                    "the file is damaged or was not downloaded completely",
                )
            append(at)
            at = stop
        append(at)
        self.at = at
        return Strings(data, starts, self.where, key)


@dataclass(frozen=True)
class Strings:
    """An array of strings in the mapped file: `starts[i]` is where the length field of string `i` lies."""

    data: mmap.mmap
    starts: array[int]
    where: str
    key: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        data, starts = self.data, self.starts
        index = -1
        try:
            for index in range(len(starts) - 1):
                yield data[starts[index] + 8 : starts[index + 1]].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                self.where, f"byte {starts[index]}: string {index} of `{self.key}` is not UTF-8"
            ) from None
