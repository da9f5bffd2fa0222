"""The outside world as detection sees it: files, environment, installed distributions, vendors' tools.

Everything is bounded: bytes per file, entries per directory, seconds and bytes per tool. Nothing is imported, no shell
is started, and a failure is remembered in `trouble` instead of raised.

A *recorded machine* is a directory that stands for `/`. Beside `sys/`, `dev/`, `proc/`, `opt/`, `usr/` it may hold

    environ.json     {"ASCEND_RT_VISIBLE_DEVICES": "0"}            the environment; the real one is never used
    python.json      {"torch": "2.10.0", "torch-npu": "2.10.0"}    installed distributions
    access.json      {"/dev/davinci0": "HwHiAiUser"}               nodes the user may not open, and their group
    smi/<tool>.txt   what the tool prints
    smi/<tool>.status   `exit 1` or `hangs`, if it does not end well
"""

from __future__ import annotations

import grp
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from datong.chips.detect.tool import Output, run_tool
from datong.errors import DatongError

FILE_BYTES = 4096  # one page: what sysfs gives at most
ENTRIES = 4096  # PCI functions of the largest machines: hundreds
NODES = 256  # devices of one stack in one machine: at most 64 are sold

Run = Callable[[Sequence[str]], Output]


class Machine:
    """This machine, or a recorded one. `run` starts a tool; tests may give another."""

    def __init__(
        self, root: Path = Path("/"), environ: Mapping[str, str] | None = None, run: Run | None = None
    ) -> None:
        self.root = root
        self.recorded = root != Path("/")
        self.trouble: list[str] = []  # what could not be read, in order, once each
        self._run = run or (self._replay if self.recorded else run_tool)
        if environ is None:
            environ = self._table("environ.json") if self.recorded else os.environ
        self.environ = environ
        self._outputs: dict[tuple[str, ...], Output] = {}
        self._python = {_normal(k): v for k, v in self._table("python.json").items()} if self.recorded else {}
        self._denied = self._table("access.json") if self.recorded else {}

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def at(self, path: str) -> Path:
        """Where an absolute path of the machine lies for us."""
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        """Is there such a file, node or directory? A link that leads nowhere is not."""
        try:
            return self.at(path).exists()
        except OSError:
            return False

    def read(self, path: str, limit: int = FILE_BYTES) -> str | None:
        """The first `limit` bytes of a regular file without blanks around them; None if it is not there or unreadable.

        Opened without blocking, so that a pipe in its place cannot hang us.
        """
        try:
            handle = os.open(self.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.troubled(f"{path} could not be read: {error.strerror}")
            return None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                self.troubled(f"{path} could not be read: it is not a file")
                return None
            return os.read(handle, limit).decode("utf-8", "replace").strip()
        except OSError as error:
            self.troubled(f"{path} could not be read: {error.strerror}")
            return None
        finally:
            os.close(handle)

    def names(self, directory: str, limit: int = ENTRIES) -> list[str]:
        """Entries of a directory, sorted; empty if it is not there."""
        try:
            with os.scandir(self.at(directory)) as entries:
                found = [entry.name for entry in islice(entries, limit + 1)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.troubled(f"{directory} could not be listed: {error.strerror}")
            return []
        if len(found) > limit:
            self.troubled(f"{directory} has more than {limit} entries; the rest was not looked at")
        return sorted(found[:limit])

    def glob(self, pattern: str, limit: int = NODES) -> list[str]:
        """Paths of the machine that match, unsorted, `limit` at most."""
        try:
            found = list(islice(self.root.glob(pattern.lstrip("/")), limit + 1))
        except (OSError, ValueError) as error:
            self.troubled(f"{pattern} could not be listed: {error}")
            return []
        if len(found) > limit:
            self.troubled(f"{pattern} matches more than {limit} paths; the rest was not looked at")
        return [f"/{path.relative_to(self.root).as_posix()}" for path in found[:limit]]

    def denied(self, path: str) -> str | None:
        """None if this user may read and write the node, else the group that may (`video`), or "" if unknown."""
        if self.recorded:
            return self._denied.get(path)
        if os.access(self.at(path), os.R_OK | os.W_OK):
            return None
        try:
            return grp.getgrgid(self.at(path).stat().st_gid).gr_name
        except (OSError, KeyError):
            return ""

    @property
    def container(self) -> bool:
        """Does this look like the inside of a container?"""
        if any(self.exists(path) for path in ("/.dockerenv", "/run/.containerenv")):
            return True
        if "KUBERNETES_SERVICE_HOST" in self.environ or self.environ.get("container"):
            return True
        groups = self.read("/proc/1/cgroup") or ""
        return any(word in groups for word in ("docker", "kubepods", "containerd", "lxc"))

    # ── software ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def distribution(self, name: str) -> str | None:
        """Version of an installed Python distribution, from its metadata; nothing is imported."""
        if self.recorded:
            return self._python.get(_normal(name))
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    def which(self, tool: str, directories: Sequence[str] = ()) -> str | None:
        """Path of a tool on PATH, else in one of `directories`."""
        if self.recorded:
            return tool if self.exists(f"/smi/{tool}.txt") else None
        return shutil.which(tool) or _inside(tool, directories)

    def run(self, tool: str, arguments: Sequence[str], directories: Sequence[str] = ()) -> Output:
        """Run a tool from PATH, else from one of `directories`; at most once per command line."""
        key = (tool, *arguments)
        if key not in self._outputs:
            path = self.which(tool, directories)
            self._outputs[key] = self._run([path, *arguments]) if path else Output("absent")
        return self._outputs[key]

    # ── details ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def troubled(self, text: str) -> None:
        """Remember what went wrong; once each."""
        if text not in self.trouble:
            self.trouble.append(text)

    def _table(self, name: str) -> dict[str, str]:
        """A JSON object of strings in a recorded machine; empty if it is not there. Raises DatongError if damaged."""
        path = self.root / name
        try:
            data = json.loads(path.read_bytes()) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise DatongError("machine", f"{path} should be a JSON object, got: {error}") from None
        if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
            raise DatongError("machine", f"{path} should be a JSON object whose values are strings")
        return data

    def _replay(self, command: Sequence[str]) -> Output:
        """Stands for running a tool in a recorded machine."""
        text = self.root / "smi" / f"{Path(command[0]).name}.txt"
        if not text.is_file():
            return Output("absent")
        status = text.with_suffix(".status")
        ended = status.read_text(encoding="utf-8").strip() if status.is_file() else ""
        printed = text.read_bytes().decode("utf-8", "replace")
        if ended == "hangs":
            return Output("hung", "", "it did not answer in time")
        return Output("failed", printed, ended) if ended else Output("ok", printed)


def _normal(name: str) -> str:
    """Distribution names are compared as PEP 503 says, for the characters that occur."""
    return name.lower().replace("_", "-").replace(".", "-")


def _inside(tool: str, directories: Sequence[str]) -> str | None:
    return next((p for d in directories if (p := shutil.which(tool, path=d))), None)
