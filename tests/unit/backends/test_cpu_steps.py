"""The CPU takes long steps of models whose activations are small."""

from dataclasses import replace

import pytest

from datong.backends import cpu
from datong.spec.program import TOKENS, Part, Program


@pytest.mark.parametrize(("each", "wanted"), [(11776, 256), (16384, 256), (16385, 128), (41216, 128)])
def test_step_tokens(each: int, wanted: int) -> None:
    """By the part whose activations are the largest, in bytes per token."""
    small = Part("cpu", nodes=(), values={}, inputs=(), outputs=(), caches=(), arena_bytes={TOKENS: 64})
    parts = (small, replace(small, arena_bytes={TOKENS: each}))
    assert cpu.step_tokens(Program("", parts, vocab_size=1, context_length=1)) == wanted
