"""Files beside the weights, and the licence's name."""

from pathlib import Path

import pytest

from datong.errors import ContainmentError, TokenizerError
from datong.importer.assets import carried_files, check_tokenizer, has_tokenizer, licence


def fill(directory: Path, **contents: str) -> list[str]:
    for name, text in contents.items():
        (directory / name.replace("__", ".")).write_text(text)
    return carried_files(directory)


def test_what_belongs_to_the_package(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("")
    (tmp_path / "LICENSE-MODEL").write_text("")
    names = fill(
        tmp_path, config__json="{}", tokenizer__json="{}", chat_template__jinja="", README__md="", LICENSE="",
        NOTICE__txt="", modeling_x__py="", pytorch_model__bin="", golden__safetensors="", training_args__bin="",
    )  # fmt: skip
    assert names == sorted([
        "config.json", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE", "LICENSE-MODEL", "NOTICE.txt",
        "additional_chat_templates/tools.jinja",
    ])  # fmt: skip
    assert has_tokenizer(names) and not has_tokenizer(["config.json"])


def test_a_tokenizer_without_a_field_is_refused(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, fill(tmp_path, config__json="{}"))  # none is fine
    with pytest.raises(TokenizerError, match=r"`tokenizer\.json` cannot be read: Model missing") as error:
        check_tokenizer(tmp_path, fill(tmp_path, tokenizer__json='{"version": "1.0"}'))
    assert error.value.hint


def test_links_out_of_the_directory_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret").write_text("")
    (inside / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(ContainmentError, match=r"`tokenizer\.json` is a link that leads out"):
        carried_files(inside)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"README__md": "---\nlanguage:\n- en\nlicense: apache-2.0\ntags: [x]\n---\n# license: mit"}, "apache-2.0"),
        ({"README__md": "---\r\nlicense: 'mit'\r\n---\r\n"}, "mit"),
        ({"README__md": "---\nlicense: other\nlicense_name: qwen\n---\n"}, "qwen"),
        ({"README__md": "---\nlicense: other\n---\n"}, "other"),
        (
            {
                "README__md": "# no front matter\nlicense: mit\n",
                "LICENSE": "   Apache License\n   Version 2.0, January 2004",
            },
            "apache-2.0",
        ),
        ({"LICENCE__txt": "MIT License\n\nCopyright"}, "mit"),
        ({"LICENSE": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"}, "llama3.1"),
        ({"LICENSE": "You may not."}, "see LICENSE"),
        ({"NOTICE": "MIT License"}, None),
        ({"README__md": "x" * 2_000_000}, None),
        ({}, None),
    ],
)
def test_licence(tmp_path: Path, contents: dict[str, str], expected: str | None) -> None:
    assert licence(tmp_path, fill(tmp_path, **contents)) == expected
