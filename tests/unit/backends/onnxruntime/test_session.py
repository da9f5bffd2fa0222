"""Steps of unequal sequences become runs of equal ones; weights behind links are found."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from datong.backends.onnxruntime import create
from datong.backends.onnxruntime.session import _groups, _real_files
from datong.compiler.cache import cached_program
from datong.errors import DeviceError, ShapeError
from datong.package.create import import_checkpoint
from datong.spec.program import Step

GOLDENS = Path(__file__).resolve().parents[3] / "data" / "goldens"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def opened(directory: Path):
    backend = create("onnxruntime")
    program = cached_program(import_checkpoint(directory), [backend])
    return backend.compile(program.parts[0], program.package, {"threads": "1"})


def step(new: list[int], past: list[int], ids: np.ndarray, rows: list[int]) -> Step:
    """Sequence s has the blocks 2 s and 2 s + 1."""
    lens = np.array(past) + new
    return Step(
        ids=ids,
        positions=np.concatenate([np.arange(p, p + n) for n, p in zip(new, past, strict=True)]).astype(np.int64),
        query_starts=np.cumsum([0, *new]).astype(np.int64),
        context_lens=lens.astype(np.int64),
        block_tables=np.arange(2 * len(new), dtype=np.int32).reshape(-1, 2),
        rows=np.array(rows, np.int64),
    )


def answer(name: str) -> tuple[np.ndarray, np.ndarray]:
    stored = load_file(GOLDENS / name / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


def test_sequences_of_equal_lengths_run_together():
    tables = step([3, 1, 3, 0, 3], [0, 5, 0, 2, 4], np.zeros(10, np.int64), [])
    groups = [(past, members.tolist()) for past, members in _groups(tables)]
    assert groups == [(0, [0, 2]), (4, [4]), (5, [1])]


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    root = tmp_path_factory.mktemp("model") / "llama3"
    shutil.copytree(GOLDENS / "llama3", root)
    return opened(root)


def test_rows_come_in_the_order_that_was_asked_and_twice_if_asked_twice(executable):
    ids, logits = answer("llama3")
    store = executable.create_cache(6)
    whole = step([9, 9, 4], [0, 0, 0], np.concatenate([ids[:9], ids[:9], ids[:4]]), [21, 3, 12, 3, 8])
    (got,) = executable.run(whole, store, {}).values()
    assert np.abs(got - logits[[3, 3, 3, 3, 8]]).max() < 2e-3
    later = step([1, 0, 2], [9, 9, 4], ids[[9, 4, 5]], [2, 0])
    (got,) = executable.run(later, store, {}).values()
    assert np.abs(got - logits[[5, 9]]).max() < 2e-3
    (got,) = executable.run(step([2, 0, 0], [10, 9, 6], ids[10:12], []), store, {}).values()
    assert got.shape == (0, logits.shape[1])


def test_a_bad_step_is_refused_before_it_runs(executable):
    store = executable.create_cache(2)
    good = step([2], [0], np.array([1, 2]), [0])
    with pytest.raises(DeviceError, match="`ids` should lie in"):
        executable.run(step([2], [0], np.array([1, 10**6]), [0]), store, {})
    with pytest.raises(DeviceError, match=r"block table of sequence 0 should lie in 0\.\.0"):
        executable.run(step([20], [0], np.ones(20, np.int64), [0]), executable.create_cache(1), {})
    with pytest.raises(ShapeError, match="`query_starts` should rise"):
        executable.run(Step(**{**vars(good), "query_starts": np.array([0, 3])}), store, {})
    with pytest.raises(DeviceError, match="the cache should be its own, is a NoneType"):
        executable.run(good, None, {})


# ---- weights behind links -------------------------------------------------------------------------------------------


def hub(root: Path, name: str) -> Path:
    """A snapshot as the hub's cache lays it out: every file a link into blobs/."""
    snapshot, blobs = root / "models--x" / "snapshots" / "abc", root / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, source in enumerate(sorted((GOLDENS / name).iterdir())):
        if not source.name.startswith("golden"):
            shutil.copy(source, blobs / f"{number:064x}")
            (snapshot / source.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    return snapshot


@pytest.mark.parametrize("name", ["llama3", "llama3_sharded"])
def test_a_snapshot_of_the_hub(tmp_path, name):
    ids, logits = answer(name)
    executable = opened(hub(tmp_path, name))
    (got,) = executable.run(step([24], [0], ids, list(range(24))), executable.create_cache(2), {}).values()
    assert np.abs(got - logits).max() < 2e-3


def test_a_graph_is_rewritten_only_where_files_are_links(tmp_path):
    model = onnx.ModelProto()
    for file in ("a.safetensors", "b.safetensors"):
        tensor = model.graph.initializer.add(name=file, data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=file)
        tensor.external_data.add(key="offset", value="8")
        (tmp_path / file).write_bytes(b"")
    data, files = model.SerializeToString(), {"a.safetensors", "b.safetensors"}
    assert _real_files(data, tmp_path, files) == (Path(os.path.realpath(tmp_path)), data)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "b.safetensors").rename(tmp_path / "blobs" / "0f")
    (tmp_path / "b.safetensors").symlink_to("blobs/0f")
    base, changed = _real_files(data, tmp_path, files)
    found = [t.external_data[0].value for t in onnx.ModelProto.FromString(changed).graph.initializer]
    assert (base, found) == (Path(os.path.realpath(tmp_path)), ["a.safetensors", "blobs/0f"])
