"""Writes tests/data/tokenizer/lines.json: 1,200 lines of mixed text, always the same ones.

Everyday text alone finds few tokenizer bugs; most lines here are made of what has broken tokenizers before: runs of
white space of every kind, digits of several scripts, contractions in both cases, combining marks, emoji with joiners,
control characters, letters next to punctuation, special tokens spelled out.
"""

# ruff: noqa: E501 -- rows of texts, one per kind
from __future__ import annotations

import json
import random
from pathlib import Path

TEXT = [
    "The bearing runs hot because the grease has lost its oil.", "I've been told he's there; WE'LL see, THEY'RE late.",
    "naïve café résumé Ångström coöperate", "don't can't won't it's y'all o'clock rock'n'roll 'tis", "Dr. Smith paid $1,234.56 (net) on 2024-02-29!",
    "Привет, мир! Как дела?", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "안녕하세요 세계",
    "こんにちは世界。カタカナ ﾊﾝｶｸ", "您好，请问轴承为什么会发热？", "打通芯片与模型，大同世界。", "我想在apple工作1314151天～", "人工智能（AI）大模型：推理、训练与部署。",
    "Việt Nam đẹp lắm", "Zażółć gęślą jaźń", "Straße, Maße, ﬁne ﬂow, ĳ, ǅ",
    "https://example.org/a_b?c=d&e=%20f#g-1", "user.name+tag@mail.example.com", "C:\\Users\\me\\file.txt ~/src/../bin",
]  # fmt: skip
CODE = [
    "def f(x: int) -> int:\n    return x ** 2  # square", "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; }",
    "\tif (p != NULL && *p == '\\0') return -1;", "SELECT * FROM t WHERE id IN (1,2,3) AND name LIKE '%a%';",
    "let s = format!(\"{:>8.3}\", 3.14159_f64);", "#include <stdio.h>\r\nint main(void){return 0;}", "<div class=\"x\">a &amp; b</div>",
    "$ curl -sSL 'http://localhost:8080' | jq '.[] | .id'", "{\"a\": [1, 2.5e-3, null, true], \"b\": \"\\u00e9\"}", "lambda x:x+1;print(f'{x!r:^10}')",
    "class HTTPServerError(BaseException): pass", "x=>y<=z!=w===v&&u||t??s?.r", "__init__ snake_case_name CONST_VALUE camelCaseName PascalCase",
    "    indented\n        more\n\t\ttabs\n\n\nend", "/* comment */ // line -- sql % tex",
]  # fmt: skip
EMOJI = ["🎉", "😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳", "❤️", "☕", "🚀🚀🚀", "😶‍🌫️", "🦙", "✅", "➡️", "1️⃣"]
SPACES = [" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u1680", "\v", "\f"]  # fmt: skip
MARKS = [
    "e\u0301",
    "a\u0308\u0323",
    "n\u0303",
    "q\u0307\u0323",
    "\u0301",
    "ö",
    "가",
    "ཀྵ",
    "क्षि",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\ufffd",
]
CONTROL = ["\x00", "\x01", "\x07", "\x08", "\x1b[31m", "\x7f", "\x80", "\x9f", "\x1c", "\x1f", "\x85"]
DIGITS = ["0", "7", "42", "123", "1234", "12345678901234567890", "3.14", "1,000,000", "0x7fff", "１２３", "٣٤٥", "५६", "Ⅷ", "½", "²³", "①②", "1e-9", "0b1010", "10:30"]  # fmt: skip
PUNCT = ["!", "?!", "...", "…", "--", "—", "''", "``", '"', "“”", "()", "[]", "{}", "<>", "/", "\\", "|", "~", "^", "$", "€", "%", "&", "*", "+", "=", "@", "#", "_", "。", "，", "！", "「」", "《》"]  # fmt: skip
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\n", "<empty_output>", "<repo_name>", "<s>", "</s>", "<unk>", "<|im_", "▁", "<0x0A>", "Ġ"]  # fmt: skip
WORDS = (
    " ".join(TEXT[:5]).split()
    + TEXT[13].split()
    + ["the", "of", "A", "I", "HTML", "iPhone", "l'eau", "x86_64", "Ω", "ß", "中", "文字"]
)

KINDS = [WORDS, WORDS, WORDS, SPACES, SPACES, DIGITS, PUNCT, EMOJI, MARKS, CONTROL, SPECIAL]
COUNT = 1200


def lines() -> list[str]:
    """The fixed texts, each between odd white space, then mixtures; no two equal."""
    rng = random.Random(20261123)
    found = dict.fromkeys([*TEXT, *CODE, *EMOJI, *SPACES, *MARKS, *CONTROL, *DIGITS, *PUNCT, *SPECIAL])
    for text in TEXT + CODE:
        found[rng.choice(SPACES) + text + rng.choice(SPACES)] = None
    while len(found) < COUNT:
        glue = rng.choice(["", "", " "])
        kinds = rng.choices(KINDS, k=rng.randint(2, 4))
        found[glue.join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(2, 14)))] = None
    return list(found)


if __name__ == "__main__":
    target = Path(__file__).parent / "tokenizer" / "lines.json"
    target.write_text(json.dumps(lines(), ensure_ascii=True, indent=0) + "\n")
