"""Reads what a vendor's PyTorch adapter says of its operators out of the wheel, without importing or installing it.

The schemas that count are those that the library registers: its string table holds each of them between two zero bytes,
`npu_rms_norm(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)`. Names of parameters in the wheel's
YAML and documentation differ from them here and there (there `self`).

Meta functions compute shapes and types of results. The wheel has them in Python; they are read as text here and run
only by dry_run.py.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from datong.errors import ChipError

_SCHEMA = re.compile(rb"(?<=\0)([A-Za-z_]\w*(?:\.\w+)?)\(([^\0\n]*)\) *-> *([^\0\n]+)(?=\0)")
_META = "_meta_registrations.py"


@dataclass(frozen=True)
class Wheel:
    """What was found. Several schemas for a name: the registered one, and others of the same look."""

    package: str  # normalised: "torch-npu"
    version: str
    schemas: Mapping[str, tuple[str, ...]]  # by name with overload: "npu_rms_norm"
    meta: str  # Python source of the meta functions; "" if there is none


def read(path: Path) -> Wheel:
    """Read a wheel. Raises ChipError when it is none, or holds no registered schemas."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            head = next((name for name in names if name.endswith(".dist-info/METADATA")), None)
            if head is None:
                raise ChipError(path.name, "a vendor's wheel should have a METADATA file, it has none")
            about = HeaderParser().parsestr(archive.read(head).decode("utf-8", "replace"))
            schemas: dict[str, dict[str, None]] = {}
            for name in sorted(names):
                if name.endswith(".so"):
                    for key, text in _schemas(archive.read(name)):
                        schemas.setdefault(key, {})[text] = None
            meta = next((name for name in sorted(names) if name.endswith(f"/{_META}")), None)
            source = archive.read(meta).decode("utf-8") if meta else ""
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ChipError(
            path.name, f"a vendor's wheel should be a zip archive that can be read, got: {error}"
        ) from error
    if not schemas:
        raise ChipError(path.name, "a vendor's wheel should have a library that registers operators, it has none")
    package = re.sub(r"[-_.]+", "-", str(about["Name"] or "")).lower()
    found = {key: tuple(texts) for key, texts in schemas.items()}
    return Wheel(package, str(about["Version"] or ""), found, source)


def _schemas(library: bytes) -> list[tuple[str, str]]:
    """(name, schema) for everything in the string table that looks like one."""
    return [(m.group(1).decode(), m.group(0).decode("utf-8", "replace")) for m in _SCHEMA.finditer(library)]
