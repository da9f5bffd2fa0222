"""What may stand in the place of attention, and how a block joins its input: data; recurrent.py builds the graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Delta:
    """Gated delta rule behind a short convolution (Qwen3-Next). Names follow the layer's prefix.

    One matrix gives q, k, v and the gate z, another b and a, grouped by key head; or there is a matrix for each, and
    one for q, k, v together.
    """

    k_heads: int
    v_heads: int  # a multiple of k_heads
    k_dim: int
    v_dim: int
    taps: int  # of the convolution
    grouped: bool
    prefix: str = "linear_attn."


@dataclass(frozen=True)
class Lightning:
    """Linear attention whose state decays by head and layer (MiniMax-Text-01). Names follow the layer's prefix."""

    heads: int
    dim: int
    slopes: tuple[float, ...]  # of this layer, one per head
    norm_eps: float
    prefix: str = "self_attn."


@dataclass(frozen=True)
class Residual:
    """A block gives alpha * (its normed input) + beta * (its result), not (its input) + (its result)."""

    alpha: float
    beta: float
