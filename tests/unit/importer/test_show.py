"""What a stranger wrote appears in messages on one line, escaped and short."""

from typing import Any

import pytest

from datong.importer.show import show


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("silu", "`silu`"),
        ("层", "`层`"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ("\ud800", r"'\ud800'"),
        (3, "3"),
        (None, "None"),
        ([1, "é"], r"[1, '\xe9']"),
        ("x" * 119, "`" + "x" * 99 + "…"),
    ],
)
def test_show(value: Any, text: str) -> None:
    assert show(value) == text
