from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from datong.backends.reference import ReferenceBackend
from datong.backends.torch import here
from datong.backends.torch.backend import TorchBackend
from datong.backends.torch.executable import TorchExecutable
from datong.backends.torch.target import cpu_target
from datong.conformance.build import PartBuilder
from datong.errors import DeviceError, DtypeError, ShapeError, Unsupported
from datong.spec.backend import Backend, DeviceInfo
from datong.spec.program import ROWS, TOKENS, CacheSpec, Part, Step

HEADS = {"num_heads": 2, "num_kv_heads": 1, "scale": 0.5, "window": 0, "softcap": 0.0}


@pytest.fixture
def builder() -> Iterator[PartBuilder]:
    with PartBuilder(seed=5) as b:
        yield b


def middle(b: PartBuilder) -> Part:
    """A layer's worth, from activations: what a part between two others is."""
    x, rows = b.input("x", (TOKENS, 32)), b.input("rows", (ROWS,), "i64")
    q = b.node("linear", [x, b.weight("q", "f32", (16, 32), 0.2)], [("q1", (TOKENS, 16))])
    k = b.node("linear", [x, b.weight("k", "f32", (8, 32), 0.2)], [("k1", (TOKENS, 8))])
    v = b.node("linear", [x, b.weight("v", "f32", (8, 32), 0.2)], [("v1", (TOKENS, 8))])
    y = b.node("attention", [q, k, v], [("y", (TOKENS, 16))], {"layer": 0, **HEADS})
    z = b.node("take_rows", [y, rows], [("z", (ROWS, 16))])
    b.caches.append(CacheSpec(0, "full", 1, 8, 8))
    return b.part([y, z])


def step(new: int, past: int = 0, rows: tuple[int, ...] = (0,)) -> Step:
    end = past + new
    blocks = np.arange(-(-end // 16), dtype=np.int32)[None]
    ends = np.array([0, new]), np.array([end])
    return Step(np.zeros(new, np.int64), np.arange(past, end), *ends, blocks, np.array(rows, np.int64))


def activations(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)


def opened(b: PartBuilder, **options: str) -> TorchExecutable:
    return here("torch:cpu").compile(middle(b), b.package, options)


@pytest.mark.parametrize("buckets", ["off", "on"])
def test_a_part_in_the_middle(builder: PartBuilder, buckets: str) -> None:
    part = middle(builder)
    both = [here("torch:cpu").compile(part, builder.package, {"buckets": buckets})]
    both += [ReferenceBackend().compile(part, builder.package, {})]  # type: ignore[list-item]
    caches = [executable.create_cache(4) for executable in both]
    for what in (step(5, rows=(1, 4)), step(1, 5), step(3, 6, rows=())):
        x = activations(len(what.ids))
        got, want = (e.run(what, cache, {"x": x}) for e, cache in zip(both, caches, strict=True))
        assert got.keys() == want.keys() == {"y", "z"}
        for name, array in got.items():
            assert array.dtype == np.float32 and array.shape == want[name].shape
            assert np.allclose(array, want[name], atol=1e-5)


def test_what_a_run_is_given_is_checked(builder: PartBuilder) -> None:
    part = middle(builder)
    executable = here("torch:cpu").compile(part, builder.package, {})
    cache, x = executable.create_cache(2), activations(2)
    for inputs, error, text in [
        ({}, ShapeError, "input `x` is missing"),
        ({"x": x[:1]}, ShapeError, r"input `x` should be \[2, 32\], is \[1, 32\]"),
        ({"x": x.astype(np.float64)}, DtypeError, "should be float32, is float64"),
    ]:
        with pytest.raises(error, match=text):
            executable.run(step(2), cache, inputs)
    with pytest.raises(DeviceError, match="needs a cache, none was given"):
        executable.run(step(2), None, {"x": x})
    with pytest.raises(DeviceError, match="should be its own, is a ReferenceCache"):
        foreign: Any = ReferenceBackend().compile(part, builder.package, {}).create_cache(2)
        executable.run(step(2), foreign, {"x": x})
    with pytest.raises(DeviceError, match="block table"):
        executable.run(step(40), cache, {"x": activations(40)})


def test_pytorchs_errors_become_one_sentence(builder: PartBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = opened(builder)

    def broken(frame: object) -> None:
        raise torch.OutOfMemoryError("out of memory\nsecond line")

    monkeypatch.setattr(executable, "_closures", [broken])
    with pytest.raises(DeviceError, match=r"a step of 2 tokens should run, PyTorch says: out of memory\n") as caught:
        executable.run(step(2), executable.create_cache(1), {"x": activations(2)})
    assert caught.value.hint and "\n" not in caught.value.message


def test_the_guard_is_around_the_devices_part_of_a_step(builder: PartBuilder) -> None:
    events: list[str] = []

    @contextmanager
    def guard() -> Iterator[None]:
        events.append("begin")
        yield
        events.append("end")

    executable = TorchBackend(cpu_target(), guard=guard).compile(middle(builder), builder.package, {})
    executable.run(step(2), executable.create_cache(1), {"x": activations(2)})
    assert events == ["begin", "end"]


def test_memory_placement_and_layout(builder: PartBuilder) -> None:
    executable = opened(builder, cache_dtype="bf16")
    assert executable.memory()["weights_private"] == 4 * 32 * (16 + 8 + 8)
    names = [placed.implementation for placed in executable.placement()]
    assert names == ["torch linear"] * 3 + ["torch scaled_dot_product_attention", "torch index_select"]
    layout = executable.create_cache(3).layout
    assert (layout.block_size, layout.dtype, layout.bytes_per_block) == (16, "bf16", 16 * 16 * 2)


def test_a_copied_block_stands_for_the_original(builder: PartBuilder) -> None:
    executable = opened(builder)
    cache = executable.create_cache(4)
    executable.run(step(16), cache, {"x": activations(16)})
    cache.copy_block(0, 2)
    here_, there = step(1, 16), step(1, 16)
    there.block_tables = np.array([[2, 3]], np.int32)
    x = activations(1)
    want = executable.run(here_, cache, {"x": x})["y"].copy()
    assert np.array_equal(executable.run(there, cache, {"x": x})["y"], want)
    for source, target in ((4, 0), (0, -1)):
        with pytest.raises(DeviceError, match=r"block should lie in 0\.\.3"):
            cache.copy_block(source, target)
    with pytest.raises(DeviceError, match="at least 0 blocks"):
        executable.create_cache(-1)


def test_a_node_that_breaks_its_row_is_refused(builder: PartBuilder) -> None:
    part = middle(builder)
    backend = here("torch:cpu", without={"take_rows"})
    with pytest.raises(Unsupported, match="`take_rows` was taken") as caught:
        backend.compile(part, builder.package, {})
    assert [name for name, _ in caught.value.reasons] == [part.nodes[-1].name]


def test_it_is_a_backend_with_one_device() -> None:
    backend = here("torch:cpu")
    assert isinstance(backend, Backend)
    (info,) = backend.devices()
    assert isinstance(info, DeviceInfo) and info.name == "torch:cpu" and torch.__version__ in info.description


def test_threads(builder: PartBuilder) -> None:
    before = torch.get_num_threads()
    try:
        opened(builder, threads="1")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
