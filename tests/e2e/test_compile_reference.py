"""Golden checkpoint -> import -> compile -> reference backend: the logits of the official implementation, however
the tokens are cut into steps. The bound is that of tests/data/goldens/README.md."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import plan
from datong.compiler.pipeline import compile_graph
from datong.importer.hf import import_directory
from datong.spec.backend import Backend
from datong.spec.program import Program, Step

DATA = Path(__file__).resolve().parents[1] / "data"
FAMILIES = ["internlm2", "internlm3", "llama3", "llama3_sharded", "qwen2", "qwen3", "smollm2"]
BOUND = 2e-3
ADD_NORM = ReferenceBackend(["add_rms_norm", "linear_multi"])  # linear_add would leave add_rms_norm nothing to do
BACKENDS = {"plain": ReferenceBackend(), "fused": ReferenceBackend.with_fusions(), "add_norm": ADD_NORM}


def compiled(family: str, backend: Backend, *, fuse: bool = True) -> Program:
    root = DATA / "goldens" / family
    imported = import_directory(root)
    return compile_graph(
        imported.model, root, [backend], strict=True, verify=True, fuse=fuse, context_length=imported.context_length
    )


def answer(family: str) -> tuple[np.ndarray, np.ndarray]:
    """ids [24], logits [24, vocab]."""
    stored = load_file(DATA / "goldens" / family / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


class Runner:
    """Sequences in one paged cache, whose blocks lie in shuffled order."""

    def __init__(self, program: Program, backend: Backend, blocks: int = 40) -> None:
        assert len(program.parts) == 1
        self.executable = backend.compile(program.parts[0], program.package, {"cache_dtype": "f32"})
        self.cache = self.executable.create_cache(blocks)
        self.free = np.random.default_rng(5).permutation(blocks).tolist()
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def step(self, chunks: dict[int, Sequence[int]], rows: Sequence[int] | None = None) -> np.ndarray:
        """New tokens of several sequences, by sequence number -> logits [R, vocab]."""
        size = self.cache.layout.block_size
        positions: list[int] = []
        for sequence, ids in chunks.items():
            start = self.lengths.get(sequence, 0)
            positions += range(start, start + len(ids))
            self.lengths[sequence] = start + len(ids)
            table = self.tables.setdefault(sequence, [])
            while len(table) * size < self.lengths[sequence]:
                table.append(self.free.pop())
        width = max(len(self.tables[s]) for s in chunks)
        total = len(positions)
        step = Step(
            ids=np.concatenate([np.asarray(ids, dtype=np.int64) for ids in chunks.values()]),
            positions=np.asarray(positions, dtype=np.int64),
            query_starts=np.cumsum([0, *(len(ids) for ids in chunks.values())], dtype=np.int64),
            context_lens=np.asarray([self.lengths[s] for s in chunks], dtype=np.int64),
            block_tables=np.asarray(
                [self.tables[s] + [-1] * (width - len(self.tables[s])) for s in chunks], dtype=np.int32
            ),
            rows=np.asarray(range(total) if rows is None else rows, dtype=np.int64),
        )
        return np.array(self.executable.run(step, self.cache, {})["logits"])


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_prompt(family: str, kind: str) -> None:
    ids, logits = answer(family)
    backend = BACKENDS[kind]
    got = Runner(compiled(family, backend), backend).step({0: ids})
    assert got.shape == logits.shape
    assert np.abs(got - logits).max() <= BOUND


@pytest.mark.parametrize("cuts", [[5, 8, 11], [1] * 24, [23, 1]], ids=["chunks", "token by token", "last alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_into_steps(family: str, cuts: list[int]) -> None:
    ids, logits = answer(family)
    backend = BACKENDS["fused"]
    runner = Runner(compiled(family, backend), backend)
    ends = np.cumsum(cuts)
    got = np.concatenate([runner.step({0: ids[end - size : end]}) for end, size in zip(ends, cuts, strict=True)])
    assert np.abs(got - logits).max() <= BOUND


@pytest.mark.parametrize("kind", ["plain", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_of_unequal_sequences(family: str, kind: str) -> None:
    """Three prefixes of the prompt, mixed prefill and decode; causal, so each has the golden's own logits."""
    ids, logits = answer(family)
    backend = BACKENDS[kind]
    runner = Runner(compiled(family, backend), backend)
    plans = [{0: (0, 17), 1: (0, 3)}, {1: (3, 4), 0: (17, 24), 2: (0, 9)}, {2: (9, 24), 1: (4, 5)}]
    for chunks in plans:
        got = runner.step({s: ids[a:b] for s, (a, b) in chunks.items()})
        want = np.concatenate([logits[a:b] for a, b in chunks.values()])
        assert np.abs(got - want).max() <= BOUND


@pytest.mark.parametrize("rows", [[23], [0, 7, 23], [7, 7, 2], []])
@pytest.mark.parametrize("kind", BACKENDS)
def test_logits_only_where_asked(kind: str, rows: list[int]) -> None:
    ids, logits = answer("qwen3")
    backend = BACKENDS[kind]
    got = Runner(compiled("qwen3", backend), backend).step({0: ids}, rows)
    assert got.shape == (len(rows), logits.shape[1])
    assert np.abs(got - logits[rows]).max(initial=0) <= BOUND


def test_a_wrong_answer_is_seen() -> None:
    """The bound can fail: one token of the prompt is another."""
    ids, logits = answer("llama3")
    ids = ids.copy()
    ids[4] = (ids[4] + 1) % logits.shape[1]
    backend = BACKENDS["plain"]
    got = Runner(compiled("llama3", backend), backend).step({0: ids})
    assert np.abs(got[:4] - logits[:4]).max() <= BOUND < np.abs(got[4:] - logits[4:]).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_plan(family: str, golden: Callable[[str, Path], None]) -> None:
    """A refactor of the compiler shows here as a diff, or as nothing."""
    program = compiled(family, BACKENDS["fused"])
    golden(plan.to_text(program), DATA / "plans" / f"{family}.txt")


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_survives_json(family: str) -> None:
    program = compiled(family, BACKENDS["fused"])
    data = plan.to_json(program)
    assert plan.from_json(data) == program
    assert plan.to_json(plan.from_json(data)) == data


def test_fusions_are_formed_only_on_request() -> None:
    fused = {node.op for node in compiled("llama3", BACKENDS["fused"]).parts[0].nodes}
    assert {"linear_multi", "linear_glu", "linear_add"} <= fused
    add_norm = {node.op for node in compiled("llama3", BACKENDS["add_norm"]).parts[0].nodes}
    assert {"add_rms_norm", "linear_multi", "glu"} <= add_norm
    for program in (compiled("llama3", BACKENDS["plain"]), compiled("llama3", BACKENDS["fused"], fuse=False)):
        assert not {"linear_multi", "linear_glu", "linear_add", "add_rms_norm"} & {n.op for n in program.parts[0].nodes}
