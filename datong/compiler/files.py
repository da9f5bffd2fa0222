"""Weights point into files of the package: every pointer is checked before a backend maps it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from datong import dtypes
from datong.errors import ContainmentError, IntegrityError, PackageError
from datong.spec.program import Piece

WHERE = "compile"


def check_path(file: str) -> None:
    """Refuse a weight file outside the package. Raises ContainmentError."""
    path = PurePosixPath(file)
    if not file or "\\" in file or "\0" in file or path.is_absolute() or ".." in path.parts:
        raise ContainmentError(WHERE, f"weight file should be a path inside the package, the graph says `{file}`")


def check_pieces(root: Path, pieces: Iterable[Piece]) -> None:
    """Every piece has the length its dtype and shape ask for, and lies inside its file.

    Raises ContainmentError for a path that leaves `root`, PackageError for a missing file, IntegrityError otherwise.
    """
    sizes: dict[str, int] = {}
    for piece in pieces:
        if piece.file not in sizes:
            check_path(piece.file)
            try:
                sizes[piece.file] = (root / piece.file).stat().st_size
            except OSError as error:
                raise PackageError(
                    WHERE, f"weight file `{piece.file}` cannot be read: {error.strerror}", "is the package complete?"
                ) from error
        wanted = dtypes.BY_NAME[piece.dtype].nbytes(math.prod(piece.shape))
        place = f"`{piece.role}` at {piece.offset} of `{piece.file}`"
        if piece.length != wanted:
            raise IntegrityError(
                WHERE, f"{place}: {piece.dtype}{list(piece.shape)} takes {wanted} bytes, the graph says {piece.length}"
            )
        if piece.offset < 0 or piece.offset + piece.length > sizes[piece.file]:
            raise IntegrityError(
                WHERE,
                f"{place}: should end by byte {sizes[piece.file]} of the file, ends at {piece.offset + piece.length}",
                "the file is truncated, or the graph belongs to other weights",
            )
