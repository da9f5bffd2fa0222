"""The shape of a chip descriptor (`data/<stack>.toml`): plain data, checked on reading; `load.py` reads it.

A *stack* is one vendor's software line behind one PyTorch adapter (Biren has two). It has *generations*, chips with
the same rules. Every fact is a table `{ value, grade, source, note }`:

    grade  A the vendor's own repository or documentation · B a third-party integrator · C press, wiki, aggregator
           unknown: looked for and not found; such a fact has no value, and code treats it as not given
    source where it was read, so that a reader can find it

A list has the lowest grade of its entries. Only facts of grade A or B may decide what code does; C is for people.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")
Grade = Literal["A", "B", "C", "unknown"]


class Fact(msgspec.Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """One fact. `usable` says whether code may act on it."""

    grade: Grade
    value: T | None = None
    source: str = ""
    note: str = ""

    @property
    def usable(self) -> bool:
        """Is there a value, of grade A or B?"""
        return self.value is not None and self.grade in ("A", "B")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the chip shows itself to the machine."""

    pci_vendor: Fact[str]  # "0x19e5"
    device_nodes: Fact[list[str]]  # glob patterns, one match per device: "/dev/davinci[0-9]*"
    manager_nodes: Fact[list[str]]  # further nodes that the driver needs: "/dev/davinci_manager"; "a|b": one of them
    smi: Fact[str]  # the tool: "npu-smi"
    smi_arguments: Fact[list[str]]  # that list devices: ["info"]
    # Regular expression over all that the tool prints (`^` and `$` at lines), one match per device. Groups: `index`;
    # `device`, if the node's number is another one; optional `product`, `memory_mib`, `bus` (PCI address).
    smi_device_pattern: Fact[str]
    library: Fact[list[str]]  # management libraries, names or absolute paths
    torch_version_suffix: Fact[str]  # local version of the vendor's torch build: "+metax"
    # Device ids under the same PCI vendor, in a display or accelerator class, that are no such chip: "0x1711", the
    # graphics of Huawei's board controller.
    pci_others: Fact[list[str]] = Fact(grade="unknown")


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How PyTorch reaches the chip."""

    kind: Literal["privateuse1", "cuda-build", "cuda", "cpu", "unknown"]  # cuda-build: the vendor's own build of torch
    package: Fact[str]  # distribution: "torch-npu"
    module: Fact[str]  # what to import: "torch_npu"; empty for a vendor build of torch
    device: Fact[str]  # device string: "npu"
    namespace: Fact[str]  # "torch.npu"
    dist_backend: Fact[str]
    graph: Fact[str]  # capture class, dotted: "torch.npu.NPUGraph"
    visible_process: Fact[str]  # environment variable
    visible_container: Fact[str]
    torch_versions: Fact[list[str]]  # of torch that the adapter is published for, newest last


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions that belong together."""

    torch: str
    adapter: str
    toolkit: str
    grade: Grade
    source: str


class Toolkit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vendor's software below the adapter."""

    roots: Fact[list[str]]  # directories, first found wins
    root_variables: Fact[list[str]]  # environment variables that name the root
    version_files: Fact[list[str]]  # relative to the root
    version_pattern: Fact[str]  # regular expression with one group
    install: Fact[str]  # where a person gets it
    pairs: list[Pair] = []
    bundled: Fact[bool] = Fact(grade="unknown")  # the packages of torch bring what they need of it: no separate install


class FusedOperator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vendor's operator that implements one of ours (spec/ops.py), or that our lowering calls for a part of it."""

    implements: str  # our operator: "rms_norm", or a step of it: "attention.decode", "attention.write"
    name: str  # dotted, as called: "torch_npu.npu_rms_norm", "torch.ops._C.rms_norm"
    schema: str  # PyTorch schema as published; "" if unknown, and then it is never called
    grade: Grade
    source: str
    module: str = ""  # to import so that it is there, besides the adapter: "mcoplib._C"
    condition: str = ""  # in words, checked by the binding
    generations: list[str] = []  # empty: all of the stack
    note: str = ""


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chips of a stack that follow the same rules."""

    name: str  # "a2"
    products: list[str]  # what users type after the stack: "910b", "910b3"; lower case
    title: str  # "Ascend 910B (A2)"
    pci_devices: Fact[list[str]]  # "0xd802"
    dtypes: Fact[list[str]]  # legal element types on the device, names of datong/dtypes.py
    illegal_dtypes: Fact[list[str]]  # known not to work; what neither list names is not known
    gated_dtypes: Fact[list[str]]  # work only after a switch: int64 on Enflame
    memory_bytes: Fact[int]  # of one device as the runtime sees it
    bandwidth: Fact[float]  # bytes per second
    peak_flops: Fact[dict[str, float]]  # by element type, dense, operations per second
    kv_block_sizes: Fact[list[int]]  # tokens; allowed by the vendor's attention, the best first
    kv_layout: Fact[str]  # of one layer's cache, a key of datong/backends/torch/layouts.py
    smi_names: Fact[list[str]] = Fact(grade="unknown")  # as the tool prints it, where no product is inside: "Ascend910"


class Stack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One descriptor."""

    name: str  # "ascend": file name, and what users type: `ascend:0`
    vendor: str  # "Huawei"
    title: str
    title_zh: str
    identity: Identity
    adapter: Adapter
    toolkit: Toolkit
    generations: list[Generation]
    missing_operators: Fact[list[str]]  # aten operators known not to run: "aten::_unique2"
    kubernetes: Fact[list[str]]
    triton: Fact[str]
    tilelang: Fact[str]
    offline_engine: Fact[str]
    onnx_provider: Fact[str]  # ONNX Runtime execution provider: "CANNExecutionProvider"
    fused: list[FusedOperator] = []
    notes: list[str] = []
