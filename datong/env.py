"""Every `DATONG_*` environment variable, declared once: name, type, default, meaning; `doctor` prints them.

Variables are read when asked for, never at import, so that a test or a program may set them late.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from datong.errors import DatongError


@dataclass(frozen=True)
class Var:
    """One variable. `default` is the text that `doctor` shows when it is unset."""

    name: str
    type: str
    default: str
    meaning: str

    def text(self) -> str | None:
        """The value as set, without blanks around it; None when unset or empty."""
        return os.environ.get(self.name, "").strip() or None


API_KEYS = Var("DATONG_API_KEYS", "keys", "none", "`serve` lets in who has one of them: `key,name=key`")
CACHE = Var(
    "DATONG_CACHE", "directory", "$XDG_CACHE_HOME/datong or ~/.cache/datong", "checkpoints, plans, packed weights"
)
ISA = Var("DATONG_ISA", "name", "the best that the processor has", "forces one variant of the CPU kernels, e.g. `ref`")
MACHINE_ROOT = Var("DATONG_MACHINE_ROOT", "directory", "/", "`devices` and `doctor` look at a recorded machine instead")
ORT_LIBRARIES = Var(
    "DATONG_ORT_LIBRARIES", "name=path", "none", "plug-in execution providers for ONNX Runtime, separated like `PATH`"
)
ORT_OPTIONS = Var("DATONG_ORT_OPTIONS", "JSON object", "{}", "options of the execution provider, all of them texts")
PLUGINS = Var("DATONG_PLUGINS", "paths", "none", "C plug-ins to load as backends, separated like `PATH`")
SERVE = Var("DATONG_SERVE_", "text", "none", "and a setting of `serve`, as `…PORT=9000` for `--port 9000`")
SIM_MEMORY = Var("DATONG_SIM_MEMORY", "bytes", "as the descriptor says", "memory of a simulated chip")
SIM_WITHOUT = Var("DATONG_SIM_WITHOUT", "names", "none", "operators that simulated chips lack: `aten::mm,aten::silu`")
THREADS = Var("DATONG_THREADS", "int >= 1", "the cores this process may use", "threads of the CPU backend")
VERIFY = Var("DATONG_VERIFY", "0 or 1", "0", "the graph is verified after each compiler pass")

VARS: tuple[Var, ...] = (
    API_KEYS, CACHE, ISA, MACHINE_ROOT, ORT_LIBRARIES, ORT_OPTIONS, PLUGINS, SERVE, SIM_MEMORY, SIM_WITHOUT, THREADS,
    VERIFY,
)  # fmt: skip


def cache_dir() -> Path:
    """Where Datong keeps what it can make again; not created here."""
    text = CACHE.text()
    if text:
        return Path(text).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says that a relative value is to be ignored.
    base = Path(xdg) if os.path.isabs(xdg) else Path("~/.cache").expanduser()
    return base / "datong"


def isa() -> str | None:
    """The kernel variant that the user forces; None: let the backend choose."""
    return ISA.text()


def ort_libraries() -> tuple[tuple[str, Path], ...]:
    """Name and path of each provider library for ONNX Runtime. Raises DatongError for a pair that is none."""
    found = []
    for pair in filter(str.strip, (ORT_LIBRARIES.text() or "").split(os.pathsep)):
        name, equals, path = pair.strip().partition("=")
        if not (name and equals and path):
            raise DatongError("env", f"`{ORT_LIBRARIES.name}` should hold name=path, one is `{pair.strip()}`")
        found.append((name, Path(path).expanduser().absolute()))
    return tuple(found)


def ort_options() -> dict[str, str]:
    """Options of the execution provider. Raises DatongError for anything but an object of texts."""
    return text_object(ORT_OPTIONS.text() or "{}", ORT_OPTIONS.name)


def text_object(text: str, where: str) -> dict[str, str]:
    """A JSON object whose values are texts. Raises DatongError naming `where` for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DatongError(
            "env", f"`{where}` should be a JSON object of texts, it is `{text}`", 'such as {"device_id": "0"}'
        )
    return found


def machine_root() -> Path | None:
    """A directory that stands for the machine to look at; None: this machine. Raises DatongError if it is none."""
    text = MACHINE_ROOT.text()
    if text is None:
        return None
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise DatongError("env", f"`{MACHINE_ROOT.name}` must be a directory, `{path}` is none")
    return path


def plugins() -> tuple[Path, ...]:
    """Shared libraries that the user wants as backends, in order."""
    text = PLUGINS.text() or ""
    return tuple(Path(part).expanduser().absolute() for part in text.split(os.pathsep) if part.strip())


def sim_memory() -> int | None:
    """Bytes that a simulated chip has; None: as its descriptor says. Raises DatongError for a bad value."""
    text = SIM_MEMORY.text()
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**63:
        raise DatongError("env", f"`{SIM_MEMORY.name}` must be a whole number of bytes from 1, it is `{text}`")
    return int(text)


def sim_without() -> frozenset[str]:
    """PyTorch's operators (`aten::mm`) that simulated chips lack besides those of the descriptor."""
    return frozenset(name.strip() for name in (SIM_WITHOUT.text() or "").split(",") if name.strip())


def threads() -> int | None:
    """How many threads the user asks for; None: let the backend choose. Raises DatongError for a bad value."""
    text = THREADS.text()
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 4096:
        raise DatongError("env", f"`{THREADS.name}` must be a whole number from 1 to 4096, it is `{text}`")
    return int(text)


def verify() -> bool:
    """Is the graph to be verified after each pass? Raises DatongError for a bad value."""
    text = VERIFY.text()
    if text not in (None, "0", "1"):
        raise DatongError("env", f"`{VERIFY.name}` must be 0 or 1, it is `{text}`")
    return text == "1"
