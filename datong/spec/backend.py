"""The one door to a chip: the Backend protocol, version 1.2. `native/include/datong/backend.h` has the same verbs in C.

A backend written in Python implements `Backend` directly; one written in C is a shared library behind
`backends/plugin.py`, which implements this protocol over the header. Methods are marked required or optional;
an optional one that is missing has the default that its docstring names. Nothing here may be called from two threads at
once for one Executable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from datong.spec.program import Node, Part, Program, Step, Value

API_VERSION = (1, 3)


@dataclass(frozen=True)
class Yes:
    """The backend runs this node; `implementation` says with what (`linear_q4_avx512vnni`)."""

    implementation: str = ""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class No:
    """The backend refuses this node, and why, in words a chip engineer can act on."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class DeviceInfo:
    """One device of this machine. `evidence` is how we know that programs run on it (design.md §7)."""

    name: str  # what the user types: `cpu`, `reference`, `npu:0`
    description: str
    memory_bytes: int
    evidence: str  # measured | simulated | vendor-claimed | not run
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """Where one node ran."""

    node: str
    op: str
    implementation: str
    elsewhere: str = ""  # where, if not on the device that was asked: `strict` refuses it
    unused: tuple[str, ...] = ()  # the vendor's own operators for this that were not taken: "name: why"


@dataclass(frozen=True)
class CacheLayout:
    """The backend's choice for its paged cache."""

    block_size: int  # tokens per block
    dtype: str  # f32 | f16 | bf16
    bytes_per_block: int  # all layers of the part that keep something of every token
    bytes_per_window_block: int = 0  # all layers of kind `window`
    bytes_per_state: int = 0  # all layers, of one sequence


class Cache(Protocol):
    """The caches of a part on the device (spec/program.py, CacheSpec). Freed with the object.

    `blocks` blocks for what is kept per token; `window_blocks` for the caches of kind `window`, 0: they share `blocks`;
    `states` slots for what is kept per sequence.
    """

    layout: CacheLayout
    blocks: int

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers (prefix reuse, copy on write). Required."""

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers (prefix reuse). Required where the part has state caches."""


@dataclass(frozen=True)
class NodeTime:
    """What one node has taken since `Timed.profile(True)`; seconds, `last_begin` on a clock that all nodes share."""

    runs: int
    seconds: float
    last_begin: float
    last_seconds: float


@dataclass(frozen=True)
class Limits:
    """What a device can do at best, per second; a multiply-add is two operations, 0: unknown."""

    bytes: float = 0.0
    int8: float = 0.0
    f32: float = 0.0


@runtime_checkable
class Timed(Protocol):
    """An executable that can time its nodes; optional. Timing may make it slower."""

    def profile(self, on: bool) -> None:
        """Switch timing on, which begins anew, or off."""

    def times(self) -> list[NodeTime]:
        """Of every node of the part, in order."""


class Executable(Protocol):
    """A part, compiled and with its weights on the device."""

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> Cache:
        """Allocate a cache; see Cache. Required. Raises DeviceError when memory is short."""

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the nodes once. Required.

        `inputs` holds part inputs other than `ids`, `positions`, `rows` (those come from the step), on the host.
        Returns every part output by name, host arrays, f32 `[T, …]` or `[R, …]`; valid until the next run.
        """

    def placement(self) -> list[Placed]:
        """Which implementation runs each node. Required."""

    def memory(self) -> dict[str, int]:
        """Bytes by use: `weights_mapped`, `weights_private`, `arena`. Required."""


@runtime_checkable
class Backend(Protocol):
    """A chip's code. One object per process and name.

    A backend that can run whole models only (`Part.graph`) says so by an attribute `whole_models_only = True`.
    """

    name: str
    api_version: tuple[int, int]

    def devices(self) -> list[DeviceInfo]:
        """Devices present now; empty when the backend cannot run here. Required."""

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Can this node run, with these shapes, dtypes, formats and attributes? Required. No device needed."""

    def fusions(self) -> frozenset[str]:
        """Names of the fused operators (spec/ops.py, tier `fused`) that the compiler may form. Required."""

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> Executable:
        """Make a part runnable; map or upload its weights once. Required.

        options: `threads`, `isa`, `cache_dtype`, `max_tokens` (largest T), `max_rows` (largest R); all optional,
        and the backend's own, such as `activations` of cpu. A backend with an attribute `option_names`, a set, is given
        those alone; one without is given all. A function `step_tokens` of a Program gives the most that its steps
        gain from.
        Raises Unsupported for a node that `supports` refuses, DeviceError otherwise.
        """


def option_names(backend: Backend) -> frozenset[str] | None:
    """The options of `compile` that the backend knows: its attribute `option_names`. None: it wants to see them all."""
    names = getattr(backend, "option_names", None)
    return None if names is None else frozenset(names)


def step_tokens(backend: Backend, program: Program) -> int | None:
    """The step from which on a larger one gains nothing, by its function `step_tokens`. None: it does not say."""
    wanted = getattr(backend, "step_tokens", None)
    return None if wanted is None else int(wanted(program))
