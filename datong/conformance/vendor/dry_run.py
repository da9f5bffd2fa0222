"""The process of schemas.py: our lowering runs on PyTorch's `meta` device, where tensors have shapes and no data.

    1. every schema of the wheel is defined in PyTorch, under the adapter's namespace
    2. the wheel's own meta functions compute the shapes and types of results
    3. parts are compiled for the descriptor's chip, and the op cases of cases.toml run: PyTorch's dispatcher looks at
       each call that our bindings make, and the rest of the lowering at the shapes that come back

So a parameter that the vendor renames, drops or changes in type is an error here, and so is a result of another shape.
What this cannot show: what the operator computes, and the checks of its kernels.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from datong.chips.load import Chip, stacks
from datong.chips.schema import Stack
from datong.conformance.build import PartBuilder
from datong.conformance.ops import Case, cases
from datong.conformance.parts import BUILDERS
from datong.conformance.vendor.wheel import Wheel, read
from datong.errors import ChipError, DatongError
from datong.spec.program import Step

SOC_A2 = 220  # what the adapter's get_soc_version says on a 910B: vllm_ascend/device/hardware.py
OPERATORS = ("rms_norm", "add_rms_norm", "rope", "glu", "attention")  # those of ours that vendors fuse
DTYPES = ("bf16", "f16", "f32")
FEW = 12  # cases per operator, type and chip


def stack_of(wheel: Wheel) -> Stack:
    """The stack whose adapter this package is. Raises ChipError."""
    for stack in stacks().values():
        if stack.adapter.package.usable and stack.adapter.package.value == wheel.package:
            return stack
    known = ", ".join(sorted(s.adapter.package.value or "" for s in stacks().values() if s.adapter.package.usable))
    raise ChipError(wheel.package, "a descriptor should name this package as its adapter, none does", f"named: {known}")


# ---- the adapter that is not there ---------------------------------------------------------------------------------


def define(wheel: Wheel, namespace: str) -> list[Any]:
    """Define the wheel's schemas. Returns what must be kept alive."""
    import torch

    library = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    for texts in wheel.schemas.values():
        for schema in texts:
            try:
                torch._C.parse_schema(schema)
            except RuntimeError:
                continue  # a C++ signature in a message: SymIntArrayRef
            with contextlib.suppress(RuntimeError):  # an overload of the same look, defined already
                library.define(schema)  # type: ignore[no-untyped-call]
                break
    return [library]


