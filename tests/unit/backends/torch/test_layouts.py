import pytest
import torch
from torch import Tensor

from datong.backends.torch.binding import Batch
from datong.backends.torch.layouts import LAYOUTS, Layout

BLOCKS, SIZE, HEADS, DIM = 5, 4, 3, 8


def both(name: str) -> list[Layout]:
    return [LAYOUTS[name].keys, LAYOUTS[name].values]


def batch(slots: list[int], dtype: torch.dtype) -> Batch:
    at = torch.tensor(slots, dtype=dtype)
    empty = torch.zeros(0, dtype=torch.int32)
    places = at, torch.div(at, SIZE, rounding_mode="floor"), at % SIZE
    return Batch(1, len(slots), (len(slots),), (len(slots),), empty, empty, empty, *places)


def filled(layout: Layout, dtype: torch.dtype, index: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """A cache with a row in each slot, written in another order, and the rows [slots, H, D] by slot."""
    rows = torch.randn(BLOCKS * SIZE, HEADS, DIM).to(dtype)
    cache = torch.zeros(layout.shape(BLOCKS, SIZE, HEADS, DIM, dtype.itemsize), dtype=dtype)
    order = torch.randperm(BLOCKS * SIZE)
    layout.write(cache, rows[order], batch(order.tolist(), index))
    return cache, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_is_gathered(name: str, index: torch.dtype, dtype: torch.dtype) -> None:
    for layout in both(name):
        cache, rows = filled(layout, dtype, index)
        tables = torch.tensor([[3, 0], [1, 4]], dtype=torch.int32)
        got = layout.gather(cache, tables)
        want = rows.view(BLOCKS, SIZE, HEADS, DIM)[tables.long()].view(2, 2 * SIZE, HEADS, DIM).transpose(1, 2)
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", LAYOUTS)
def test_spans_are_views(name: str) -> None:
    for layout in both(name):
        cache, rows = filled(layout, torch.float32)
        if not layout.in_place:
            with pytest.raises(NotImplementedError):
                layout.span(cache, 0, 1)
            continue
        span = layout.span(cache, 3, 7)
        assert torch.equal(span, rows[3:10].transpose(0, 1)[None])
        cache.zero_()
        assert not span.any()


def test_shapes_as_the_vendors_document_them() -> None:
    pair = LAYOUTS["metax_paged"]
    assert pair.keys.shape(9, 16, 2, 128, 2) == (9, 2, 16, 16, 8)  # [blocks, heads, dim/x, block, x], x = 16 bytes
    assert pair.values.shape(9, 16, 2, 128, 2) == (9, 2, 128, 16)
    assert pair.keys.shape(9, 16, 2, 12, 2) == (9, 2, 3, 16, 4)  # x divides the head
    assert LAYOUTS["hnd"].keys.shape(9, 16, 2, 128, 2) == (9, 2, 16, 128)
    assert LAYOUTS["nhd"].keys.shape(9, 16, 2, 128, 2) == (9, 16, 2, 128)
