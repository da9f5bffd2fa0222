"""The first cases of scripts/fuzz_gguf.py, so that the script cannot rot; `make fuzz` runs it for a minute."""

from __future__ import annotations

import random
import runpy
from collections import Counter
from pathlib import Path

from datong.errors import DatongError

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "fuzz_gguf.py"


def test_mutated_files_are_imported_or_refused(tmp_path: Path) -> None:
    fuzz, rng, counts = runpy.run_path(str(SCRIPT)), random.Random(5), Counter[str]()
    path = tmp_path / "m.gguf"
    for case in range(150):
        path.write_bytes(fuzz["sample"](rng))
        try:
            assert fuzz["attempt"](path, whole=case % 3 == 0) == ""
            counts["accepted"] += 1
        except DatongError as error:
            assert error.message and "\n" not in error.message
            counts["refused"] += 1
        path.unlink()
    assert min(counts["accepted"], counts["refused"]) > 15
