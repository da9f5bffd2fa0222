"""The CPU backend: the plug-in `libdatong_cpu.so`, which is built from native/ and lies in this package."""

from __future__ import annotations

from pathlib import Path

from datong import env
from datong.backends.plugin import PluginBackend
from datong.errors import BackendMissing
from datong.spec.program import TOKENS, Program

# A larger step waits less often and reads the weights less often; a smaller one has activations that stay nearer, and
# are less. Prefill of 512 tokens on Zen 5, two threads: SmolLM2 (12 KB of activations a token) is 1.02 x as fast in
# steps of 256 as of 128, 1.1 billion parameters (41 KB) 0.97 x.
STEP_TOKENS, LONG_STEP_TOKENS, LONG_STEP_BYTES = 128, 256, 4 << 20

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


def step_tokens(program: Program) -> int:
    """Tokens of a step: more where their activations are small."""
    each = max((part.arena_bytes.get(TOKENS, 0) for part in program.parts), default=0)
    return LONG_STEP_TOKENS if each * LONG_STEP_TOKENS <= LONG_STEP_BYTES else STEP_TOKENS


def create() -> PluginBackend:
    """The backend named `cpu`. Raises DeviceError when DATONG_ISA names no variant that this processor has."""
    backend = PluginBackend(library_path(), evidence="measured", option_names=OPTIONS)
    backend.step_tokens = step_tokens
    if name := env.isa():  # else every node would be refused, one by one
        backend.check_options({"isa": name, "threads": "1"})
    return backend
