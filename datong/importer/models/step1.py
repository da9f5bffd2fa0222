"""`step1`: the text tower of the Step-Audio models.

Traps, each has been got wrong before:
- no rope: a score loses slope * sqrt(distance); the slopes are ALiBi's, also for head counts that are no power of two.
- `num_attention_groups` are the key-value heads; the context is `max_seq_len`.
- tied, unless the config says otherwise.
"""

from __future__ import annotations

import math

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Layer, read_sizes


def read(config: Config) -> Decoder:
    """Defaults: vLLM's `step1.py`; sizes of published checkpoints are not verified."""
    groups = config.integer("num_attention_groups", 8)
    s = read_sizes(config, kv_heads=groups)
    context = config.either("max_seq_len", "max_position_embeddings", 32768)
    return Decoder(
        s.vocab, s.hidden, (Layer(s.heads, s.kv_heads, s.head_dim, s.inner, rope=None),) * s.layers,
        eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", True), ropes=(),
        context=context, slopes=slopes(s.heads), bias="sqrt_alibi",
    )  # fmt: skip


def slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's slope per head: a power of two of them, and every other one of the next for the rest.

    Source: Press et al. 2021, `get_slopes`.
    """
    power = 2 ** math.floor(math.log2(heads))
    found = [2 ** (-8 / power * (i + 1)) for i in range(power)]
    return tuple(found + [2 ** (-4 / power * (2 * i + 1)) for i in range(heads - power)])
