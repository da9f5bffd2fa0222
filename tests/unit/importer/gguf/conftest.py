"""A GGUF writer that writes anything, right or wrong; and the smallest model that imports."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def typed(value: Any) -> bytes:
    """Type number and payload, as the official writer chooses them."""
    if isinstance(value, bytes):  # already encoded
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    kind = {str: STRING, int: I32, float: F32}[type(value[0]) if value else str]
    head = struct.pack("<IIQ", ARRAY, kind, len(value))
    if kind == STRING:
        return head + b"".join(text(v) for v in value)
    return head + np.array(value, "<i4" if kind == I32 else "<f4").tobytes()


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    keys: dict[str, Any],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = magic + struct.pack("<IQQ", version, *counts)
    head += b"".join(text(k) + typed(v) for k, v in keys.items()) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


def with_arrays(keys: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """F32 tensors by GGUF name, `[out, in]`."""
    entries, data = [], b""
    for name, array in arrays.items():
        entries.append(tensor(name, list(array.shape[::-1]), 0, len(data)))
        raw = array.astype("<f4").tobytes()
        data += raw + b"\0" * (-len(raw) % 32)
    return file(keys, entries, data)


BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab"]


def spm_keys() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TOKENS,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -2.0, -1.0, -3.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def model(arch: str = "llama", **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Keys and tensors of a model of 2 layers, 2 heads of 8, 1 key-value head. `changes`: keys with `.` as `__`."""
    rng = np.random.default_rng(7)
    keys: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": "tiny",
        "general.license": "apache-2.0",
        f"{arch}.block_count": 2,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": 16,
        f"{arch}.feed_forward_length": 32,
        f"{arch}.attention.head_count": 2,
        f"{arch}.attention.head_count_kv": 1,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        **spm_keys(),
    }
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            keys.pop(name)
        else:
            keys[name] = value
    shapes = {
        "attn_norm.weight": (16,), "attn_q.weight": (16, 16), "attn_k.weight": (8, 16), "attn_v.weight": (8, 16),
        "attn_output.weight": (16, 16), "ffn_norm.weight": (16,),
        "ffn_gate.weight": (32, 16), "ffn_up.weight": (32, 16), "ffn_down.weight": (16, 32),
    }  # fmt: skip
    if arch == "qwen2":
        shapes |= {"attn_q.bias": (16,), "attn_k.bias": (8,), "attn_v.bias": (8,)}
    if arch == "qwen3":
        shapes |= {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}
    arrays = {f"blk.{i}.{n}": rng.standard_normal(s) for i in range(2) for n, s in shapes.items()}
    arrays |= {
        "output_norm.weight": rng.standard_normal(16),
        "output.weight": rng.standard_normal((len(SPM_TOKENS), 16)),
    }
    arrays["token_embd.weight"] = rng.standard_normal((len(SPM_TOKENS), 16))
    return keys, arrays


@pytest.fixture(scope="session")
def raw() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(
        text=text, typed=typed, tensor=tensor, file=file, with_arrays=with_arrays, model=model, spm_keys=spm_keys,
        spm_tokens=SPM_TOKENS,
    )  # fmt: skip


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    """Bytes -> a file `m.gguf`."""

    def write(data: bytes) -> Path:
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        return path

    return write
