"""What lies beside the weights of a Hugging Face directory: tokenizer, chat template, defaults, licence. Carried as is.

Nothing is interpreted here but the licence's name. A checkpoint without a tokenizer is importable: it takes token ids.
One with a damaged tokenizer is not.
"""

from __future__ import annotations

import re
from pathlib import Path

from datong.errors import TokenizerError
from datong.importer import files

# Files by name that a package keeps where the source has them; the rest of a directory is not the package's.
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
CARRIED = (
    "config.json", "generation_config.json", *TOKENIZER, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "README.md",
)  # fmt: skip
POOLING = "1_Pooling/config.json"  # sentence-transformers: how one vector of a text is made
_LICENCE_FILE = re.compile(r"(LICEN[SC]E|NOTICE|COPYING)([._-].*)?", re.IGNORECASE)

MAX_TEXT = 1_000_000  # bytes read of a README or licence

# A phrase near the top of a licence file -> the identifier that the hub uses. First match wins.
_PHRASES = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"\bMIT License\b|Permission is hereby granted, free of charge", "mit"),
    (r"Llama 3\.3 Community License|LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
)


def carried_files(directory: Path) -> list[str]:
    """Names of the files beside the weights that belong to the package, sorted.

    Raises:
        ContainmentError: one of them is a link that leads out of the directory.
    """
    names = {p.name for p in directory.iterdir() if p.name in CARRIED or _LICENCE_FILE.fullmatch(p.name)}
    templates = files.contained(directory, "additional_chat_templates")
    if templates.is_dir():
        names |= {f"additional_chat_templates/{p.name}" for p in templates.glob("*.jinja")}
    names.add(POOLING)
    return sorted(name for name in names if files.contained(directory, name).is_file())


def has_tokenizer(names: list[str]) -> bool:
    """Is a tokenizer among the carried files?"""
    return any(name in TOKENIZER for name in names)


def check_tokenizer(directory: Path, names: list[str]) -> None:
    """Can tokenizer.json, if there is one, be used? Raises TokenizerError, which names the field."""
    if "tokenizer.json" not in names:
        return
    from tokenizers import Tokenizer

    data = files.read_bytes(directory, "tokenizer.json")
    try:
        Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise TokenizerError(
            "import", f"`tokenizer.json` cannot be read: {reason}", "use the model's original tokenizer.json"
        ) from None


def licence(directory: Path, names: list[str]) -> str | None:
    """The licence as the hub spells it (`apache-2.0`), from the README's front matter or a licence file; None: unknown.

    `license: other` is answered with `license_name`, where the README has one.
    """
    if "README.md" in names:
        matter = _front_matter(_text(directory, "README.md"))
        stated = matter.get("license")
        if stated:
            return matter.get("license_name", stated) if stated == "other" else stated
    for name in names:
        if _LICENCE_FILE.fullmatch(name) and not name.upper().startswith("NOTICE"):
            text = _text(directory, name)[:4000]
            found = (known for phrase, known in _PHRASES if re.search(phrase, text))
            return next(found, f"see {name}")
    return None


def _text(directory: Path, name: str) -> str:
    size = files.contained(directory, name).stat().st_size
    return files.read_bytes(directory, name).decode("utf-8", "replace") if size <= MAX_TEXT else ""


def _front_matter(text: str) -> dict[str, str]:
    """Top-level `key: value` lines between the two `---`; lists and nested values are left out."""
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if not match:
        return {}
    pairs = re.findall(r"^([A-Za-z_]+):[ \t]*(\S[^\r\n]*)$", match[1], re.MULTILINE)
    return {key: value.strip().strip("'\"") for key, value in pairs}
