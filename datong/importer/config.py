"""config.json, read so that nothing goes unseen: every key is taken by the family, ignored with a reason, or an error.

A family reads with typed getters and states its own defaults, those of the published configuration class: a key that
is absent takes the default, `null` counts as absent unless the family says otherwise. `finish` then refuses what
nobody asked for. So a new variant of a known model_type, announced by a new key, fails at import and not in its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from datong.errors import ConfigError
from datong.importer.show import show

REQUIRED: Any = object()

_TRAINING = "acts in training only"
_TOKENS = "token ids are the tokenizer's and generation_config.json's business"
_BOOKKEEPING = "says where the file came from, not how to compute"
_INCOMPLETE = "use the config.json that came with the weights"
_OUTPUT = "chooses what a Python forward returns"
_SAMPLING = "a generation default of old transformers; generation_config.json counts"
_PYTHON = "chooses a Python implementation of the same arithmetic"

# Keys of the base class and of training that mean nothing for the logits, whatever their value.
IGNORED = {
    **dict.fromkeys(("attention_dropout", "initializer_range", "hidden_dropout", "resid_pdrop", "embd_pdrop",
                     "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout",
                     "problem_type", "router_aux_loss_coef", "neftune_noise_alpha",
                     "gradient_checkpointing"), _TRAINING),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
                     "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
                     "prefix", "tokenizer_class"), _TOKENS),
    **dict.fromkeys(("architectures", "transformers_version", "_name_or_path", "_commit_hash", "finetuning_task",
                     "task_specific_params", "auto_map", "id2label", "label2id", "unsloth_version", "unsloth_fixed",
                     "transformers.js_config", "is_llama_config"), _BOOKKEEPING),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict", "output_scores",
                     "return_dict_in_generate", "chunk_size_feed_forward"), _OUTPUT),
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
                     "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_beams",
                     "num_beam_groups", "diversity_penalty", "num_return_sequences", "early_stopping", "max_length",
                     "min_length", "remove_invalid_values", "exponential_decay_length_penalty"), _SAMPLING),
    **dict.fromkeys(("torchscript", "tf_legacy_loss", "use_bfloat16", "attn_implementation", "_attn_implementation",
                     "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attn"), _PYTHON),
    **dict.fromkeys(("is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size"),
                    "concerns models with an encoder; `is_encoder_decoder` and `add_cross_attention` must be false"),
    **dict.fromkeys(("max_sequence_length", "model_max_length"), "max_position_embeddings counts"),
    "torch_dtype": "each tensor states its own type",
    "dtype": "each tensor states its own type",
    "use_cache": "the graph always has a cache",
}  # fmt: skip


class Config:
    """A config.json, or an object inside it, on its way through a family's reader.

    Every getter takes the key off the list of unread ones and raises ConfigError for a value of the wrong kind.
    """

    def __init__(
        self, values: dict[str, Any], model_type: str, what: str = "config key", ignorable: dict[str, str] = IGNORED
    ) -> None:
        self.model_type, self.what, self._ignorable = model_type, what, ignorable
        self.ignored: dict[str, str] = {}
        self._values = values
        self._unread = set(values) - {"model_type"}

    def raw(self, key: str, default: Any = REQUIRED) -> Any:
        """The value as JSON gave it; `default` only where the key is absent, so null comes through."""
        self._unread.discard(key)
        if key in self._values:
            return self._values[key]
        if default is REQUIRED:
            raise self.error(f"{self.what} `{key}` is missing for model_type `{self.model_type}`", _INCOMPLETE)
        return default

    def default(self, key: str, value: Any) -> None:
        """What an absent key means, for a getter that several families share and that has no default."""
        self._values = {key: value, **self._values}

    def integer(self, key: str, default: Any = REQUIRED, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """A whole number from `minimum` to `maximum`."""
        fits = lambda v: type(v) is int and minimum <= v <= maximum  # noqa: E731
        return int(self._checked(key, default, fits, f"a whole number from {minimum} to {maximum}"))

    def integers(self, key: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        fits = lambda v: isinstance(v, list | tuple) and all(type(n) is int for n in v)  # noqa: E731
        return tuple(self._checked(key, default, fits, "a list of whole numbers"))

    def either(self, key: str, alias: str, default: Any = REQUIRED) -> int:
        """A whole number with two spellings; both may be there if they agree."""
        absent = object()
        name, other = (key, alias) if self.raw(key, absent) is not absent else (alias, key)
        value = self.integer(name, default)
        if self.raw(other, None) not in (None, value):
            raise self.error(f"config keys `{key}` and `{alias}` mean the same and contradict each other")
        return value

    def numbers_in_text(self, key: str, default: Iterable[int]) -> frozenset[int]:
        """Whole numbers in a string, as `1,2,5`."""
        value = self.raw(key, None)
        if value is None:
            return frozenset(default)
        if not isinstance(value, str) or not all(part.strip().isdecimal() for part in value.split(",")):
            raise self.error(f"{self.what} `{key}` should be whole numbers with commas between, it is {show(value)}")
        return frozenset(int(part) for part in value.split(","))

    def inner(self, key: str) -> Config:
        """An object inside, as a config of its own, whose ignored keys are reported with this one's."""
        value = self._checked(key, REQUIRED, lambda v: isinstance(v, dict), "an object")
        found = Config(value, self.model_type, f"`{key}` key")
        found.ignored = self.ignored
        return found

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A number from 1e-15 to 1e15, so that products of two stay finite in float32."""
        fits = lambda v: type(v) in (int, float) and 1e-15 <= v <= 1e15  # noqa: E731
        return float(self._checked(key, default, fits, "a number from 1e-15 to 1e15"))

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        return bool(self._checked(key, default, lambda v: type(v) is bool, "true or false"))

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        return str(self._checked(key, default, lambda v: type(v) is str, "a string"))

    def expect(self, key: str, wanted: Any, why: str) -> None:
        """The key is absent, null or equals `wanted`; anything else is not supported, and `why` says why."""
        value = self.raw(key, None)
        if value is not None and (value != wanted or isinstance(value, bool) is not isinstance(wanted, bool)):
            raise self.error(f"{self.what} `{key}` should be {show(wanted)}, it is {show(value)}", why)

    def ignore(self, key: str, reason: str) -> None:
        """Leave a key out on purpose; the reason goes into the manifest."""
        if key in self._values:
            self._unread.discard(key)
            self.ignored[key] = reason

    def finish(self) -> None:
        """Every key was read or is ignored with a reason. Raises ConfigError naming the first that is not."""
        self._refuse_quantised()
        for key in ("is_encoder_decoder", "add_cross_attention"):
            self.expect(key, False, "only decoders are supported")
        self.expect("pruned_heads", {}, "pruned heads are not supported")
        for key, reason in self._ignorable.items():
            if key in self._unread:
                self.ignore(key, reason)
        for key in sorted(self._unread):
            raise self.error(
                f"{self.what} {show(key)} is not known for model_type `{self.model_type}`",
                "implement it, or ignore it with the reason in importer/models/ or importer/config.py",
            )

    def _refuse_quantised(self) -> None:
        for key in ("quantization_config", "quantization"):  # the second is what MLX writes
            value = self._values.get(key)
            if value is not None:
                method = value.get("quant_method", "mlx") if isinstance(value, dict) else value
                raise self.error(
                    f"{self.what} `{key}`: weights of format {show(method)} are not supported yet",
                    "import the BF16 or F16 edition of the checkpoint, or a GGUF file",
                )
            self.ignore(key, "null: the weights are not quantised")

    def error(self, message: str, hint: str | None = None) -> ConfigError:
        """A ConfigError of this config, to raise."""
        return ConfigError("import", message, hint)

    def _checked(self, key: str, default: Any, fits: Callable[[Any], bool], wanted: str) -> Any:
        value = self.raw(key, default)
        if value is None and default is not REQUIRED:
            value = default
        if not fits(value):
            raise self.error(f"{self.what} `{key}` should be {wanted}, it is {show(value)}")
        return value
