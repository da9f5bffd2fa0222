"""Constrained decoding: which tokens may come next, so that an answer matches a JSON schema, a regex or a grammar.

The matching is llguidance's (MIT; a Lark grammar over bytes, masks in well under a millisecond). Here is what the rest
of the engine sees of it: `allowed` before a token is sampled, `fits` to hear whether the answer can still end in time
after it, `accept` when it is taken.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datong.engine.ending import Ending
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    import llguidance
    from llguidance._lib import JsonCompileOptions

    from datong.engine.tokenizer import Tokenizer

MAX_GRAMMAR = 1 << 20  # characters
# Without a bound, a small model at temperature 1 can print blanks until its tokens are used up.
BLANKS = r"[ \t\r\n]{0,20}"
CLOSE = 64  # tokens to spare: below that each token is looked at, as one can open a longer part
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": BLANKS}


class Guide(Protocol):
    """Constrains one answer."""

    def allowed(self) -> np.ndarray | None:
        """[n] bool, n <= vocab: what may come next; None: anything. Raises InvalidRequest."""

    def fits(self, token: int, left: int) -> bool:
        """Can the answer end within `left` tokens, `token` being the first? False: `allowed` now has another one."""

    def accept(self, token: int) -> bool:
        """Note the token that was chosen. True: the answer is complete, nothing may follow."""

    @property
    def cut(self) -> bool:
        """Was the answer ended before the model wanted to?"""


class GrammarGuide:
    """One matcher. Made by Grammars."""

    def __init__(self, matcher: llguidance.LLMatcher, ending: Ending) -> None:
        self._matcher, self._ending = matcher, ending
        self._look: float = math.inf  # look at the way to the end when no more tokens than this are left
        self._way: list[int] = []  # what is left of it, once it is taken
        self.cut = False

    def allowed(self) -> np.ndarray | None:
        """As Guide."""
        if self._way:
            mask = np.zeros(self._way[0] + 1, bool)
            mask[-1] = True
            return mask
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little").view(bool)

    def fits(self, token: int, left: int) -> bool:
        """As Guide. A way is looked for when half of what was to spare is used up: about ten times in an answer."""
        if self.cut or left > self._look:
            return True
        after = self._matcher.deep_copy()
        after.consume_token(token)
        way = None if after.is_error() else self._ending.way(after)
        spare = -1 if way is None else left - 1 - len(way)
        if spare < 0:
            return not self._end(left)
        self._look = left - 1 - (spare // 2 if spare > CLOSE else 0)
        return True

    def _end(self, left: int) -> bool:
        """Take the way from here, if there is one that is short enough."""
        way = self._ending.way(self._matcher)
        if not way or len(way) > left:
            self._look = -1  # nothing helps: the answer is cut off where its tokens end
            return False
        self._way, self.cut = way, True
        return True

    def accept(self, token: int) -> bool:
        """As Guide."""
        self._matcher.consume_token(token)
        self._check()
        if self.cut:
            del self._way[0]
            return not self._way
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            text = self._matcher.get_error().splitlines()[0][:300]
            raise InvalidRequest("guide", f"the grammar cannot be followed: {text}", "use a simpler one")


class AfterReasoning:
    """Constrains what follows the thoughts of an answer that begins inside them."""

    def __init__(self, inner: Guide, tokenizer: Tokenizer, close: str) -> None:
        self._inner, self._tokenizer, self._close = inner, tokenizer, close.encode()
        self._tail, self._active = b"", False

    def allowed(self) -> np.ndarray | None:
        """As Guide."""
        return self._inner.allowed() if self._active else None

    def fits(self, token: int, left: int) -> bool:
        """As Guide. Thoughts may use up everything."""
        return self._inner.fits(token, left) if self._active else True

    @property
    def cut(self) -> bool:
        """As Guide."""
        return self._inner.cut

    def accept(self, token: int) -> bool:
        """As Guide. A token that ends the thoughts and says more is not split: the constraint begins after it."""
        if self._active:
            return self._inner.accept(token)
        table = self._tokenizer.token_bytes
        data = table.get(token, False) if table else self._tokenizer.decode([token], skip_special=False).encode()
        self._tail = (self._tail + data)[-len(self._close) - 256 :]
        self._active = self._close in self._tail
        return False


class Grammars:
    """Makes guides for one tokenizer. The first costs a third of a second for 50,000 tokens, the next ones little."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._inner: llguidance.LLTokenizer | None = None
        self._ending: Ending | None = None

    def json_schema(self, schema: Mapping[str, Any] | bool) -> GrammarGuide:
        """Any JSON value that the schema allows. Raises InvalidRequest."""
        return self._guide(json_grammar(schema))

    def regex(self, pattern: str) -> GrammarGuide:
        """A text that the pattern (Rust's regex syntax) matches from beginning to end. Raises InvalidRequest."""
        import llguidance

        return self._guide(llguidance.LLMatcher.grammar_from_regex(pattern))

    def lark(self, text: str) -> GrammarGuide:
        """A grammar in llguidance's dialect of Lark; `start` is its beginning. Raises InvalidRequest."""
        import llguidance

        return self._guide(llguidance.LLMatcher.grammar_from_lark(text))

    def _guide(self, grammar: str) -> GrammarGuide:
        import llguidance

        if len(grammar) > MAX_GRAMMAR:
            raise InvalidRequest("guide", f"a grammar may have {MAX_GRAMMAR} characters, this one has {len(grammar)}")
        matcher = llguidance.LLMatcher(self._tokenizer_of(), grammar, log_level=0)
        if matcher.is_error():
            text = " ".join(matcher.get_error().split())[:300]
            raise InvalidRequest("guide", f"the grammar or schema is not usable: {text}")
        self._ending = self._ending or Ending(self._tokenizer)
        return GrammarGuide(matcher, self._ending)

    def _tokenizer_of(self) -> llguidance.LLTokenizer:
        import llguidance

        with self._lock:
            if self._inner is None:
                ends = sorted(self._tokenizer.eos_ids) or None
                self._inner = llguidance.LLTokenizer(
                    self._tokenizer.inner.to_str(), n_vocab=self._vocab, eos_token=ends
                )
            return self._inner


def json_grammar(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of a schema; not checked yet. Raises InvalidRequest."""
    import llguidance

    try:
        return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest("guide", f"the JSON schema is not usable: {error}") from None
