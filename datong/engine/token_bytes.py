"""What bytes each token stands for, read off the decoder of tokenizer.json: the exact way to decode token by token.

Text is the concatenation of the tokens' bytes as UTF-8, undecodable bytes replaced, so it can be streamed without
looking back. Two decoder families cover the model families that we import:

    ByteLevel                               each character of a token is one byte (GPT-2's table)
    [Replace…, ByteFallback, Fuse, Strip]   SentencePiece: `▁` is a space, `<0x0A>` a byte; the first space is stripped

Where a run of byte tokens is no UTF-8 at all, tokenizers' ByteFallback gives one U+FFFD per byte of the run, even for
the good characters in it; we replace only what is broken. On valid text both give the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes by token id. `strip` is how many leading `strip_char` a decoded text loses."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, to_bytes: Callable[[str], bytes], strip: int, char: str
    ) -> None:
        self._tokenizer, self._to_bytes = tokenizer, to_bytes
        self.strip, self.strip_char = strip, char
        self._special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._known: dict[tuple[int, bool], bytes] = {}

    def get(self, token: int, skip_special: bool) -> bytes:
        """The bytes of one token; none for special tokens when skipped, and for ids without a token."""
        found = self._known.get((token, skip_special))
        if found is None:
            text = self._tokenizer.id_to_token(token)
            hidden = text is None or (skip_special and token in self._special)
            found = b"" if hidden else self._to_bytes(text or "")
            self._known[token, skip_special] = found
        return found


def token_bytes(tokenizer: tokenizers.Tokenizer) -> TokenBytes | None:
    """The table for this tokenizer; None when its decoder is of no family above."""
    if tokenizer.decoder is None:
        return None
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    if decoder["type"] == "ByteLevel":
        return TokenBytes(tokenizer, _byte_level, 0, " ")
    if decoder["type"] == "Sequence":
        return _sentence_piece(tokenizer, decoder["decoders"])
    return None


def _sentence_piece(tokenizer: tokenizers.Tokenizer, steps: list[dict[str, Any]]) -> TokenBytes | None:
    """Understand `Replace* ByteFallback? Fuse? Strip?` and nothing else."""
    kinds = " ".join(step["type"] for step in steps)
    if kinds == "ByteLevel":
        return TokenBytes(tokenizer, _byte_level, 0, " ")
    if not re.fullmatch(r"(Replace )*(ByteFallback )?Fuse( Strip)?", kinds):
        return None
    replaces = [(s["pattern"].get("String"), s["content"]) for s in steps if s["type"] == "Replace"]
    strip, char = 0, " "
    if steps[-1]["type"] == "Strip":
        if steps[-1]["stop"]:
            return None
        strip, char = steps[-1]["start"], steps[-1]["content"]
    if any(not old for old, _ in replaces):  # a regular expression
        return None
    fallback = "ByteFallback" in kinds

    def to_bytes(text: str) -> bytes:
        for old, new in replaces:
            text = text.replace(old, new)
        byte = BYTE_TOKEN.fullmatch(text) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.encode("utf-8", "replace")

    return TokenBytes(tokenizer, to_bytes, strip, char)


def _byte_table() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the rest follows from U+0100."""
    table, spare = {}, 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            table[chr(byte)] = byte
        else:
            table[chr(spare)] = byte
            spare += 1
    return table


_BYTES = _byte_table()


def _byte_level(text: str) -> bytes:
    """An added token may hold characters outside the table; then all of it is plain text, as in tokenizers."""
    try:
        return bytes([_BYTES[c] for c in text])
    except KeyError:
        return text.encode("utf-8", "replace")
