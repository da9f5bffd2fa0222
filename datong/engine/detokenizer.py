"""Token by token to text that can be shown at once: never half a character, never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.engine.tokenizer import Tokenizer

MAX_STOPS = 64  # each costs a search per token
MAX_STOP_LENGTH = 1024  # characters; the longest text that may be held back


class Detokenizer:
    """Decodes one answer. The concatenation of what `push` and `finish` return equals `tokenizer.decode(ids)`.

    `continues`: the answer continues a text, so its leading space stays. `keep`: special tokens that are shown though
    special ones are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        continues: bool = False,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        self._table = tokenizer.token_bytes
        self._skip, self._keep = skip_special, keep
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = 0 if continues or self._table is None else self._table.strip
        self._tokenizer, self._ids, self._shown = tokenizer, [], ""  # type: Tokenizer, list[int], str
        self._stream = None if self._table else tokenizer.decode_stream(skip_special and not keep)

    def push(self, token: int) -> str:
        """Text that became certain with this token; may be empty."""
        if self._table is None:
            return self._push_unknown(token)
        data = self._table.get(token, self._skip and token not in self._keep)
        return self._strip_start(self._utf8.decode(data)) if data else ""

    def finish(self) -> str:
        """What was held back for bytes that never came: U+FFFD, or nothing."""
        if self._table is None:
            whole = self._tokenizer.decode(self._ids, skip_special=self._skip and not self._keep)
            return whole[len(self._shown) :]
        return self._strip_start(self._utf8.decode(b"", True))

    def _strip_start(self, text: str) -> str:
        """Drop the first characters that the tokenizer itself put there."""
        if self._strip and text and self._table:
            while self._strip and text.startswith(self._table.strip_char):
                text, self._strip = text[1:], self._strip - 1
            if text:
                self._strip = 0
        return text

    def _push_unknown(self, token: int) -> str:
        """Decoders without a byte table: tokenizers' own stream."""
        assert self._stream is not None
        self._ids.append(token)
        text = self._stream.step(self._tokenizer.inner, token) or ""
        self._shown += text
        return text


class StopStrings:
    """Cuts a stream of text at the first stop string; holds back what could become one."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = check_stops(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Text that may be shown. After `found` is set nothing more comes."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: hit[0])
            shown, self._held = self._held[:at], ""
            return shown
        keep = self._may_become()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _may_become(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


def check_stops(stops: Iterable[str]) -> Sequence[str]:
    """The stop strings, checked. Raises InvalidRequest."""
    found = (stops,) if isinstance(stops, str) else tuple(stops)
    if len(found) > MAX_STOPS:
        raise InvalidRequest("stop", f"at most {MAX_STOPS} stop strings were expected, got {len(found)}")
    for stop in found:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH:
            text = f"a stop string should have 1 to {MAX_STOP_LENGTH} characters, got `{str(stop)[:40]}`"
            raise InvalidRequest("stop", text)
    return found
