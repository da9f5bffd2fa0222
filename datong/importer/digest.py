"""SHA-256 of small things, without hashlib: that loads OpenSSL, 3.4 MB and 3 ms of every start.

Python's own code is slower than OpenSSL's from a few megabytes on: files of weights are hashed with hashlib.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Python 3.12 and later; 3.11; any build that left the first two out.
_MODULES = ("_sha2", "_sha256", "hashlib")


def _find() -> Callable[[bytes], Any]:
    for name in _MODULES:
        try:
            found: Callable[[bytes], Any] = import_module(name).sha256
        except ImportError:
            continue
        return found
    raise ImportError(f"this Python has none of {', '.join(_MODULES)}")


_SHA256 = _find()


def sha256(data: bytes) -> str:
    """64 hexadecimal digits."""
    return str(_SHA256(data).hexdigest())
