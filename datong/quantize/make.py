"""`quantise`: from a package or a checkpoint to a new package with 8- or 4-bit weights.

resolve -> source.py: each weight and its role -> plan.py: its new format -> the family's builder, over the new
formats -> package/writer.py, which asks for the bytes piece by piece: rounding.py makes them, some rows at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datong.compiler.pipeline import lower
from datong.errors import InvalidRequest, PackageError
from datong.importer import layout
from datong.importer.imported import Imported, PendingTensor
from datong.importer.registry import build_model
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.package.files import Progress
from datong.package.reader import Package, open_package
from datong.package.store import resolve
from datong.package.writer import WEIGHTS as FILE
from datong.package.writer import write_directory
from datong.quantize import gptq, plan, rounding, source, texts
from datong.quantize.calibrate import Inputs
from datong.quantize.plan import Choice
from datong.quantize.source import F32

CHUNK = 1 << 20  # values of one piece of work: 4 MB in f32, a few times that while scales are searched

Rounder = Callable[[F32], tuple[F32, npt.NDArray[np.float16]]]  # rows [n, in] -> codes [n, in], scales [n * in / B, 1]


@dataclass(frozen=True)
class Made:
    """A new package, and what became of the weights."""

    package: Package
    origin: Package
    method: str
    choices: tuple[Choice, ...] = field(repr=False)

    def kept(self) -> dict[str, str]:
        """Matrices that stayed as they were, with the reason."""
        return {c.matrix.name: c.reason for c in self.choices if c.reason}


def quantise(
    path: str | Path,
    target: str | Path,
    weights: str,
    *,
    method: str = "rtn",
    calibration: str | Path | None = None,
    requantise: bool = False,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Made:
    """Write a package with quantised weights into the directory `target`.

    Args:
        path: a package, a checkpoint directory, a GGUF file, or a known name.
        target: as for `import`: a directory that does not exist, or with `force` one that holds a package.
        weights: int8 or int4.
        method: a key of plan.METHODS.
        calibration: of gptq: a text that is like those to come; None: texts that the model writes itself.
        threads: of the CPU backend, which runs the model to calibrate.
        requantise: round weights that are quantised already once more.
        force: replace another package.
        progress: told of bytes.

    Raises InvalidRequest, CheckpointError, PackageError and what the import raises; then nothing is left behind.
    """
    plan.check(weights, method)
    origin, place = resolve(path, progress), Path(target).expanduser()
    if place.is_dir() and any(place.iterdir()) and not force:
        raise PackageError(
            "write", f"`{target}` should be a new directory, it holds files", "--force replaces a package"
        )
    if place.exists() and place.resolve() in (origin.root.resolve(), origin.weights_root.resolve()):
        raise PackageError("write", f"`{target}` is what is to be read, it cannot be replaced by what is made of it")
    drafts = [lower(origin.graph(name), origin.weights_root) for name in origin.graphs()]
    choices = plan.choose(source.matrices(origin, drafts), weights, requantise)
    if method == "gptq":
        rounder = _calibrated(origin, calibration, threads, progress)
    elif calibration is None:
        rounder = nearest
    else:
        raise InvalidRequest(
            "quantize", f"a text to calibrate on was given, method `{method}` uses none", "--method gptq"
        )
    imported = _imported(origin, choices, f"{weights} by {method}", rounder)
    package = open_package(write_directory(imported, place, force=force, progress=progress))
    return Made(package, origin, method, tuple(choices))


def nearest(choice: Choice) -> Rounder:
    """Round to nearest: every weight to the grid of its own block."""
    grid = rounding.GRIDS[choice.format.name]

    def run(rows: F32) -> tuple[F32, npt.NDArray[np.float16]]:
        blocks = rows.reshape(-1, grid.format.block)
        scale = rounding.scales(blocks, grid)
        return rounding.encode(blocks, scale, grid).reshape(rows.shape), scale

    return run


def _calibrated(
    origin: Package, calibration: str | Path | None, threads: int | None, progress: Progress | None
) -> Callable[[Choice], Rounder]:
    """GPTQ where the inputs of a layer are seen; the vocabulary's matrices and experts are rounded to nearest."""
    if calibration is None:
        inputs = Inputs(origin, lambda: texts.written(origin, threads, progress), threads, progress)
    else:
        found = texts.given(origin, texts.decode(Path(calibration).expanduser()))
        inputs = Inputs(origin, lambda: found, threads, progress)

    def rounder(choice: Choice) -> Rounder:
        gram = inputs.gram(choice.matrix.value) if choice.matrix.role == source.LINEAR else None
        if gram is None:
            return nearest(choice)
        upper, grid = gptq.factor(gram), rounding.GRIDS[choice.format.name]
        return lambda rows: gptq.feed_back(rows, gram, upper, grid)

    return rounder


