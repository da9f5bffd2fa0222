"""Which weight gets which format, and why some keep theirs.

matrices of linear layers and experts    the format asked for
embedding and output matrix              int8, also in an int4 package: 4-bit logits cost most where they matter
everything else                          as it is: norms, biases, routers and other gates, vectors
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datong.errors import CheckpointError, InvalidRequest
from datong.quantize import source
from datong.quantize.source import Matrix
from datong.spec.formats import Q4_0, Q8_0, Format

WEIGHTS = {"int8": Q8_0, "int4": Q4_0}
METHODS = {
    "rtn": "round to nearest, each block's scale searched for the least squared error",
    "gptq": "rounding errors handed on to the weights not yet rounded, by the inputs that occur",
}


@dataclass(frozen=True)
class Choice:
    """The format of one weight in the new package."""

    matrix: Matrix
    format: Format
    reason: str = ""  # why a matrix that one would quantise stays as it is

    @property
    def changed(self) -> bool:
        """Is it rounded? Otherwise its bits are copied."""
        return not self.reason and self.format is not self.matrix.format


def check(weights: str, method: str) -> None:
    """Raises InvalidRequest for words that are not known."""
    for word, known, what in ((weights, WEIGHTS, "weights"), (method, METHODS, "method")):
        if word not in known:
            raise InvalidRequest("quantize", f"{what} should be one of {', '.join(known)}, got `{word}`")


def choose(matrices: Iterable[Matrix], weights: str, requantise: bool) -> list[Choice]:
    """The choice for each weight, in order.

    Raises CheckpointError when weights are quantised already and that was not asked for.
    """
    choices = [_choose(m, WEIGHTS[weights]) for m in matrices]
    again = [c.matrix for c in choices if c.changed and c.matrix.format.block]
    if again and not requantise:
        raise CheckpointError(
            "quantize",
            f"weights should be f32, f16 or bf16, {len(again)} are quantised already, first `{again[0].name}` as "
            f"{again[0].format.name}",
            "take the float checkpoint; --requantize rounds once more, and both errors add up",
        )
    if not any(c.changed for c in choices):
        raise CheckpointError("quantize", f"the package should have weights to turn into {weights}, it has none")
    return choices


def _choose(matrix: Matrix, wanted: Format) -> Choice:
    keep = matrix.format
    if matrix.role in (source.OTHER, source.GATE) or len(matrix.shape) < 2:
        return Choice(matrix, keep)
    if matrix.swapped:
        return Choice(matrix, keep, "stored transposed: blocks would lie across the inputs")
    if matrix.width % wanted.block:
        return Choice(matrix, keep, f"rows of {matrix.width} values are no whole blocks of {wanted.block}")
    return Choice(matrix, Q8_0 if matrix.role == source.VOCABULARY else wanted)