def meta_functions(source: str) -> dict[str, Callable[..., Any]]:
    """The wheel's meta functions, by operator. Its module is run with a stand-in for the adapter it imports."""
    found: dict[str, Callable[..., Any]] = {}

    def impl(library: object, name: str, *rest: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: found.setdefault(name, function) if library == "npu" else function

    import torch

    tree = ast.parse(source)
    foreign = ("torch_npu", "torch.library", "torch.fx")
    tree.body = [node for node in tree.body if not _imports(node, foreign)]
    space = {
        "torch": torch,
        "torch_npu": _Anything("torch_npu"),
        "Library": lambda name, *rest: name,
        "impl": impl,
        "has_side_effect": lambda operator: None,
        "ErrCode": _Anything("ErrCode"),
        "ops_error": lambda code: "",
        "get_cann_version": lambda *rest: "9.9.9",
        "get_soc_version": lambda: SOC_A2,
        "__name__": "meta_registrations",
    }
    exec(compile(tree, "_meta_registrations.py", "exec"), space)  # the vendor's code, in a process of its own
    return found


class _Anything:
    """Has every attribute: what the meta functions read of an adapter are codes of element types and errors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self._name}.{name}")


def _imports(node: ast.stmt, modules: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.startswith(modules) for alias in node.names)
    return isinstance(node, ast.ImportFrom) and str(node.module).startswith(modules)


# ---- our calls ---------------------------------------------------------------------------------------------------


class Recorder:
    """Stands before the vendor's operators: counts calls, and keeps the names of the arguments."""

    def __init__(self, namespace: str, metas: Mapping[str, Callable[..., Any]], offered: Mapping[str, str]) -> None:
        import torch

        self.calls: dict[str, Counter[tuple[str, ...]]] = {}
        self.total = 0
        self.without_meta: list[str] = []  # the wheel says nothing of their results
        self.module = ModuleType("adapter")
        space = getattr(torch.ops, namespace)
        library = torch.library.Library(namespace, "IMPL", "Meta")  # type: ignore[no-untyped-call]
        for short, dotted in offered.items():
            if not hasattr(space, short):
                continue  # the comparison of schemas says so
            if short not in metas:
                self.without_meta.append(dotted)
            else:
                library.impl(short, metas[short])  # type: ignore[no-untyped-call]
            setattr(self.module, short, self._counted(dotted, getattr(space, short)))
        self._library = library

    def _counted(self, dotted: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        names = [argument.name for argument in operator.default._schema.arguments]  # type: ignore[attr-defined]

        def call(*args: Any, **kwargs: Any) -> Any:
            form = (*names[: len(args)], *(f"{name}=" for name in kwargs))
            self.calls.setdefault(dotted, Counter())[form] += 1
            self.total += 1
            try:
                return operator(*args, **kwargs)
            except (RuntimeError, TypeError) as error:
                raise RuntimeError(f"`{dotted}({', '.join(form)})`: {_reason(error)}") from error

        return call


def _reason(error: Exception) -> str:
    """The line of the dispatcher's answer that says what is wrong; of an operator with overloads there are several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "argument" in line and "schema:" not in line), lines[0])


def dry_executable(part: Any, package: str, chip: Chip, dtype: str) -> Any:
    """The part, compiled by the lowering for `chip`, on tensors without data."""
    import torch

    from datong.backends.torch.executable import TorchExecutable
    from datong.backends.torch.options import Settings
    from datong.backends.torch.target import chip_target

    class Dry(TorchExecutable):
        """Results are zeros of the right shape."""

        def _download(self, results: Mapping[str, Any], step: Step) -> dict[str, Any]:
            return {name: np.zeros(tuple(tensor.shape), np.float32) for name, tensor in results.items()}

    target = replace(chip_target(chip.stack.name, chip), device="meta")
    settings = Settings(dtype, dtype, 0, buckets=False, graphs=False)
    return Dry(part, package, target, torch.device("meta"), settings, contextlib.nullcontext)


def _selected(ops: Collection[str]) -> Iterator[Case]:
    """A few cases of each operator, spread evenly over those that differ in more than a format or a number."""
    for op in ops:
        different: dict[tuple[str, ...], Case] = {}
        for case in cases(lambda case, op=op: case.op == op):  # type: ignore[misc]
            key = tuple(str(v) for k, v in sorted(case.params.items()) if k not in ("format", "eps", "values"))
            different.setdefault(key, case)
        yield from list(different.values())[:: max(1, len(different) // FEW)]


def run_case(case: Case, chip: Chip, dtype: str, recorder: Recorder) -> str | None:
    """One op case; the sentence of what went wrong, or None.

    What goes wrong in a case that calls no vendor operator is no concern of this check.
    """
    before = recorder.total
    with PartBuilder(zlib.crc32(str(case).encode())) as builder:
        scene = BUILDERS[case.op](builder, case.params)
        part = builder.part(builder.nodes[0].outputs)
        try:
            executable = dry_executable(part, builder.package, chip, dtype)
            cache = executable.create_cache(scene.blocks(executable.cache_layout.block_size)) if part.caches else None
            for outputs in scene.play(executable, cache):
                for name in part.outputs:
                    _check_shape(case, name, outputs[name], part)
        except (DatongError, RuntimeError, TypeError, KeyError, NotImplementedError) as error:
            if recorder.total == before:
                return None
            lines = [line for line in str(error).splitlines() if line.strip()]
            return f"{case} in {dtype}: {type(error).__name__}: {' '.join(lines[:2])}"
    return None


def _check_shape(case: Case, name: str, array: Any, part: Any) -> None:
    width = math.prod(int(d) for d in part.values[name].shape[1:])
    if array.ndim < 2 or math.prod(array.shape[1:]) != width:
        raise ChipError(str(case), f"`{name}` should have rows of {width}, the meta functions make {array.shape}")


def compare(stack: Stack, wheel: Wheel) -> list[str]:
    """Schemas of the descriptor that the wheel does not register in these words."""
    import torch

    problems = []
    for fused in stack.fused:
        module, _, short = fused.name.rpartition(".")
        if module != stack.adapter.module.value or not fused.schema:
            continue
        registered = [str(s) for t in wheel.schemas.get(short, ()) if (s := _parsed(t)) is not None]
        if not registered:
            problems.append(f"{stack.name}.toml names `{fused.name}`, which the wheel does not register")
        elif str(torch._C.parse_schema(fused.schema)) not in registered:
            problems.append(f"{stack.name}.toml says `{fused.schema}`, the wheel registers `{registered[0]}`")
    return problems


def _parsed(schema: str) -> Any:
    import torch

    try:
        return torch._C.parse_schema(schema)
    except RuntimeError:
        return None


def _chips(stack: Stack) -> Iterator[Chip]:
    """Of the generations with the same operators, types and cache, one."""
    seen = set()
    for generation in stack.generations:
        offered = [f.name for f in stack.fused if not f.generations or generation.name in f.generations]
        key = (*offered, generation.dtypes.value, generation.kv_layout.value, generation.kv_block_sizes.value)
        if str(key) not in seen:
            seen.add(str(key))
            yield Chip(stack, generation)


def run(path: Path, ops: Collection[str] = OPERATORS) -> dict[str, Any]:
    """The whole check, as plain data; `ops`: of these operators of ours only."""
    wheel = read(path)
    stack = stack_of(wheel)
    from datong.backends.torch.fused import bindings

    module, namespace = str(stack.adapter.module.value), str(stack.adapter.device.value)
    bound = {name for name, does in bindings() if name.startswith(f"{module}.") and does.partition(".")[0] in ops}
    offered = {f.name.rpartition(".")[2]: f.name for f in stack.fused if f.schema and f.name in bound}
    kept = define(wheel, namespace)
    recorder = Recorder(namespace, meta_functions(wheel.meta), offered)
    sys.modules[module] = recorder.module
    problems = compare(stack, wheel)
    for chip in _chips(stack):
        for dtype in DTYPES:
            if not chip.generation.dtypes.usable or dtype in (chip.generation.dtypes.value or ()):
                found = (run_case(case, chip, dtype, recorder) for case in _selected(ops))
                problems += [f"{chip.name}: {problem}" for problem in found if problem]
    uncalled = sorted(set(offered.values()) - recorder.calls.keys())
    problems += [f"`{name}` has a binding and no case calls it" for name in uncalled]
    del kept
    return {
        "package": wheel.package,
        "version": wheel.version,
        "stack": stack.name,
        "registered": len(wheel.schemas),
        "calls": {
            name: {"calls": sum(forms.values()), "forms": [list(form) for form in forms]}
            for name, forms in recorder.calls.items()
        },
        "without_meta": recorder.without_meta,
        "problems": list(dict.fromkeys(problems)),
    }


def main(path: str, *ops: str) -> None:
    """Print the answer as one line of JSON. Standard output is ours alone: others' prints go to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    try:
        answer = run(Path(path), ops or OPERATORS)
    except DatongError as error:
        answer = {"error": error.message, "hint": error.hint or ""}
    with out:
        json.dump(answer, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
