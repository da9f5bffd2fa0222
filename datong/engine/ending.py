"""Ending an answer in time: how to get from any state of a grammar to its end, in as few tokens as we can tell.

A constrained answer that is cut off where its tokens run out is worth nothing: half a JSON document parses as none. So
the rest of the way is kept in mind, and taken when a token more of the model's own would make it too long (guide.py).
The way is not the shortest of all: marks that close something are tried first, then what opens a value, then anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import llguidance

    from datong.engine.tokenizer import Tokenizer

# A quote comes first, as in a text it is the only one that ends something; blanks last, as nothing asks for one.
MARKS = '"}],:0[{@.-_/ '
LONGEST = 2048  # tokens of a way; about 20 ms to look for it


class Ending:
    """For one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = tokenizer.inner.get_vocab()
        # as a token of its own; blanks and some bytes have other names there, and are found by encoding them
        self._marks = [
            known[mark] if mark in known else ids[0]
            for mark in MARKS
            if mark in known or len(ids := tokenizer.inner.encode(mark, add_special_tokens=False).ids) == 1
        ]

    def way(self, matcher: llguidance.LLMatcher) -> list[int] | None:
        """Tokens from here to the end; None: none of at most LONGEST was found. The matcher stays as it is."""
        found: list[int] = []
        ahead = matcher.deep_copy()
        while not (ahead.is_stopped() or ahead.is_accepting()):
            step = ahead.compute_ff_tokens() or [self._one(ahead)]
            if not ahead.consume_tokens(step) or len(found) > LONGEST:
                return None
            found += step
        return None if ahead.is_error() else found

    def _one(self, matcher: llguidance.LLMatcher) -> int:
        for mark in self._marks:
            if matcher.validate_tokens([mark]):
                return mark
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return int(np.unpackbits(bits, bitorder="little").argmax())
