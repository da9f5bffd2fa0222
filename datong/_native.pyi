"""Types of the native module. native/python/module.cpp, native/python/part.h."""

from collections.abc import Sequence

import numpy as np

class PluginMissingError(Exception): ...
class PluginMismatchError(Exception): ...

class CallError(Exception):
    args: tuple[int, str]

class Plugin:
    def __init__(self, path: str) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> tuple[int, int]: ...
    def devices(self) -> list[tuple[str, str, int, dict[str, str]]]: ...
    def fusions(self) -> list[str]: ...
    def supports(self, node: tuple[object, ...], values: Sequence[tuple[object, ...]]) -> tuple[bool, str]: ...
    def open_device(self, index: int, options: Sequence[tuple[str, str]]) -> Device: ...

class Device:
    def compile(
        self,
        values: Sequence[tuple[object, ...]],
        nodes: Sequence[tuple[object, ...]],
        inputs: Sequence[int],
        outputs: Sequence[int],
        caches: Sequence[tuple[int, int, int, int, int, int]],
        arena_tokens: int,
        arena_rows: int,
        options: Sequence[tuple[str, str]],
    ) -> Program: ...

class Program:
    def node_implementation(self, node: int) -> str: ...
    def memory(self) -> tuple[int, int, int]: ...
    def cache_layout(self) -> tuple[int, int, int, int, int]: ...
    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> Cache: ...
    def run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        query_starts: np.ndarray,
        context_lens: np.ndarray,
        block_tables: np.ndarray,
        rows: np.ndarray,
        cache: Cache | None,
        inputs: Sequence[np.ndarray],
        window_tables: np.ndarray | None = None,
        state_slots: np.ndarray | None = None,
    ) -> list[np.ndarray]: ...

class Cache:
    def copy_block(self, source: int, target: int) -> None: ...
    def copy_state(self, source: int, target: int) -> None: ...
