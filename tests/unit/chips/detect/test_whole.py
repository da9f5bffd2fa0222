"""Search and diagnosis together."""

from __future__ import annotations

from datong.chips.detect import survey


def test_the_chip_behind_a_device_name(make) -> None:
    """What a backend needs: the rules of this very card, not those of the stack's first generation."""
    result = survey(make("ascend-310p-duo"))
    chip = result.chip("ascend", 1)
    assert chip is not None and chip.name == "ascend-310p"
    assert result.chip("ascend", 2) is None and result.chip("metax") is None
    assert survey(make("biren-br2xx")).chip("biren-br2xx") is None, "nothing tells its generation"
