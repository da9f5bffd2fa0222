"""`tokenizer.ggml.pre`: how a byte-level BPE cuts text into words before merging. One row per name in the wild.

A GGUF file carries vocabulary and merges but not this step, only its name; a wrong row gives other ids and a model
that answers a little worse, which nobody notices. So a name that is not here is an error.

Rows follow the tokenizer.json of the named model where it could be read (marked *), otherwise the expressions with
which llama.cpp reproduces it (src/llama-vocab.cpp). Where the two are known to differ the original is followed: Qwen
normalises to NFC, llama.cpp does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PreTokenizer:
    """Steps in order: NFC, single digits, each split (matches and what lies between become words), GPT-2's own rule."""

    splits: tuple[str, ...] = ()
    digits: bool = False  # every digit is a word
    gpt2: bool = False  # the expression that is built into ByteLevel
    nfc: bool = False
    ignore_merges: bool = False  # a word that is in the vocabulary is taken whole
    add_bos: bool = False  # where the file does not say

    def normalizer(self) -> dict[str, Any] | None:
        """As tokenizer.json has it."""
        return {"type": "NFC"} if self.nfc else None

    def steps(self) -> dict[str, Any]:
        """As tokenizer.json has it."""
        steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if self.digits else []
        steps += [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
            for split in self.splits
        ]
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": self.gpt2})
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"


def _cased(suffix: str, digits: str) -> str:
    """Words change where case does: `HTMLParser` -> HTML, Parser (o200k and Tekken)."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return rf"{lead}{_UPPER}*{_LOWER}+{suffix}|{lead}{_UPPER}+{_LOWER}*{suffix}|{digits}|{_SLASH}"


# Letters of scripts with case, as DeepSeek LLM's tokenizer.json lists them: hexadecimal, because some look alike.
_CASED_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C
    38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B
    1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4
    1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113
    2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B
    2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06
    FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF
    1E900-1E943
"""
_DEEPSEEK_LETTERS = "".join("-".join(chr(int(end, 16)) for end in span.split("-")) for span in _CASED_LETTERS.split())
_DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_GPT2_RULE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2 = PreTokenizer(gpt2=True)
_DIGITS = PreTokenizer(digits=True, gpt2=True)
_LLAMA3 = PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",))
_LLAMA3_BOS = PreTokenizer(_LLAMA3.splits, ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_REST}",), nfc=True)
_QWEN35 = PreTokenizer(
    (rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",),
    nfc=True,
)
_O200K = PreTokenizer((_cased(f"{_SUFFIX}?", r"\p{N}{1,3}"),))
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
    )
)

TABLE: dict[str, PreTokenizer] = {
    # What llama.cpp does with files that do not know their own rule; such files say so themselves.
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_RULE, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "minerva-7b": _DIGITS,
    "llama-bpe": _LLAMA3_BOS,  # *
    "llama3": _LLAMA3_BOS,
    "llama-v3": _LLAMA3_BOS,
    "falcon3": _LLAMA3_BOS,
    "pixtral": _LLAMA3_BOS,
    "midm-2.0": _LLAMA3_BOS,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "chatglm-bpe": _LLAMA3,
    "glm4": _LLAMA3,
    "qwen2": _QWEN2,  # *
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "stablelm2": _QWEN2,
    "qwen35": _QWEN35,
    "deepseek-llm": PreTokenizer((r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", rf"\s?[{_DEEPSEEK_PUNCTUATION}]+", r"\s+$",
                                  _DEEPSEEK_CJK, r"\p{N}+")),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-v3": _DEEPSEEK_V3,  # *
    "tekken": PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True),
    "gpt-4o": _O200K,  # *
    "llama4": _O200K,
    "kanana2": _O200K,
    "minimax-m2": _O200K,
    "seed-coder": PreTokenizer((rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)),
    "viking": PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_REST}"), ignore_merges=True),
}  # fmt: skip
