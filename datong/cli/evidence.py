"""What a run on these devices proves: `measured`, or less. A table or a line that shows a chip says it (design, §7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datong.engine.model import Model

# From the best; a model on two devices is as good as the worse one.
ORDER = ("measured", "simulated", "vendor-claimed", "not run")
MEANING = {
    "simulated": "the processor computes as this chip would; answers are the chip's to compare, times are not its own",
    "vendor-claimed": "as the vendor says; nobody has run it for this project",
    "not run": "nobody has run this device for this project yet",
}


def evidence(model: Model) -> str:
    """Of the worst device that the model uses."""
    from datong.backends.registry import backend_for

    names = {part.backend for part in model.engine.runner.program.parts}
    found = {info.evidence for name in names for info in backend_for(name).devices()}
    return max(found, key=ORDER.index, default="not run")


def label(model: Model) -> str | None:
    """`simulated: ...`, for stderr; None where it was measured."""
    kind = evidence(model)
    return f"{kind}: {MEANING[kind]}" if kind in MEANING else None
