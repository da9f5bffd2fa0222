"""Reading descriptors, the chip that a name means, and a sentence with file and place for each malformed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datong.chips.load import DATA, chips, find, read, stacks
from datong.errors import BackendMissing, ChipError

# (what is wrong, text in the descriptor, what it becomes, place and words of the error)
BAD = [
    ("unknown field", "[adapter]\nkind", "[adapter]\nwheels = 4\nkind", ": adapter]", "field `wheels`"),
    ("unknown field of a fact", '{ value = "hy-smi"', '{ val = "hy-smi"', "identity.smi]", "unknown field `val`"),
    ("wrong type", 'vendor = "Hygon"', "vendor = 3", "hygon.toml: vendor]", "Expected `str`, got `int`"),
    ("missing field", 'products = ["k100-ai", "k100", "bw1000"]\n', "", "generations[0]]", "missing required field"),
    ("no such grade", 'value = "0x1d94", grade = "B"', 'value = "0x1d94", grade = "D"', "identity.pci_vendor", "'D'"),
    ("not TOML", 'title = "Hygon DCU (DTK)"', 'title = "Hygon', "hygon.toml]", "line 4"),
    ("another name", 'name = "hygon"', 'name = "haiguang"', "hygon.toml]", "`hygon`, is `haiguang`"),
    ("value without source", ', source = "flagos-ai/FlagGems@ed2508b pyproject.toml", note = "the vendor\'s build"', "",
     "hygon.toml: adapter.package]", "should have a source"),
    ("unknown with a value", 'tilelang = { grade = "unknown" }', 'tilelang = { value = "3.0", grade = "unknown" }',
     "hygon.toml: tilelang]", "should have no value, it is '3.0'"),
    ("grade without value", 'tilelang = { grade = "unknown" }', 'tilelang = { grade = "A", source = "a page" }',
     "hygon.toml: tilelang]", "grade A should have a value"),
    ("a PCI id that is none", '"0x1d94"', '"1d94"', "identity.pci_vendor]", "`0x19e5`, it is `1d94`"),
    ("foreign element type", '"f64", "f32"', '"double", "f32"', "generations.k100.dtypes]", "here is `double`"),
    ("legal and illegal", "illegal_dtypes = { grade = \"unknown\" }",
     'illegal_dtypes = { value = ["bf16"], grade = "A", source = "a page" }', "generations.k100.illegal_dtypes]",
     "`bf16` is in dtypes too"),
    ("legal and gated", "gated_dtypes = { grade = \"unknown\" }",
     'gated_dtypes = { value = ["i64"], grade = "A", source = "a page" }', "generations.k100.gated_dtypes]",
     "`i64` is in dtypes too"),
    ("a pattern that is none", 'smi_device_pattern = { grade = "unknown" }',
     'smi_device_pattern = { value = "(?P<index>", grade = "A", source = "a page" }', "identity.smi_device_pattern]",
     "should compile"),
    ("a pattern without index", 'smi_device_pattern = { grade = "unknown" }',
     'smi_device_pattern = { value = "(?P<product>.)", grade = "A", source = "a page" }',
     "identity.smi_device_pattern]", "they are: product"),
    ("a version pattern without a group", 'version_pattern = { grade = "unknown" }',
     'version_pattern = { value = "Version", grade = "A", source = "a page" }', "toolkit.version_pattern]", "it has 0"),
    ("upper case", '"bw1000"', '"BW1000"', "hygon.toml: name]", "it is `BW1000`"),
    ("no such layout", 'kv_layout = { grade = "unknown" }',
     'kv_layout = { value = "bhsd", grade = "A", source = "a page" }', "generations.k100.kv_layout]", "it is `bhsd`"),
    ("negative block", "value = [128]", "value = [-128]", "generations.k100.kv_block_sizes]", "lowest is -128"),
]  # fmt: skip
FUSED = """
[[fused]]
implements = "{implements}"
name = "torch.ops._C.rms_norm"
schema = "{schema}"
grade = "{grade}"
source = "{source}"
generations = {generations}
"""
GOOD_FUSED = {
    "implements": "rms_norm",
    "schema": "rms_norm(Tensor x) -> Tensor",
    "grade": "A",
    "source": "a page",
    "generations": '["k100"]',
}
BAD_FUSED = [
    ({"implements": "softmax"}, "not `softmax`"),
    ({"implements": "attention"}, ""),
    ({"implements": "attention.read"}, "not `attention.read`"),
    ({"generations": '["k900"]'}, "of generations k100, not `k900`"),
    ({"source": ""}, "grade of A, B or C and a source"),
    ({"grade": "unknown"}, "grade of A, B or C and a source"),
    ({"schema": "layer_norm(Tensor x) -> Tensor"}, "should begin with its last name"),
]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hygon.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("old", "new", "place", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_malformed_descriptor_names_file_and_place(tmp_path: Path, old: str, new: str, place: str, words: str) -> None:
    good = (DATA / "hygon.toml").read_text(encoding="utf-8")
    assert read(written(tmp_path, good)).name == "hygon"
    assert old in good
    with pytest.raises(ChipError) as caught:
        read(written(tmp_path, good.replace(old, new, 1)))
    assert str(caught.value).startswith("[hygon.toml")
    assert place in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("change", "words"), BAD_FUSED, ids=[str(change) for change, _ in BAD_FUSED])
def test_malformed_vendor_operator(tmp_path: Path, change: dict[str, str], words: str) -> None:
    text = (DATA / "hygon.toml").read_text(encoding="utf-8")
    path = written(tmp_path, text + FUSED.format(**{**GOOD_FUSED, **change}))
    if not words:  # a whole operator of ours is fine
        assert read(path).fused[0].implements == change["implements"]
        return
    with pytest.raises(ChipError) as caught:
        read(path)
    assert "[hygon.toml: fused[0]]" in str(caught.value)
    assert words in str(caught.value)


def test_a_name_means_one_generation(tmp_path: Path) -> None:
    text = (DATA / "hygon.toml").read_text(encoding="utf-8")
    generation = text[text.index("[[generations]]") :]
    with pytest.raises(ChipError, match="should mean one generation, it means 2"):
        read(written(tmp_path, text + "\n" + generation))


def test_missing_file_is_a_chip_error(tmp_path: Path) -> None:
    with pytest.raises(ChipError, match=r"^\[none.toml\]"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("ascend-910b", "ascend-a2"),
        ("ascend-910B3", "ascend-a2"),
        ("ascend-910c", "ascend-a3"),
        ("ascend-310p3", "ascend-310p"),
        ("ascend-950", "ascend-a5"),
        ("ascend", "ascend-a2"),
        ("ascend-a3", "ascend-a3"),
        ("biren-br1xx", "biren-br1xx-br106"),
        ("biren-br1xx-br166", "biren-br1xx-br106"),
        ("biren-br2xx", "biren-br2xx-br200"),
        ("enflame-s60", "enflame-gcu300"),
        ("enflame-l600", "enflame-gcu400"),
        ("moorethreads-s5000", "moorethreads-mp31"),
        ("moorethreads-s4000", "moorethreads-mp22"),
        ("moorethreads", "moorethreads-mp31"),
        ("iluvatar-bi-v150", "iluvatar-ivcore11"),
        ("metax-c500", "metax-c500"),
        ("metax-c600", "metax-c600"),
    ],
)
def test_find(name: str, chip: str) -> None:
    assert find(name).name == chip


def test_find_says_what_is_near() -> None:
    with pytest.raises(BackendMissing, match="ascend-910b"):
        find("ascend-910x")


def test_every_full_name_is_found() -> None:
    for chip in chips():
        assert find(chip.name) == chip
        for product in chip.generation.products:
            assert find(f"{chip.stack.name}-{product}") == chip


def test_stacks_are_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(stacks()) == sorted(path.stem for path in DATA.glob("*.toml"))
    shutil.copy(DATA / "hygon.toml", tmp_path)
    monkeypatch.setattr("datong.chips.load.DATA", tmp_path)
    stacks.cache_clear()
    try:
        assert list(stacks()) == ["hygon"]
    finally:
        stacks.cache_clear()
