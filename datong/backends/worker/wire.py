"""Messages between us and a worker: pickles with their arrays beside them, and exceptions that stay what they were.

    frame = u32 count, count x u64 length, then the buffers one after another; the first is the pickle, the others are
            the memory of its arrays, sent without a copy (pickle protocol 5)

Both ends are our own processes joined by a private socket pair, which is why pickle is safe here.
"""

from __future__ import annotations

import pickle
import socket
import struct
import traceback
from collections.abc import Sequence
from typing import Any

from datong.errors import DatongError, DeviceError

_COUNT = struct.Struct("<I")
_CHUNK = 1 << 20  # bytes of one recv; larger ones gain nothing on a socket pair
_AT_ONCE = 512  # buffers of one sendmsg; the kernel takes 1024 (IOV_MAX)

Buffers = list["bytes | memoryview"]


class Closed(Exception):
    """The other end is gone."""


def pack(message: object) -> Buffers:
    """A message as buffers. The memory of its arrays is not copied: keep them as they are until it is sent."""
    beside: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=beside.append)
    return [head, *(buffer.raw() for buffer in beside)]


def unpack(buffers: Sequence[bytearray]) -> Any:
    """The message that `pack` took apart; its arrays own their memory and may be written."""
    return pickle.loads(buffers[0], buffers=buffers[1:])


def send(end: socket.socket, buffers: Buffers) -> None:
    """Send one frame. Raises Closed."""
    sizes = [len(b) for b in buffers]
    parts: list[memoryview] = [memoryview(_COUNT.pack(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes))]
    parts += [memoryview(b) for b in buffers if len(b)]
    try:
        for start in range(0, len(parts), _AT_ONCE):
            _send_all(end, parts[start : start + _AT_ONCE])
    except OSError as error:
        raise Closed(str(error)) from error


def _send_all(end: socket.socket, parts: list[memoryview]) -> None:
    while parts:
        sent = end.sendmsg(parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts and sent:
            parts[0] = parts[0][sent:]


def receive(end: socket.socket) -> list[bytearray]:
    """Receive one frame. Raises Closed when the other end has gone."""
    (count,) = _COUNT.unpack(_exactly(end, _COUNT.size))
    sizes = struct.unpack(f"<{count}Q", _exactly(end, 8 * count))
    return [_exactly(end, size) for size in sizes]


def _exactly(end: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        try:
            got = end.recv_into(rest, min(len(rest), _CHUNK))
        except OSError as error:
            raise Closed(str(error)) from error
        if not got:
            raise Closed("end of file")
        rest = rest[got:]
    return data


def pack_error(error: BaseException, where: str) -> Buffers:
    """An exception as a message. A DatongError crosses whole; any other becomes a DeviceError with its text."""
    if isinstance(error, DatongError):
        try:
            return pack(error)
        except Exception:
            hint = error.hint
            return pack(DeviceError(error.where, error.message, hint))
    kind, text = type(error).__name__, str(error).strip() or "no message"
    plain = DeviceError(where, f"the worker should carry out the call, got {kind}: {text}")
    plain.add_note("in the worker:\n" + "".join(traceback.format_exception(error)))
    return pack(plain)
