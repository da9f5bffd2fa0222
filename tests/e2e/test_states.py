"""Families that keep a state per sequence, on each backend: the goldens, however their tokens are cut into steps, with
slots in any order, taken over from others, and copied. The bound is that of tests/data/goldens/README.md."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from datong.backends.registry import backend_for
from datong.compiler.pipeline import compile_package
from datong.package.create import import_checkpoint
from datong.package.reader import Package
from datong.spec.backend import Backend
from datong.spec.program import Step

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
BOUNDS = {"minimax_text01": 2e-3, "qwen3_5_moe": 1e-2, "qwen3_5_moe_text": 1e-2, "qwen3_5_text": 1e-2,
          "qwen3_next": 1e-2}  # fmt: skip
CHIPS = ["sim:ascend-910b", "sim:biren-br1xx", "sim:biren-br2xx", "sim:enflame-s60", "sim:iluvatar-bi-v150",
         "sim:metax-c500", "sim:moorethreads-s5000"]  # fmt: skip
DEVICES = ["reference", "cpu", "torch:cpu", "onnxruntime"]
CASES = [(device, family) for device in DEVICES for family in BOUNDS]
CASES += [(chip, family) for chip in CHIPS for family in ("minimax_text01", "qwen3_next")]  # all of them: test_sim.py
SLOTS = 6


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("states")
    return {name: import_checkpoint(GOLDENS / name, root / name) for name in BOUNDS}


def answer(family: str) -> tuple[np.ndarray, np.ndarray]:
    """ids [24], logits [24, vocab]."""
    stored = load_file(GOLDENS / family / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


class Sequences:
    """Several sequences in one cache; a sequence's slot is what the test says, its blocks are its slot's."""

    def __init__(self, package: Package, backend: Backend, options: dict[str, str]) -> None:
        [part] = compile_package(package, [backend], strict=True).parts
        given = {"compute_dtype": "f32", "cache_dtype": "f32", "threads": "1"} | options
        names = getattr(backend, "option_names", given)
        part = replace(part, graph=str(package.root / "graph.onnx"))
        self.executable = backend.compile(
            part, str(package.weights_root), {k: v for k, v in given.items() if k in names}
        )
        size = self.executable.create_cache(0, 0, 0).layout.block_size
        self.per = -(-24 // size)
        self.cache = self.executable.create_cache(self.per * SLOTS, 0, SLOTS)
        self.output = part.outputs[0]

    def step(self, chunks: dict[int, tuple[int, np.ndarray]]) -> np.ndarray:
        """Slot -> (tokens before, new ids): logits [T, vocab]."""
        starts, news = [past for past, _ in chunks.values()], [len(ids) for _, ids in chunks.values()]
        positions = [np.arange(past, past + n) for past, n in zip(starts, news, strict=True)]
        tables = [np.arange(slot * self.per, (slot + 1) * self.per) for slot in chunks]
        step = Step(
            np.concatenate([ids for _, ids in chunks.values()]).astype(np.int64),
            np.concatenate(positions).astype(np.int64),
            np.cumsum([0, *news], dtype=np.int64),
            np.add(starts, news).astype(np.int64),
            np.array(tables, np.int32),
            np.arange(sum(news), dtype=np.int64),
            state_slots=np.array(list(chunks), np.int32),
        )
        return np.array(self.executable.run(step, self.cache, {})[self.output])


WAYS: dict[str, list[dict[int, tuple[int, int]]]] = {
    "whole": [{0: (0, 24)}],
    "chunks": [{1: (0, 5)}, {1: (5, 13)}, {1: (13, 24)}],
    "single steps": [{2: (i, i + 1)} for i in range(24)],
    # a slot that another sequence has left; sequences that come, wait and go on in any order
    "unequal batch": [
        {3: (0, 17), 1: (0, 3)},
        {1: (3, 4), 3: (17, 24), 5: (0, 9)},
        {5: (9, 10), 1: (4, 5)},
        {5: (10, 12), 1: (5, 7), 0: (0, 2)},
    ],
}


def run(sequences: Sequences, steps: list[dict[int, tuple[int, int]]], ids: np.ndarray) -> Iterator[np.ndarray]:
    for chunks in steps:
        yield sequences.step({slot: (a, ids[a:b]) for slot, (a, b) in chunks.items()})


@pytest.fixture(scope="module")
def opened(packages: dict[str, Package]) -> dict[tuple[str, ...], Sequences]:
    return {}


def open_(opened: dict[tuple[str, ...], Sequences], packages: dict[str, Package], device: str, family: str,
          **options: str) -> Sequences:  # fmt: skip
    key = (device, family, *options.values())
    if key not in opened:
        opened[key] = Sequences(packages[family], backend_for(device), options)
    return opened[key]


@pytest.mark.parametrize(("device", "family"), CASES)
def test_goldens(
    device: str, family: str, opened: dict[tuple[str, ...], Sequences], packages: dict[str, Package]
) -> None:
    ids, logits = answer(family)
    sequences, worst = open_(opened, packages, device, family), {}
    for way, steps in WAYS.items():
        wanted = [np.concatenate([logits[a:b] for a, b in chunks.values()]) for chunks in steps]
        pairs = zip(run(sequences, steps, ids), wanted, strict=True)
        worst[way] = max(float(np.abs(got - want).max()) for got, want in pairs)
    assert {way: error for way, error in worst.items() if not error <= BOUNDS[family]} == {}


@pytest.mark.parametrize("device", [*DEVICES, CHIPS[0]])
@pytest.mark.parametrize("family", ["minimax_text01", "qwen3_next"])
def test_a_copied_state_goes_on_by_itself(
    device: str, family: str, opened: dict[tuple[str, ...], Sequences], packages: dict[str, Package]
) -> None:
    ids, logits = answer(family)
    sequences = open_(opened, packages, device, family)
    sequences.step({0: (0, ids[:11])})
    for block in range(sequences.per):
        sequences.cache.copy_block(block, 4 * sequences.per + block)
    sequences.cache.copy_state(0, 4)
    sequences.step({0: (11, ids[3:9])})  # another way: it must not reach the copy
    got = sequences.step({4: (11, ids[11:])})
    assert np.abs(got - logits[11:]).max() <= BOUNDS[family]


@pytest.mark.parametrize("device", ["torch:cpu", CHIPS[0], CHIPS[5]])
@pytest.mark.parametrize("family", ["minimax_text01", "qwen3_next"])
def test_padded_steps(
    device: str, family: str, opened: dict[tuple[str, ...], Sequences], packages: dict[str, Package]
) -> None:
    """Steps of few shapes: padding has a state too, and must not write into anybody's."""
    ids, logits = answer(family)
    sequences = open_(opened, packages, device, family, buckets="on")
    sequences.step(dict.fromkeys((5, 0, 3), (0, ids[:3])))
    for i in range(3, 9):
        got = sequences.step(dict.fromkeys((5, 0, 3), (i, ids[i : i + 1])))
        assert np.abs(got - logits[i]).max() <= BOUNDS[family]
