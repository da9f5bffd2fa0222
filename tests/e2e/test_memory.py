"""Nothing leaks: the process is as large after 10,000 more steps as before."""

import gc
import re
from pathlib import Path

import numpy as np

import datong

STEPS = 10_000
ANSWER = 50  # tokens, and so steps but for the prompt's
MOST = 1.0  # MiB; 100 bytes a step would be 1


def resident_mib() -> float:
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_ten_thousand_steps_leak_nothing(package: Path) -> None:
    model = datong.load(package, threads=2, context=128)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for i in range(0, steps, ANSWER):
            prompts = [[int(t) for t in rng.integers(3, 60, 5 + j)] for j in range(1 + i // ANSWER % 3)]
            answers = model.generate(prompts, max_tokens=ANSWER, ignore_eos=True, seed=i)
            assert all(len(answer.tokens) == ANSWER for answer in answers)

    run(2_000)  # caches and arenas reach their size
    before = resident_mib()
    run(STEPS)
    assert resident_mib() - before < MOST
