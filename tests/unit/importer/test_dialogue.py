"""Which description of tool calls a model gets, and that its package carries it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datong.errors import ImportFailed, PackageError
from datong.importer.dialogue import choose as module
from datong.importer.dialogue.choose import choose, entries
from datong.spec import dialogue


def test_every_description_survives_its_file() -> None:
    assert len(entries()) >= 14
    for entry in entries():
        assert dialogue.decode(dialogue.encode(entry.dialogue)) == entry.dialogue
        assert entry.dialogue.source


@pytest.mark.parametrize(
    ("template", "family", "name"),
    [
        ('<tool_call>\n{"name": .., "arguments": ..}', "qwen3", "hermes"),
        ("<tool_call>\n<function=f>\n<parameter=k> arguments", "step3p5", "qwen_xml"),
        ("<tool_call>{name}<arg_key> arguments", "glm4_moe", "glm4"),
        ("{{ content }}", "internlm2", "internlm2"),
        ("{{ '<think>' }}", "qwen3", "think"),
        ("{{ content }}", "llama", None),
        (None, "llama", None),
    ],
)
def test_the_template_decides_then_the_family(template: str | None, family: str, name: str | None) -> None:
    found = choose(template, family)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('name = "x"\nsource = "s"\nmarks = ["a"]\nspare = 1', "spare"),
        ('name = "y"\nsource = "s"\nmarks = ["a"]', "`x`"),
        ('name = "x"\nsource = "s"', "mark"),
        ('name = "x"\nsource = "s"\nmarks = ["a"]\n[tools]\nfields = [["a", "b"]]', "where calls begin"),
        ("name = ", "should read as"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wanted: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    monkeypatch.setattr(module, "DATA", tmp_path)
    with pytest.raises(ImportFailed, match=wanted):
        entries.__wrapped__()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"name": 1}', b'{"name": "a", "source": "s", "more": 1}', b"\xff", b" " * (dialogue.MAX_BYTES + 1)],
)
def test_a_damaged_dialogue_json_is_refused(data: bytes) -> None:
    with pytest.raises(PackageError, match=dialogue.NAME):
        dialogue.decode(data)
