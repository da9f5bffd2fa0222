"""Lays out a fake machine: a directory that stands for `/`, as datong/chips/detect/machine.py reads it.

    python tests/data/machines/compose.py ascend-910b-x8 /tmp/ascend
    DATONG_MACHINE_ROOT=/tmp/ascend datong devices --why

A fake machine is `<name>/machine.toml`, and `<name>/smi/<tool>.txt` for what the vendors' tools print there:

    about, sources   what it stands for, and from what it was composed
    pci              rows: address, vendor, device, class, NUMA node, names in its drm/ directory
    nodes            paths under /dev
    [files]          path = text
    [environ] [python] [access]   become environ.json, python.json, access.json
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/machine.toml"))


def lay_out(name: str, target: Path) -> Path:
    """Write the machine `name` below `target`, which is made; returns `target`."""
    spec = tomllib.loads((HERE / name / "machine.toml").read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for address, vendor, device, kind, numa, *drm in spec.get("pci", []):
        function = target / "sys/bus/pci/devices" / address
        function.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("device", device), ("class", kind), ("numa_node", str(numa))):
            (function / file).write_text(f"{text}\n")
        for entry in drm:
            (function / "drm" / entry).mkdir(parents=True)
    for path in spec.get("nodes", []):
        write(target, path, "")
    for path, text in spec.get("files", {}).items():
        write(target, path, text)
    for table in ("environ", "python", "access"):
        if table in spec:
            (target / f"{table}.json").write_text(json.dumps(spec[table]))
    if (HERE / name / "smi").is_dir():
        shutil.copytree(HERE / name / "smi", target / "smi")
    return target


def write(root: Path, path: str, text: str) -> None:
    """A file of the machine, with its directories."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: compose.py NAME DIRECTORY\nnames: {', '.join(NAMES)}")
    lay_out(sys.argv[1], Path(sys.argv[2]))
