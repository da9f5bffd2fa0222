#!/usr/bin/env python3
"""Hold the checkpoints of tests/data/goldens against every backend; write datong/importer/families/evidence.json.

    python scripts/family_evidence.py [DEVICE …] [--only CHECKPOINT …]

Each checkpoint is asked whole, in chunks of 7, token by token and in a batch of unequal sequences; the largest
difference of a logit counts. Devices that are not named keep what the file says. A device that refuses is asked why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import datong
from datong.errors import DatongError

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "data" / "goldens"
TARGET = ROOT / "datong" / "importer" / "families" / "evidence.json"
DEVICES = ("reference", "cpu", "torch:cpu", "onnxruntime")
CHIPS = ("ascend-910b", "biren-br1xx", "biren-br2xx", "enflame-s60", "iluvatar-bi-v150", "metax-c500",
         "moorethreads-s5000")  # fmt: skip
PREFIX_FREE = ("internlm3_ntk",)  # its logits hold for the whole prompt only


def worst(name: str, device: str) -> float:
    """The largest difference over all ways to ask."""
    stored = load_file(GOLDENS / name / "golden.safetensors")
    ids, logits = stored["input_ids"][0], stored["logits"][0]
    options = {"compute_dtype": "f32"} if device.startswith(("sim:", "torch")) else {}
    model = datong.load(GOLDENS / name, device, cache_dtype="f32", strict=True, **options)
    found = [np.abs(model.logits(ids) - logits).max()]
    for step in (7, 1):
        chunked = datong.load(GOLDENS / name, device, cache_dtype="f32", strict=True, step_tokens=step, **options)
        found.append(np.abs(chunked.logits(ids) - logits).max())
    rows = model.logits_batch([ids[:n] for n in (24, 1, 9, 17, 2)])
    found += [np.abs(row - logits[: len(row)]).max() for row in rows]
    return float(max(found))


def compare(name: str, device: str) -> dict[str, object]:
    """One cell of the table."""
    label = "simulated" if device.startswith("sim:") else "measured"
    try:
        return {"evidence": label, "worst": float(f"{worst(name, device):.2e}")}
    except DatongError as error:
        reasons = getattr(error, "reasons", None) or []
        why = reasons[0][1] if reasons else error.message
        return {"evidence": "not run", "why": " ".join(str(why).split())[:200]}


def main() -> None:
    """Ask, print as it goes, write at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="*", default=[*DEVICES, *(f"sim:{chip}" for chip in CHIPS)])
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    names = sorted(p.name for p in GOLDENS.iterdir() if (p / "golden.safetensors").is_file())
    names = [name for name in names if name not in PREFIX_FREE]
    old = json.loads(TARGET.read_text()) if TARGET.exists() else {"results": {}}
    results = {name: old["results"].get(name, {}) for name in names}
    families = {name: json.loads((GOLDENS / name / "config.json").read_text())["model_type"] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DATONG_CACHE"] = cache
        for name in options.only or names:
            for device in options.devices:
                results[name][device] = compare(name, device)
                print(name, device, results[name][device], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    bound = {name: 1e-2 if name.startswith(("qwen3_next", "qwen3_5")) else 2e-3 for name in names}
    table = {"bound": bound, "commit": commit.stdout.strip(), "checkpoints": families, "results": results}
    partial = TARGET.with_suffix(".partial")
    partial.write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    partial.replace(TARGET)


if __name__ == "__main__":
    main()
