"""Vendors' fused operators on the simulated chips: `<stack>.py` holds `OPERATORS`, by the name that descriptors use.

    OPERATORS: dict[str, Callable[..., Any]]       FusedOperator.name ("torch_npu.npu_rms_norm") -> function

`<stack>` is the descriptor's name with `_` for `-`. For each fused operator that the descriptor gives a schema for
this generation, the simulation defines a PyTorch operator with exactly that schema, puts it under its dotted name, and
calls the function here:

- with the arguments as the schema binds them, all by keyword, defaults filled in: PyTorch has checked names and types
  already, the simulation the dtypes, devices and memory;
- with the *host copies* of the tensors, so that plain PyTorch CPU code computes the answer; no tensor here is on the
  simulated chip, and `.item()` or `.tolist()` in it breaks no rule;
- a `Tensor!` argument is written in place; results are returned as the schema says, freshly allocated.

What the vendor's documents demand (block size, layout, equal dtypes, contiguity) is checked with `require`; the block
size of a paged cache with `require_block_size`.
"""

from __future__ import annotations

from datong.backends.sim.rules import require, require_block_size

__all__ = ["require", "require_block_size"]
