"""Text to token ids and back: the `tokenizers` library on the package's tokenizer.json, and the special ids.

Which ids end an answer comes from generation_config.json, config.json and tokenizer_config.json together: published
checkpoints name the end of a turn in one of them and the end of a text in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datong.engine.heap import give_back
from datong.engine.token_bytes import TokenBytes, token_bytes
from datong.errors import DatongError, InvalidRequest, TokenizerError
from datong.package.reader import Package

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.decoders import DecodeStream

    from datong.spec.dialogue import Dialogue

SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """The tokenizer of one package."""

    def __init__(self, inner: tokenizers.Tokenizer, configs: dict[str, dict[str, Any]], template: str | None) -> None:
        self.inner = inner
        self._configs = configs
        self._settings = configs.get("tokenizer_config.json", {})
        self._template = template
        self.specials = self._special_texts()
        self.bos_id = self._id_of("bos_token")
        self.eos_ids = self._stop_ids()

    @classmethod
    def load(cls, package: Package) -> Tokenizer:
        """Read the tokenizer files of a package. Raises TokenizerError, or PackageError for a changed file."""
        import tokenizers

        if package.tokenizer_file is None:
            raise TokenizerError(
                "tokenizer",
                f"`{package.root}` should hold a tokenizer.json, it has none",
                "give token ids instead of text",
            )
        try:
            inner = tokenizers.Tokenizer.from_buffer(package.read("tokenizer.json"))
        except DatongError:
            raise
        except Exception as e:  # tokenizers raises bare Exception
            raise TokenizerError("tokenizer", f"`tokenizer.json` cannot be read: {e}") from None
        inner.no_padding()
        inner.no_truncation()
        configs = {
            "tokenizer_config.json": package.tokenizer_config(),
            "generation_config.json": package.generation_config(),
            "config.json": package.config(),
        }
        tokenizer = cls(inner, configs, package.chat_template())
        give_back()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows; the model's logits may have more columns."""
        return int(self.inner.get_vocab_size(with_added_tokens=True))

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """Bytes of each token, where the decoder allows it."""
        return token_bytes(self.inner)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of `text`; `add_special` adds what the model expects around a text (beginning of sequence …)."""
        if not isinstance(text, str):
            raise InvalidRequest("tokenizer", f"text should be a string, got `{type(text).__name__}`")
        try:
            ids: list[int] = self.inner.encode(text, add_special_tokens=add_special).ids
        except Exception as e:  # such as lone surrogates
            raise InvalidRequest("tokenizer", f"text should be valid Unicode, encoding failed: {e}") from None
        # The Llama classes of transformers add it by this switch, whatever tokenizer.json says.
        wants_bos = add_special and self._settings.get("add_bos_token") is True and self.bos_id is not None
        if wants_bos and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]  # type: ignore[list-item]
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; broken UTF-8 becomes U+FFFD."""
        try:
            return str(self.inner.decode(list(ids), skip_special_tokens=skip_special))
        except (TypeError, OverflowError):
            raise InvalidRequest("tokenizer", "token ids should be whole numbers from 0") from None

    def decode_stream(self, skip_special: bool) -> DecodeStream:
        """The library's own streaming decoder."""
        from tokenizers.decoders import DecodeStream

        return DecodeStream(skip_special_tokens=skip_special)

    def chat_template(self, tools: bool = False) -> str | None:
        """The template's text; older packages may carry another one for conversations with tools."""
        named = self._settings.get("chat_template")
        if tools and isinstance(named, list):
            for item in named:
                if isinstance(item, dict) and item.get("name") == "tool_use" and isinstance(item.get("template"), str):
                    return str(item["template"])
        return self._template

    def marks(self, dialogue: Dialogue) -> frozenset[int]:
        """Special tokens that reasoning and tool calls are marked with."""
        added = self.inner.get_added_tokens_decoder().items()
        marks = dialogue.marks()
        return frozenset(i for i, token in added if token.special and any(token.content in mark for mark in marks))

    def _special_texts(self) -> dict[str, str]:
        """`bos_token` … by name: what chat templates may print."""
        texts: dict[str, str] = {}
        for name in SPECIALS:
            value = self._settings.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                texts[name] = value
        return texts

    def _id_of(self, name: str) -> int | None:
        text = self.specials.get(name)
        return self.inner.token_to_id(text) if text is not None else None

    def _stop_ids(self) -> frozenset[int]:
        """Every id that any of the files calls an end."""
        ids = {self._id_of("eos_token")} - {None}
        for config in ("generation_config.json", "config.json"):
            value = self._configs.get(config, {}).get("eos_token_id")
            ids.update(i for i in (value if isinstance(value, list) else [value]) if type(i) is int)
        return frozenset(i for i in ids if i is not None)
