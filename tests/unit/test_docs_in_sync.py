"""docs/reference and docs/chips are generated; a page that differs from the code or a descriptor fails."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from datong import env, errors
from datong.chips.check import facts
from datong.chips.load import stacks
from datong.spec.ops import OPS

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["ops.md", "errors.md", "env.md", "models.md", "speed.md"])
def test_page_is_what_the_code_says(page: str) -> None:
    have = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert have == script().PAGES[page](), f"docs/reference/{page} is stale: run scripts/generate_docs.py"


def test_readme_has_the_measured_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == script()._with_speed(text), "README's table of speed is stale: run scripts/generate_docs.py"


@pytest.mark.parametrize("page", ["README.md", *(f"{name}.md" for name in stacks())])
def test_chip_page_is_what_the_descriptor_says(page: str) -> None:
    have = (ROOT / "docs" / "chips" / page).read_text(encoding="utf-8")
    assert have == script().CHIP_PAGES[page](), f"docs/chips/{page} is stale: run scripts/generate_docs.py"
    text = have.split("\n\n")
    assert text[2].startswith("Nothing on this page was measured on a card by this project.")  # after comment and title
    assert all(f"`{word}`" in text[2] for word in ("vendor-claimed", "not run", "simulated"))


@pytest.mark.parametrize("name", stacks())
def test_chip_page_shows_every_fact(name: str) -> None:
    stack, page = stacks()[name], script().CHIP_PAGES[f"{name}.md"]()
    cell = script()._cell
    for place, fact in facts(stack):
        row = f"| {fact.grade} | {cell(fact.source)} | {cell(fact.note)} |\n"
        start = f"| `{place.rpartition('.')[2]}` | " + ("unknown " if fact.grade == "unknown" else "")
        assert any(line.startswith(start) and f"{line}\n".endswith(row) for line in page.splitlines()), place
    for fused in stack.fused:
        assert f"### `{fused.name}`\n" in page and fused.schema in page and cell(fused.condition) in page, fused.name


def test_no_page_is_forgotten() -> None:
    assert {p.name for p in (ROOT / "docs" / "chips").glob("*.md")} == set(script().CHIP_PAGES)
    assert {p.name for p in (ROOT / "docs" / "reference").glob("*.md")} >= set(script().PAGES)


def test_pages_hold_every_row() -> None:
    pages = script().PAGES
    operators, tree, variables = pages["ops.md"](), pages["errors.md"](), pages["env.md"]()
    assert all(f"\n### {name}\n" in operators for name in OPS)
    assert all(f"`{v.name}`" in variables for v in env.VARS)
    # the tree in the docstring is drawn by hand: every class is in it
    classes = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.DatongError)]
    assert [c.__name__ for c in classes if c.__name__ not in tree] == []


def test_check_fails_on_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results").symlink_to(ROOT / "bench" / "results")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.main(check=True) == 1
    assert module.main(check=False) == 0
    assert module.main(check=True) == 0
    for page in ("reference/env.md", "chips/metax.md"):
        (tmp_path / "docs" / page).write_text("old")
        assert module.main(check=True) == 1
        assert module.main(check=False) == 0
