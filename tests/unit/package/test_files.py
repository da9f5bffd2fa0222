"""All or nothing: whatever fails, nothing half-written stays."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from datong.errors import PackageError
from datong.package import files


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_several_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    files.replace_files(tmp_path, {"a": b"new", "b": b""})
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_second_rename_fails_and_the_first_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise OSError(errno.EIO, "disk on fire")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PackageError, match=r"could not be written: disk on fire"):
        files.replace_files(tmp_path, {"a": b"new", "c": b"new", "b": b"new"})
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def limited(code: str, limit: int) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files may have `limit` bytes: the kernel refuses the write, as a full disk does."""
    head = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    script = head + textwrap.dedent(code)
    root = Path(files.__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60, check=False
    )


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    code = f"""
        from pathlib import Path
        from datong.package.files import replace_files
        from datong.errors import PackageError
        try:
            replace_files(Path({str(tmp_path)!r}), {{"a": b"short", "b": bytes(10_000)}})
        except PackageError as e:
            print(e)
    """
    result = limited(code, 1000)
    assert "there is no space left for it" in result.stdout, result.stderr
    assert "hint: free some space" in result.stdout
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"
    with files.new_directory(target) as partial:
        (partial / "x").write_text("1")
        assert not target.exists()
    assert names(target) == ["x"]
    assert names(target.parent) == ["new"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("bug"), KeyboardInterrupt()])
def test_a_failed_directory_vanishes(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "new"
    target.mkdir()
    (target / "old").write_text("1")
    wanted = PackageError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted), files.new_directory(target) as partial:
        (partial / "x").write_text("1")
        raise error
    assert names(tmp_path) == ["new"] and names(target) == ["old"]


def test_the_swap_fails_and_the_old_directory_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new"
    target.mkdir()
    (target / "old").write_text("1")
    rename = os.rename

    def failing(source: Path, to: Path) -> None:
        if ".partial-" in str(source):
            raise OSError(errno.EIO, "disk on fire")
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(PackageError), files.new_directory(target) as partial:
        (partial / "x").write_text("1")
    assert names(tmp_path) == ["new"] and names(target) == ["old"]


def test_the_ruin_of_a_killed_import_is_removed_and_a_running_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "new.partial-1").mkdir()
    (tmp_path / "new.old-1").mkdir()
    (tmp_path / "new").mkdir()
    running = tmp_path / "new.partial-2"
    running.mkdir()
    held = os.open(running, os.O_RDONLY)
    files.fcntl.flock(held, files.fcntl.LOCK_EX)
    try:
        with files.new_directory(tmp_path / "new"):
            pass
    finally:
        os.close(held)
    assert names(tmp_path) == ["new", "new.partial-2"]


def test_a_lock_makes_the_second_wait(tmp_path: Path) -> None:
    events: list[str] = []

    def second() -> None:
        with files.locked(tmp_path / "deep" / "lock"):
            events.append("second")

    thread = threading.Thread(target=second)
    with files.locked(tmp_path / "deep" / "lock"):
        thread.start()
        thread.join(0.2)
        events.append("first")
    thread.join(10)
    assert events == ["first", "second"]


def test_temp_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    gone, alive = 2**22 + 1, os.getppid()  # beyond the kernel's largest pid
    for pid in (gone, alive):
        (tmp_path / f".a.partial-{pid}").write_bytes(b"half")
    (tmp_path / ".a-9").write_bytes(b"not ours")
    files.replace_files(tmp_path, {"a": b"new"})
    assert names(tmp_path) == [".a-9", f".a.partial-{alive}", "a"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bounded(tmp_path / "a", 5, "t") == b"12345"
    with pytest.raises(PackageError, match=r"`a` should have at most 4 bytes, it has more"):
        files.read_bounded(tmp_path / "a", 4, "t")
    with pytest.raises(PackageError, match=r"could not be read: No such file"):
        files.read_bounded(tmp_path / "b", 4, "t")


def test_hash_and_its_progress(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    seen: list[tuple[str, int, int]] = []
    digest = files.sha256_file(tmp_path / "a", lambda *call: seen.append(call))
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert seen == [("hashing a", 3, 3)]
    with pytest.raises(PackageError, match=r"could not be read"):
        files.sha256_file(tmp_path / "none")
