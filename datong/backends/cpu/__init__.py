"""The CPU backend: the plug-in `libdatong_cpu.so`, which is built from native/ and lies in this package."""

from __future__ import annotations

from pathlib import Path

from datong import env
from datong.backends.plugin import PluginBackend
from datong.errors import BackendMissing

# Prefill of 1,024 tokens on Zen 4, tokens/s: 817 in steps of 512, 824 of 256, 812 of 128 (SmolLM2 Q4_1, one thread); at
# 1.1 billion parameters no difference either. Half the step has half the activations: 512 to 128 is 5 MB for SmolLM2.
STEP_TOKENS = 128

LIBRARY = "libdatong_cpu.so"
# of native/plugin_cpu/api.cpp
OPTIONS = ("threads", "isa", "activations", "cache_dtype", "max_tokens", "max_rows", "pack_directory", "weights")


def library_path() -> Path:
    """Where the plug-in lies. `__path__` has two entries in an editable install. Raises BackendMissing."""
    for directory in __path__:
        path = Path(directory) / LIBRARY
        if path.is_file():
            return path
    raise BackendMissing("cpu", f"`{LIBRARY}` should lie in {', '.join(__path__)}", "reinstall datong: pip install .")


def create() -> PluginBackend:
    """The backend named `cpu`. Raises DeviceError when DATONG_ISA names no variant that this processor has."""
    backend = PluginBackend(library_path(), evidence="measured", option_names=OPTIONS)
    backend.step_tokens = STEP_TOKENS
    if name := env.isa():  # else every node would be refused, one by one
        backend.check_options({"isa": name, "threads": "1"})
    return backend
