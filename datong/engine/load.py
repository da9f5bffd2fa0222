"""`load`: from a path or a name to a model that answers. Also `compile`, for those who only want the program.

The warm path, an imported and compiled package, imports neither onnx nor onnx_ir nor torch: tests/e2e/test_engine.py.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from datong import env
from datong.compiler.cache import cached_program
from datong.compiler.placement import fallback_sentence
from datong.engine.devices import Devices, Split, check_options, open_devices
from datong.engine.engine import Engine
from datong.engine.heap import give_back
from datong.engine.model import Model
from datong.engine.runner import Runner
from datong.errors import FallbackWarning, InvalidRequest, Unsupported
from datong.package.files import Progress
from datong.package.reader import Package
from datong.package.store import resolve
from datong.spec.backend import Placed
from datong.spec.backend import step_tokens as step_tokens_of
from datong.spec.program import STATE_KINDS, Program

if TYPE_CHECKING:
    from datong.engine.speculation import Guesser

DEFAULT_CONTEXT = 4096  # tokens; half a gigabyte of cache for an 8 B model, touched only as far as it is used
STEP_TOKENS = 512  # where no backend says; a prompt is computed in pieces of this, larger ones make others wait
STEP_ROWS = 64  # rows of logits in one step: 39 MB for a vocabulary of 150,000


def load(
    path_or_name: str | Path | Package,
    device: str = "cpu",
    *,
    split: Split = None,
    threads: int | None = None,
    isa: str | None = None,
    cache_dtype: str | None = None,
    activations: str | None = None,
    context: int | None = None,
    cache_tokens: int | None = None,
    step_tokens: int | None = None,
    step_rows: int = STEP_ROWS,
    speculate: str | None = None,
    strict: bool = False,
    hidden: bool = False,
    progress: Progress | None = None,
    **options: object,
) -> Model:
    """Open a model for use.

    Args:
        path_or_name: a package, a checkpoint directory, a GGUF file, or a known name; checkpoints are imported once.
        device: a name that `datong.devices()` shows; or several, `"A,B"`: B runs what A refuses.
        split: first layers of the second device, the third, …: with 15, layers 0 to 14 run on A and the others on B.
        threads: of the CPU backend; None: DATONG_THREADS, else the cores of this process.
        isa: forces one variant of the CPU kernels; None: DATONG_ISA, else the best one here.
        cache_dtype: f32, f16 or bf16; None: f32 if all weights are; bf16 if activations are rounded to
            8 bits and the processor multiplies bf16; else f16.
        activations: what the CPU multiplies block weights with: i8 (the default, fast) or f32 (exact, slow). bf16: for
            bf16 weights, on processors with AVX512_BF16: prompts are 1.7 x as fast, and logits move by 0.7 % of
            their spread (standard deviation, SmolLM2); plain weights otherwise meet f32.
        context: tokens of one sequence, at most the model's; None: the model's, at most 4096.
        cache_tokens: tokens of all sequences together; None: `context`.
        step_tokens: tokens of one step; longer prompts run in pieces. None: what the first device gains from, or 512.
        step_rows: rows of logits of one step.
        speculate: guess tokens ahead and confirm several in one step; the tokens stay the same. heads: by the model's
            own heads for speculation; lookup: by what followed the same words before.
        strict: refuse if any operator would run elsewhere than on `device`; with `split`, than on its layer's device.
        hidden: the last hidden values can be read too, for embeddings; costs prompts the last norm for every token.
        progress: told of bytes while importing.
        options: the backend's own, such as `compute_dtype`. An option goes to the backends that know it.

    Warns:
        FallbackWarning: some operators run elsewhere than asked; the text says which, where and why.

    Raises:
        PackageError, ImportFailed: there is no such model, or it is damaged.
        BackendMissing: there is no such device.
        Unsupported: the device refuses operators; `.reasons` says which and why.
        InvalidRequest: an option is out of range, or no backend knows it.
        DeviceError: the backend failed, such as when memory is short.
    """
    package = path_or_name if isinstance(path_or_name, Package) else resolve(path_or_name, progress)
    tokens = _context(context, package.manifest.context_length)
    cache = tokens if cache_tokens is None else _at_least_one("cache_tokens", cache_tokens)
    _at_least_one("step_rows", step_rows)
    devices = open_devices(device, split, strict=strict)
    if step_tokens is not None:
        _at_least_one("step_tokens", step_tokens)
    if own := sorted(options.keys() & {"max_tokens", "max_rows"}):
        raise InvalidRequest("load", f"`{own[0]}` is the engine's own, it was given", "use step_tokens and step_rows")
    given = {
        "threads": None if threads is None else _at_least_one("threads", threads),
        "isa": isa,
        "cache_dtype": cache_dtype,
        "activations": activations,
        **options,
    }
    asked = {name: str(value) for name, value in given.items() if value is not None}
    check_options(asked, devices.backends[: devices.named])
    program = cached_program(package, devices.backends, splits=devices.splits, strict=strict, hidden=hidden)
    if sentence := fallback_sentence(program):
        warnings.warn(f"{sentence}; `strict` refuses that", FallbackWarning, stacklevel=2)
    step = step_tokens or step_tokens_of(devices.backends[0], program) or STEP_TOKENS
    offered = {"threads": env.threads(), "isa": env.isa(), "max_tokens": step, "max_rows": step_rows}
    offered["pack_directory"] = str(env.cache_dir() / "packed")
    settings = {name: str(value) for name, value in offered.items() if value is not None} | asked
    runner = Runner(program, devices.backends, cache, settings, sequences=max(1, step_rows // 2), step_tokens=step)
    give_back()  # of the importer and the compiler the first time, and of the plan's text
    _tell_elsewhere(runner.placement(), strict)
    guesser = _guesser(speculate, package, runner, devices, settings, strict) if speculate else None
    return Model(package, Engine(runner, tokens, max_tokens=step, max_rows=step_rows, guesser=guesser), device)


def _guesser(
    kind: str, package: Package, runner: Runner, devices: Devices, settings: Mapping[str, str], strict: bool
) -> Guesser:
    """What guesses for `kind`. Raises InvalidRequest where the model cannot."""
    from datong.engine.speculation import Heads, Lookup

    states = {cache.kind for part in runner.program.parts for cache in part.caches} & STATE_KINDS
    if states:
        text = f"the model keeps a state ({', '.join(sorted(states))}), which a wrong guess would spoil"
        raise InvalidRequest("load", f"`speculate` needs caches that can be cut back; {text}")
    if kind == "lookup":
        return Lookup()
    if kind != "heads":
        raise InvalidRequest("load", f"speculate should be heads or lookup, got `{kind}`")
    if not package.manifest.speculation:
        raise InvalidRequest(
            "load", "speculate=heads needs a model with heads for speculation, this one has none", "try lookup"
        )
    heads = []
    for head in package.manifest.speculation:
        program = cached_program(package, devices.backends, strict=strict, graph=head.graph)
        size = runner.block_size
        heads.append(Runner(program, devices.backends, runner.blocks * size, settings, size, windows=False))
    return Heads(runner, heads)


def compile_package(
    package: str | Path | Package,
    device: str = "cpu",
    *,
    split: Split = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Program:
    """The program of a package for a device: what runs where, and every refusal. Kept for the next `load`.

    Raises as `load`.
    """
    opened = package if isinstance(package, Package) else resolve(package, progress)
    devices = open_devices(device, split, strict=strict)
    return cached_program(opened, devices.backends, splits=devices.splits, strict=strict)


def _tell_elsewhere(placement: list[tuple[str, Placed]], strict: bool) -> None:
    """Nodes that a backend itself has put on another device than its own. Warns, or raises Unsupported."""
    moved = [(backend, placed) for backend, placed in placement if placed.elsewhere]
    if not moved:
        return
    groups: dict[tuple[str, str], Counter[str]] = {}
    for backend, placed in moved:
        groups.setdefault((backend, placed.elsewhere), Counter())[placed.op] += 1
    text = "; ".join(
        f"{backend} put on {where}: {', '.join(f'{op} x{count}' for op, count in operators.items())}"
        for (backend, where), operators in groups.items()
    )
    text = f"{len(moved)} of {len(placement)} nodes run elsewhere than asked: {text}"
    if strict:
        reasons = [(placed.node, f"{backend}: runs on {placed.elsewhere}") for backend, placed in moved]
        raise Unsupported("load", text, "leave out `strict`, or ask for the device that runs them", reasons)
    warnings.warn(f"{text}; `strict` refuses that", FallbackWarning, stacklevel=3)


def _context(asked: int | None, most: int) -> int:
    if asked is None:
        return min(most, DEFAULT_CONTEXT)
    if _at_least_one("context", asked) > most:
        raise InvalidRequest("load", f"context should be at most {most}, the model's, got {asked}")
    return asked


def _at_least_one(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise InvalidRequest("load", f"{name} should be a whole number from 1, got `{value}`")
    return value
