"""Writing so that nothing half-written stays: temp name first, rename last, and every failure cleans up.

A temp name is `<name>.partial-<pid>`. A directory being built is locked (flock on the directory itself, which leaves no
file behind), so that a later process can tell a running import from the ruin of one that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO

from datong.errors import PackageError

Progress = Callable[[str, int, int], None]  # as in importer/imported.py, which is too heavy to import here

CHUNK = 4 << 20  # bytes; large enough that the calls per gigabyte do not count, small enough for a smooth bar
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _shutil() -> ModuleType:
    """Only writing needs it: it brings bz2 and lzma, 1.5 MB and 3 ms that a run of a package should not pay."""
    import shutil

    return shutil


def _silent(what: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


def watch(progress: Progress | None) -> Progress:
    """`progress`, or one that does nothing."""
    return progress or _silent


def write_failed(path: Path, error: OSError) -> PackageError:
    """What to tell the user when writing `path` failed; nothing half-written is left by then."""
    if error.errno in FULL:
        return PackageError(
            "write",
            f"`{path}` could not be written, there is no space left for it ({os.strerror(error.errno or 0)})",
            "free some space or write elsewhere; nothing half-written was left behind",
        )
    reason = error.strerror or type(error).__name__
    hint = "name another destination: datong import SOURCE TARGET" if error.errno in CLOSED else None
    return PackageError("write", f"`{path}` could not be written: {reason}", hint)


def read_bounded(path: Path, limit: int, where: str) -> bytes:
    """The bytes of a small file. Raises PackageError when it is larger than `limit` or cannot be read."""
    try:
        with open(path, "rb") as f:
            data = f.read(limit + 1)
    except OSError as e:
        raise PackageError(where, f"`{path.name}` could not be read: {e.strerror or e}") from None
    if len(data) > limit:
        raise PackageError(where, f"`{path.name}` should have at most {limit} bytes, it has more")
    return data


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Content hash, streamed. Raises PackageError when the file cannot be read."""
    import hashlib  # late: importer/digest.py says why

    tell, done, digest = watch(progress), 0, hashlib.sha256()
    total = path.stat().st_size if path.is_file() else 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        done += len(chunk)
        tell(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def write_stream(path: Path, chunks: Iterator[bytes], what: str, total: int, progress: Progress | None) -> str:
    """Write `chunks` into a new file, on disk when this returns; gives the SHA-256. OSError passes through."""
    import hashlib  # late: importer/digest.py says why

    tell, done, digest = watch(progress), 0, hashlib.sha256()
    with open(path, "xb") as f:
        for chunk in chunks:
            f.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            tell(what, done, total)
        _flush(f)
    return digest.hexdigest()


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces. Raises PackageError when it cannot be read."""
    try:
        with open(path, "rb") as f:
            while chunk := f.read(CHUNK):
                yield chunk
    except OSError as e:
        raise PackageError("read", f"`{path}` could not be read: {e.strerror or e}") from None


def _flush(f: IO[bytes]) -> None:
    f.flush()
    os.fsync(f.fileno())


def replace_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Put several small files into `directory`, all or none.

    All bytes are on disk under temp names before the first rename. When a rename fails, the files already replaced get
    their old content back. Raises PackageError; then the directory is as it was.
    """
    suffix = f".partial-{os.getpid()}"
    _sweep_files(directory, contents)
    temps = {directory / name: directory / f".{name}{suffix}" for name in contents}
    olds = {target: directory / f".{target.name}.old-{os.getpid()}" for target in temps}
    done: list[Path] = []
    try:
        for target, temp in temps.items():
            temp.unlink(missing_ok=True)  # of a killed process that had our pid
            write_stream(temp, iter((contents[target.name],)), target.name, len(contents[target.name]), None)
        for target, temp in temps.items():
            if target.exists():
                _shutil().copyfile(target, olds[target])
            os.replace(temp, target)
            done.append(target)
        _sync_directory(directory)
    except OSError as e:
        for target in done:
            with contextlib.suppress(OSError):
                if olds[target].exists():
                    os.replace(olds[target], target)
                else:
                    target.unlink(missing_ok=True)
        raise write_failed(directory, e) from None
    finally:
        for path in (*temps.values(), *olds.values()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make renames in `directory` last through a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync of a directory
            os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Build a directory beside `target` and rename it there when the body ends well; else remove it.

    A `target` that exists already is swapped out and deleted last. Raises PackageError for OSErrors of the body too.
    """
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial.mkdir()
    except OSError as e:
        raise write_failed(target, e) from None
    lock = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        _swap_in(partial, target)
    except OSError as e:
        raise write_failed(target, e) from None
    finally:
        os.close(lock)
        _shutil().rmtree(partial, ignore_errors=True)


def _swap_in(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what was there is deleted afterwards, or comes back when the rename fails."""
    if not target.exists():
        os.rename(partial, target)
    else:
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except OSError:
            os.rename(old, target)
            raise
        _shutil().rmtree(old, ignore_errors=True)
    _sync_directory(target.parent)


def _sweep(target: Path) -> None:
    """Remove what killed imports of `target` left: directories beside it that nobody holds a lock on."""
    ruins = list(target.parent.glob(f"{_escaped(target.name)}.partial-*"))
    if target.exists():  # else an `.old-` may be the only good copy
        ruins += target.parent.glob(f"{_escaped(target.name)}.old-*")
    for ruin in ruins:
        if not ruin.is_dir() or ruin.is_symlink():
            continue
        with contextlib.suppress(OSError):
            fd = os.open(ruin, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _shutil().rmtree(ruin, ignore_errors=True)
            finally:
                os.close(fd)


def _sweep_files(directory: Path, names: Iterable[str]) -> None:
    """Remove temp files of `names` whose process is gone."""
    for name in names:
        for ruin in directory.glob(f".{_escaped(name)}.*-*"):
            pid = ruin.name.rpartition("-")[2]
            if pid.isdigit() and not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    ruin.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, made if missing; waits. Raises PackageError when it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise write_failed(path, e) from None
    try:
        with contextlib.suppress(OSError):  # no locks on this file system: the final rename still keeps it whole
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