class _Rounded:
    """The pieces of one quantised matrix. The scales are kept from the pass over the codes until they are written."""

    def __init__(self, choice: Choice, rounder: Callable[[Choice], Rounder]) -> None:
        self._choice, self._rounder = choice, rounder
        self._scales: list[bytes] = []

    def codes(self) -> Iterator[bytes]:
        grid = rounding.GRIDS[self._choice.format.name]
        self._scales = []
        for codes, scale in self._run():
            self._scales.append(scale.tobytes())
            yield rounding.pack(codes, grid)

    def scale(self) -> Iterator[bytes]:
        """Again from the weights where another piece was written in between and asked for them first."""
        scales, self._scales = self._scales, []
        yield from scales or (scale.tobytes() for _, scale in self._run())

    def _run(self) -> Iterator[tuple[F32, npt.NDArray[np.float16]]]:
        matrix, run = self._choice.matrix, self._rounder(self._choice)
        step = max(1, CHUNK // matrix.width)
        for start in range(0, matrix.rows, step):
            yield run(matrix.read(start, min(start + step, matrix.rows)))


def _imported(origin: Package, choices: Sequence[Choice], how: str, rounder: Callable[[Choice], Rounder]) -> Imported:
    """As an importer hands it over: the same model over weights that will lie in one new file."""
    pending = layout.file_order([tensor for choice in choices for tensor in _pending(choice, rounder)])
    weights = _weight_map(choices, pending)
    manifest, config = origin.manifest, origin.config()
    built = build_model(config, weights)
    small = [f.path for f in manifest.files if f.kind not in ("graph", "weights", "index")]
    return Imported(
        model=built.model,
        family=built.family,
        name=manifest.model.name,
        source=f"{manifest.model.source}, {how}",
        licence=manifest.model.licence,
        config=config,
        weights=weights,
        caches=built.caches,
        vocab_size=built.vocab_size,
        context_length=built.context_length,
        ignored_keys={**manifest.ignored.config_keys, **built.ignored_keys},
        generated={path: origin.read(path) for path in small},
        heads=built.heads,
        tensors=tuple(pending),
    )


def _pending(choice: Choice, rounder: Callable[[Choice], Rounder]) -> Iterator[PendingTensor]:
    """Each piece of the weight in its new format."""
    matrix, form, rounded = choice.matrix, choice.format, _Rounded(choice, rounder)
    for role in form.pieces:
        shape, dtype = _shape(choice, role), form.piece_dtype(role)
        read: Callable[[], Iterator[bytes]]
        read = (rounded.codes if role == "codes" else rounded.scale) if choice.changed else _copy(matrix.pieces[role])
        stored = (*shape[:-1], shape[-1] * dtype.bits // 8) if dtype.bits < 8 else shape
        yield PendingTensor(_piece_name(matrix.name, role), dtype, stored, dtype.nbytes(int(np.prod(shape))), read)


def _copy(piece: npt.NDArray[Any]) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        flat = piece.reshape(-1).view(np.uint8)
        return (flat[start : start + CHUNK].tobytes() for start in range(0, len(flat), CHUNK))

    return read


def _piece_name(weight: str, role: str) -> str:
    return weight if role == "codes" else f"{weight}.{role}"


def _shape(choice: Choice, role: str) -> tuple[int, ...]:
    """Of one piece, in values."""
    shape = choice.matrix.shape
    return choice.format.piece_shape(role, *shape) if choice.format.block else shape


def _weight_map(choices: Sequence[Choice], pending: Sequence[PendingTensor]) -> WeightMap:
    """Under the names that the builder knows, at the offsets that they will have."""
    places, tensors = layout.offsets(pending), {tensor.name: tensor for tensor in pending}
    weights: dict[str, Weight] = {}
    for choice in choices:
        pieces: dict[str, StoredTensor] = {}
        for role in choice.format.pieces:
            tensor = tensors[_piece_name(choice.matrix.name, role)]
            shape = _shape(choice, role)
            pieces[role] = StoredTensor(tensor.name, tensor.dtype, shape, FILE, places[tensor.name], tensor.length)
        weights[choice.matrix.name] = Weight(choice.matrix.name, choice.format, choice.matrix.shape, pieces)
    return WeightMap(weights)
