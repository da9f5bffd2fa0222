import json
from pathlib import Path

import pytest

from datong.engine.tokenizer import Tokenizer
from datong.errors import InvalidRequest, PackageError, TokenizerError
from datong.package.create import import_checkpoint
from datong.package.reader import open_package

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"


@pytest.fixture
def package(tmp_path, exact_tokenizers):
    """`package(files)` -> a package with a tokenizer and these further files."""

    def make(files: dict[str, object]):
        source = tmp_path / "model"
        source.mkdir()
        for file in (GOLDENS / "smollm2").iterdir():
            (source / file.name).write_bytes(file.read_bytes())
        (source / "tokenizer.json").write_text(exact_tokenizers["byte_level"].inner.to_str(), encoding="utf-8")
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (source / name).write_text(text, encoding="utf-8")
        import_checkpoint(source)
        return open_package(source)

    return make


def test_reads_a_package(package):
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "<|end|>",
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
    }
    tokenizer = Tokenizer.load(
        package({"tokenizer_config.json": settings, "generation_config.json": {"eos_token_id": [7, 9]}})
    )
    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert tokenizer.bos_id == 1 and {0, 7, 9} <= tokenizer.eos_ids
    assert tokenizer.decode(tokenizer.encode("hello 你好")) == "hello 你好"
    assert tokenizer.chat_template() == "D" and tokenizer.chat_template(tools=True) == "T"


def test_add_bos_token_counts_whatever_tokenizer_json_says(package):
    tokenizer = Tokenizer.load(package({"tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True}}))
    assert tokenizer.encode("ab")[0] == 1 and tokenizer.encode("<s>ab").count(1) == 1
    assert tokenizer.encode("ab", add_special=False)[0] != 1


def test_without_a_tokenizer_the_error_says_what_still_works():
    root = GOLDENS / "smollm2"

    class Bare:
        tokenizer_file, root = None, Path("x")

    assert not (root / "tokenizer.json").exists()
    with pytest.raises(TokenizerError, match=r"should hold a tokenizer\.json, it has none\nhint: give token ids"):
        Tokenizer.load(Bare())


def test_a_tokenizer_changed_after_the_import_is_refused(package):
    opened = package({})
    (opened.root / "tokenizer.json").write_text("{}" + " " * 10)
    with pytest.raises(PackageError):
        Tokenizer.load(open_package(opened.root))


def test_ids_and_text_of_wrong_kinds_are_refused(exact_tokenizers):
    tokenizer = exact_tokenizers["byte_level"]
    with pytest.raises(InvalidRequest, match="text should be a string, got `int`"):
        tokenizer.encode(5)
    with pytest.raises(InvalidRequest, match="token ids should be whole numbers"):
        tokenizer.decode([-1])
    with pytest.raises(InvalidRequest, match="valid Unicode"):
        tokenizer.encode("\ud800")
