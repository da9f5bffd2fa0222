"""`import_checkpoint`: from a Hugging Face directory or a GGUF file to a package."""

from __future__ import annotations

from pathlib import Path

from datong.errors import PackageError
from datong.package.files import Progress
from datong.package.reader import Package, open_package

GGUF_MAGIC = b"GGUF"


def import_checkpoint(
    src: str | Path,
    dst: str | Path | None = None,
    *,
    hash: bool = False,  # the word of the command line
    force: bool = False,
    progress: Progress | None = None,
) -> Package:
    """Make a package of a checkpoint, and open it.

    Args:
        src:      directory of a Hugging Face checkpoint, or a GGUF file.
        dst:      where to. None: a directory is imported in place (two files are written into it, no weight is
                  read), a GGUF file into `<name>-datong` beside it.
        hash:     also record the content hashes of the weights; that reads them.
        force:    replace another package that is there.
        progress: told of bytes.

    Raises ImportFailed or PackageError; then nothing half-written is left.
    """
    source = Path(src).expanduser()
    target = None if dst is None else Path(dst).expanduser()
    if source.is_dir():
        return _import_directory(source, target, hash, force, progress)
    if not source.exists():
        raise PackageError("import", f"`{src}` should be a checkpoint directory or a GGUF file, it does not exist")
    if not is_gguf(source):
        raise PackageError(
            "import",
            f"`{src}` should be a checkpoint directory or a GGUF file, it is neither",
            "give the directory that holds config.json and model.safetensors",
        )
    from datong.importer.gguf.importer import import_gguf
    from datong.package.writer import write_directory

    imported = import_gguf(source, progress)
    target = target or source.with_name(f"{source.stem}-datong")
    return open_package(write_directory(imported, target, force=force, progress=progress))


def _import_directory(
    source: Path, target: Path | None, hash_weights: bool, force: bool, progress: Progress | None
) -> Package:
    from datong.importer.hf import import_directory
    from datong.package.writer import write_directory, write_in_place

    imported = import_directory(source, progress)
    if target is None or target.resolve() == source.resolve():
        return open_package(write_in_place(imported, source, hash_weights=hash_weights, force=force, progress=progress))
    return open_package(write_directory(imported, target, source=source, force=force, progress=progress))


def is_gguf(path: Path) -> bool:
    """Does the file begin as a GGUF file, or is it called one?"""
    try:
        with open(path, "rb") as f:
            return f.read(4) == GGUF_MAGIC or path.suffix == ".gguf"
    except OSError as e:
        raise PackageError("import", f"`{path}` could not be read: {e.strerror or e}") from None
