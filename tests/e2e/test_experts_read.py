"""Of a mixture's experts only the chosen ones are read: which pages of the weight file the process has mapped.

The weight file is sparse, all zeros but the router's bias, which chooses. Pages near a touched one are mapped by the
kernel as well (64 KiB), so experts are made large beside that.
"""

import json
import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import datong
from datong.importer.config import Config
from datong.importer.models.layers import build
from datong.importer.registry import FAMILIES
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.package.reader import Package, open_package
from datong.quantize.make import quantise
from datong.spec.formats import PLAIN_F32

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
PAGE = mmap.PAGESIZE
CHOSEN = {3, 6}  # of 8
SIZES = {
    "minimax_m2": {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1},  # a tensor for each expert
    "step3p5": {
        "hidden_size": 512, "moe_intermediate_size": 512, "num_hidden_layers": 2, "moe_layers_enum": "1",
        "num_nextn_predict_layers": 0,
    },  # stacked
}  # fmt: skip


@dataclass
class Shapes(WeightMap):
    """Says yes to every weight, and remembers its shape."""

    asked: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        self.asked[name] = shape
        return Weight(name, PLAIN_F32, shape, {"codes": StoredTensor(name, PLAIN_F32.codes, shape, "x", 0, 4)})


def sparse_checkpoint(family: str, root: Path) -> Path:
    root.mkdir()
    config = json.loads((GOLDENS / family / "config.json").read_text()) | SIZES[family]
    (root / "config.json").write_text(json.dumps(config))
    shapes = Shapes({})
    build(family, Config(config, family), FAMILIES[family](Config(config, family)), shapes)
    header, end = {}, 0
    for name, shape in shapes.asked.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end := end + 4 * math.prod(shape)]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with open(root / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, entry in header.items():
            if name.endswith(("e_score_correction_bias", "router_bias")):
                file.seek(8 + len(text) + entry["data_offsets"][0])
                file.write(np.isin(np.arange(8), list(CHOSEN)).astype(np.float32).tobytes())
    return root


def mapped(path: Path) -> np.ndarray:
    """[pages] bool: which pages of a file this process has mapped."""
    found = np.zeros(-(-path.stat().st_size // PAGE), bool)
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].rstrip("\n") == str(path):
                start, end = (int(part, 16) for part in fields[0].split("-"))
                pagemap.seek(start // PAGE * 8)
                present = np.frombuffer(pagemap.read((end - start) // PAGE * 8), np.uint64) >> np.uint64(63) > 0
                first = int(fields[2], 16) // PAGE
                found[first : first + len(present)] |= present[: len(found) - first]
    return found


def shares(package: Package) -> np.ndarray:
    """[8] share of each expert's pages that is mapped, over its matrices."""
    pages = mapped(package.path("model.safetensors").resolve())
    seen: list[list[np.ndarray]] = [[] for _ in range(8)]
    for name, (_, entry) in package.tensors.items():
        if ".experts." in name:
            found = [(int(name.split(".experts.")[1].split(".")[0]), entry.offset, entry.length)]
        elif ".moe." in name and "_proj" in name:
            found = [(i, entry.offset + i * entry.length // 8, entry.length // 8) for i in range(8)]
        else:
            continue
        for index, offset, length in found:
            seen[index].append(pages[-(-offset // PAGE) : (offset + length) // PAGE])
    return np.array([np.concatenate(parts).mean() for parts in seen])


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("weights", ["f32", "int4"])
def test_only_the_chosen_experts_are_read(
    family: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    source = sparse_checkpoint(family, tmp_path / "source")
    if weights == "f32":
        package = datong.import_checkpoint(source)
    else:
        package = quantise(source, tmp_path / "made", weights).package
    model = datong.load(open_package(package.root), context=16, threads=1)
    before = shares(package)
    model.generate([5, 6], max_tokens=2, ignore_eos=True)
    after = shares(package)
    assert before.max() < 0.5
    assert {i for i in range(8) if after[i] > 0.9} >= CHOSEN
    # A file system may cache in folios larger than these experts, and a fault maps a whole one: neighbours may show.
    near = {i + d for i in CHOSEN for d in (-1, 1)}
    assert max(after[i] for i in range(8) if i not in CHOSEN | near) < 0.5
