from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from datong.backends.torch import packed, weights
from datong.backends.torch.target import Target, cpu_target
from datong.backends.torch.weights import WeightStore
from datong.conformance.build import PartBuilder
from datong.errors import DeviceError
from datong.spec.program import TOKENS, Part

CPU = torch.device("cpu")


@pytest.fixture
def builder() -> Iterator[PartBuilder]:
    with PartBuilder(seed=3) as b:
        yield b


def head(b: PartBuilder, fmt: str = "q4_0") -> Part:
    """A lookup and a product with one matrix, and a product with two others."""
    ids, x = b.input("ids", (TOKENS,), "i64"), b.input("x", (TOKENS, 64))
    tied, one, two = (b.weight(name, fmt, (rows, 64)) for name, rows in (("tied", 50), ("one", 7), ("two", 9)))
    y = b.node("embedding", [ids, tied], [("e", (TOKENS, 64))])
    z = b.node("linear", [x, tied], [("l", (TOKENS, 50))])
    b.stored("bias", b.rng.standard_normal(9).astype(np.float32))
    outs = [("p", (TOKENS, 7)), ("q", (TOKENS, 9))]
    w = b.node("linear_multi", [x, one, two, "", "bias"], outs, {"count": 2})
    return b.part([y, z, w])


def store(b: PartBuilder, part: Part, dtype: str = "f32", target: Target | None = None) -> WeightStore:
    return WeightStore(b.package, part, target or cpu_target(), CPU, dtype)


def test_a_matrix_is_what_its_blocks_stand_for(builder: PartBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK", 200)  # three rows at a time
    kept = store(builder, head(builder))
    for name in ("tied", "one"):
        assert np.array_equal(kept.get(name).numpy(), builder.arrays[name])
    assert np.array_equal(kept.stacked(("one", "two")).numpy(), np.vstack([builder.arrays[n] for n in ("one", "two")]))


def test_tied_embeddings_are_uploaded_once(builder: PartBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, uploads = store(builder, head(builder)), []
    upload = kept._upload
    monkeypatch.setattr(kept, "_upload", lambda *a: uploads.append(a) or upload(*a))
    table, product = kept.get("tied"), kept.product(("tied",))
    assert len(uploads) == 1 and kept.nbytes == 4 * 50 * 64
    x = torch.randn(3, 64)
    assert torch.allclose(product(x), x @ table.t(), rtol=1e-5, atol=1e-4)
    assert table.stride() == (1, 50)  # [in, out] in memory, as the product of one row likes it


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_products_of_stacked_matrices(
    builder: PartBuilder, monkeypatch: pytest.MonkeyPatch, dtype: str, packs: bool
) -> None:
    if not packs:
        monkeypatch.setattr(packed, "packable", lambda dtype: False)
    product = store(builder, head(builder), dtype).product(("one", "two"), ("", "bias"))
    for rows in (0, 1, 5, 40):
        x = torch.randn(rows, 64)
        want = x.numpy() @ np.vstack([builder.arrays["one"], builder.arrays["two"]]).T
        want[:, 7:] += builder.arrays["bias"]
        got = product(x.to(weights.DTYPES[dtype]))
        assert got.shape == (rows, 16) and got.dtype is weights.DTYPES[dtype]
        scale = np.abs(want).max(initial=1.0)
        assert np.abs(got.float().numpy() - want).max(initial=0.0) < scale * (1e-5 if dtype == "f32" else 2e-2)


def test_a_build_without_the_operators_has_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed.packable(torch.float32)  # of this build, which runs the tests above

    class Without:
        """torch.ops.mkldnn of another build."""

    monkeypatch.setattr(torch.ops, "mkldnn", Without(), raising=False)
    assert not packed.packable(torch.float32)


def test_memory_that_is_short_names_the_weight(builder: PartBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory: 12800 bytes\nmore lines")

    kept = store(builder, head(builder))
    monkeypatch.setattr(torch, "empty", short)
    with pytest.raises(DeviceError, match=r"weight `tied` should fit .*: out of memory: 12800 bytes\n") as e:
        kept.get("tied")
    assert "compute_dtype" in str(e.value.hint)


def test_other_devices_get_the_plain_form(builder: PartBuilder) -> None:
    target = replace(cpu_target(), device="meta", in_out=frozenset())
    kept = WeightStore(builder.package, head(builder), target, CPU, "f32")
    assert kept.addmm and kept.get("tied").is_contiguous()
