"""Options that every test folder shares."""

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """`golden(text, path)`: the text equals the file, or becomes it with --update-golden."""

    def compare(text: str, path: Path) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        have = path.read_text(encoding="utf-8") if path.exists() else ""
        diff = "\n".join(difflib.unified_diff(have.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1))
        assert not diff, f"{path.name} differs; if that is meant: pytest --update-golden\n{diff}"

    return compare
