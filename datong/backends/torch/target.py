"""What the lowering must know of a device: a few facts from its descriptor, and no word about whose chip it is.

`Target` holds names only; `open_target` imports the adapter and checks that the device is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from datong.backends.torch.binding import Terms
from datong.backends.torch.fused import resolve
from datong.chips.detect import here as survey
from datong.chips.load import Chip, find
from datong.chips.schema import Fact
from datong.errors import BackendMissing

if TYPE_CHECKING:
    import torch

FLOATS = ("f32", "bf16", "f16")  # what activations may be
INSTALL = 'pip install "datong[torch]" brings it for the processor; a chip needs its vendor\'s build'
OLDEST = (2, 5)  # of PyTorch: scaled_dot_product_attention with enable_gqa
CPU_BLOCK = 16  # tokens; blocks in a row are read in place, so a small one costs nothing here
DEFAULT_BLOCK = 64  # tokens, for a device whose vendor asks for none


@dataclass(frozen=True)
class Target:
    """A device as its descriptor says; the defaults are those of a device without one."""

    name: str  # what the user typed: `torch:cpu`, `ascend:1`
    device: str  # for torch.device: `cpu`, `npu:1`
    namespace: str  # dotted: `torch.npu`
    evidence: str
    chip: Chip | None = None
    module: str = ""  # to import after torch: `torch_npu`
    package: str = "torch"  # distribution that brings it
    legal: frozenset[str] | None = None  # element types; None: all but the illegal ones
    illegal: frozenset[str] = frozenset()
    index_dtype: str = "i64"
    block_size: int = DEFAULT_BLOCK
    layout: str = "nhd"
    graph: str = ""  # capture class, dotted; its context manager is `<namespace>.graph`
    missing: Mapping[str, str] = field(default_factory=dict)  # aten operator -> source of the fact that it does not run
    unpacked: str = ""  # what block-quantised matrices become; "": the best 16-bit type that is legal
    in_out: frozenset[str] = frozenset()  # element types whose matrices lie [in, out]
    places: bool = True  # may shapes differ from step to step, and slices be taken at any place?

    def is_legal(self, dtype: str) -> bool:
        """May data of this element type be on the device?"""
        return dtype not in self.illegal and (self.legal is None or dtype in self.legal)

    def terms(self, dtype: str, cache_dtype: str) -> Terms | None:
        """What vendor operators are asked about; None for a device without a descriptor. Imports torch."""
        if self.chip is None:
            return None
        from datong.backends.torch.dtypes import DTYPES

        return Terms(self.chip, DTYPES[dtype], DTYPES[cache_dtype], self.block_size, self.layout, self.index_dtype)

    @property
    def floats(self) -> tuple[str, ...]:
        """Legal element types of activations."""
        return tuple(name for name in FLOATS if self.is_legal(name))


def cpu_target(name: str = "torch:cpu") -> Target:
    """PyTorch on the processor."""
    # MKL's product of one row reads an f32 matrix that lies [in, out] at 25 GB/s, one that lies [out, in] at 11
    # (bench/results/compare_torch-*.csv; 2 cores of an AMD EPYC); bf16 goes through oneDNN, which likes [out, in].
    return Target(name, "cpu", "torch.cpu", "measured", block_size=CPU_BLOCK, unpacked="f32", in_out=frozenset({"f32"}))


def cuda_target(name: str, index: str = "0") -> Target:
    """A device that PyTorch calls `cuda` and of which nothing else is known."""
    return Target(name, f"cuda:{index or 0}", "torch.cuda", "not run", graph="torch.cuda.CUDAGraph")


def chip_target(name: str, chip: Chip, index: str = "0", evidence: str = "not run") -> Target:
    """A chip by its descriptor. Raises BackendMissing when the descriptor knows no device string."""
    adapter, generation = chip.stack.adapter, chip.generation
    if not adapter.device.usable or not adapter.namespace.usable:
        raise BackendMissing(name, "the chip should have a PyTorch adapter, its descriptor names none", _doctor())
    gated = {*_list(generation.gated_dtypes), *_list(generation.illegal_dtypes)}
    missing = chip.stack.missing_operators
    blocks = _list(generation.kv_block_sizes)
    return Target(
        name,
        f"{adapter.device.value}:{index or 0}",
        str(adapter.namespace.value),
        evidence,
        chip,
        module=_text(adapter.module),
        package=_text(adapter.package) or "torch",
        legal=frozenset(_list(generation.dtypes)) if generation.dtypes.usable else None,
        illegal=frozenset(_list(generation.illegal_dtypes)),
        index_dtype="i32" if "i64" in gated else "i64",
        block_size=blocks[0] if blocks else DEFAULT_BLOCK,
        layout=_text(generation.kv_layout) or "nhd",
        graph=_text(adapter.graph),
        missing=dict.fromkeys(_list(missing), missing.source),
        places=False,
    )


def target_for(device: str) -> Target:
    """The target that a device name means: `torch:cpu`, `torch:cuda:1`, `metax:0`. Raises BackendMissing."""
    family, _, rest = device.partition(":")
    if family != "torch":
        index = _index(device, rest)  # the card that is here may be of a later generation than the stack's first
        return chip_target(device, survey().chip(family, int(index or 0)) or find(family), index)
    kind, _, index = rest.partition(":")
    if kind == "cpu" and not index:
        return cpu_target(device)
    if kind == "cuda":
        return cuda_target(device, _index(device, index))
    raise BackendMissing(device, f"`{device}` should be `torch:cpu`, `torch:cuda` or `torch:cuda:N`", _doctor())


def require(target: Target) -> None:
    """Raises BackendMissing when PyTorch or the adapter is not installed. Imports neither."""
    if not installed("torch"):
        raise BackendMissing(target.name, "PyTorch should be installed, there is no module `torch`", INSTALL)
    version = torch_version()
    if version and tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        text = f"PyTorch should be {'.'.join(map(str, OLDEST))} or newer, it is {version}"
        raise BackendMissing(target.name, text, INSTALL)
    if target.module and not installed(target.module):
        text = f"its PyTorch adapter `{target.package}` should be installed, there is no module `{target.module}`"
        raise BackendMissing(target.name, text, _doctor())


def require_build(target: Target) -> None:
    """Raises BackendMissing when the chip needs its vendor's build of PyTorch and another one is installed.

    Such a build calls its devices `cuda`, as every other vendor's does, so the device alone says nothing.
    """
    require(target)
    adapter = target.chip.stack.adapter if target.chip else None
    suffix = _text(target.chip.stack.identity.torch_version_suffix) if target.chip else ""
    version = torch_version()
    if adapter is not None and adapter.kind == "cuda-build" and suffix and suffix not in version:
        text = f"PyTorch should be its vendor's build, a version with `{suffix}`, it is {version}"
        raise BackendMissing(target.name, text, _doctor())


def open_target(target: Target) -> torch.device:
    """Import the adapter and look for the device. Raises BackendMissing with what is missing."""
    require(target)
    try:
        import torch

        if target.module:
            importlib.import_module(target.module)
    except (ImportError, OSError) as error:  # a library of the toolkit that does not load
        text = f"its PyTorch adapter `{target.package}` should load, got: {str(error).splitlines()[0]}"
        raise BackendMissing(target.name, text, _doctor()) from error
    if target.device == "cpu":
        return torch.device("cpu")
    namespace = resolve(target.namespace)
    count = _count(namespace)
    index = int(target.device.partition(":")[2])
    if index >= count:
        text = f"device {index} of `{target.namespace}` should be there, PyTorch {torch.__version__} sees {count}"
        raise BackendMissing(target.name, text, _doctor())
    return torch.device(target.device)


def memory_bytes(target: Target) -> int:
    """Memory of the device, 0 if nobody says. The adapter is imported."""
    if target.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    properties = getattr(resolve(target.namespace), "get_device_properties", None)
    if properties is not None:
        return int(getattr(properties(int(target.device.partition(":")[2])), "total_memory", 0))
    fact = target.chip.generation.memory_bytes if target.chip else None
    return int(fact.value) if fact is not None and fact.usable and fact.value else 0


def installed(module: str) -> bool:
    """Can the module be found? Nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is in sys.modules without a spec: made at run time
        return True


def torch_version() -> str:
    """As installed; "" where a copy of PyTorch lies around that nobody installed."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _count(namespace: Any) -> int:
    try:
        return int(namespace.device_count()) if namespace is not None else 0
    except (AttributeError, RuntimeError):
        return 0


def _index(device: str, text: str) -> str:
    if text and not (text.isascii() and text.isdigit()):
        raise BackendMissing(device, f"a device should be numbered from 0, as in `{device.partition(':')[0]}:0`")
    return text or "0"


def _doctor() -> str:
    return "`datong doctor` says what this machine has and what is missing"


def _text(fact: Fact[str]) -> str:
    return fact.value if fact.usable and fact.value else ""


def _list(fact: Fact[list[Any]]) -> list[Any]:
    return list(fact.value) if fact.usable and fact.value else []
