"""Where each weight of a checkpoint lies, under its Hugging Face name: what model builders see of a checkpoint.

Both sources end here: a Hugging Face directory (tensors stay where they are) and a GGUF file (tensors *will* lie in
the package's own `model.safetensors`; their place is known before their bytes are written).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from datong.dtypes import DType
from datong.errors import CheckpointError
from datong.spec.formats import Format

OTHERS = "the config and the weights belong to different checkpoints: download both again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file of the package. For 4-bit dtypes `shape` counts values, `length` bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str  # relative to the package directory
    offset: int  # from the start of the file
    length: int


@dataclass(frozen=True)
class Weight:
    """A matrix or vector with its format. Plain weights of any rank have the one piece `codes`."""

    name: str
    format: Format
    shape: tuple[int, ...]  # logical
    pieces: dict[str, StoredTensor]


@dataclass
class WeightMap:
    """Weights by name; remembers which were taken, so that nothing is left over unseen."""

    weights: dict[str, Weight]
    taken: set[str] = field(default_factory=set)
    ignored: dict[str, str] = field(default_factory=dict)  # name -> reason
    unusable: dict[str, str] = field(default_factory=dict)  # name -> dtype that we cannot compute with
    others: dict[str, StoredTensor] = field(default_factory=dict)  # of `unusable`, those whose type dtypes.py has

    def has(self, name: str) -> bool:
        """Is there such a weight? Does not count as use."""
        return name in self.weights or name in self.unusable

    def is_packed(self, name: str) -> bool:
        """Is there such a weight, of a format with blocks or tiles? Does not count as use."""
        weight = self.weights.get(name)
        return weight is not None and weight.format.block > 0

    def stored(self, name: str) -> StoredTensor | None:
        """The tensor of the checkpoint, of whatever type dtypes.py has; None: there is none, or it is no longer one."""
        weight = self.weights.get(name)
        if weight is not None:
            return None if weight.format.block else weight.pieces["codes"]
        return self.others.get(name)

    def put(self, weight: Weight, *used: str) -> None:
        """A weight made of several tensors; these, and the names in `used`, stand no longer for themselves."""
        for name in (*(piece.name for piece in weight.pieces.values()), *used):
            for table in (self.weights, self.unusable, self.others):
                table.pop(name, None)
        self.weights[weight.name] = weight

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The weight `name`, whose logical shape must be `shape`. Raises CheckpointError when missing or different."""
        if name in self.unusable:
            raise CheckpointError(
                "import",
                f"tensor `{name}` should be F32, F16 or BF16, the checkpoint has {self.unusable[name]}",
                "this element type is not supported yet; use a BF16 edition of the checkpoint",
            )
        weight = self.weights.get(name)
        if weight is None:
            raise CheckpointError(
                "import",
                f"tensor `{name}` {list(shape)} is not in the checkpoint",
                "the download is incomplete, or the config belongs to another model: download both again",
            )
        if weight.shape != shape:
            raise CheckpointError(
                "import",
                f"tensor `{name}` should have shape {list(shape)}, the checkpoint has {list(weight.shape)}",
                OTHERS,
            )
        self.taken.add(name)
        return weight

    def ignore(self, match: Callable[[str], bool], reason: str) -> None:
        """Mark tensors that the model does not need, with the reason that `inspect` shows."""
        names = (*self.weights, *self.unusable)
        self.ignored.update({name: reason for name in names if match(name) and name not in self.taken})

    def left_over(self) -> Iterator[str]:
        """Names neither taken nor ignored; an import with any is refused."""
        return (n for n in (*self.weights, *self.unusable) if n not in self.taken and n not in self.ignored)
