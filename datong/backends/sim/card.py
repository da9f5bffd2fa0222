"""The simulated device itself: what happens when an operator comes to it.

    1. composite operators come apart, as they do on a device that has no kernel of its own for them;
    2. the rules are asked: coverage, host synchronisation within a step, operands of the host, element types;
    3. the host computes with the hidden tensors: PyTorch's operator, or the vendor's from operators/<stack>.py;
    4. new results are counted against the device's memory, views share what they look at.

What it cannot show: speed, the rounding of the real kernels, their bugs, and operators that the vendor's adapter lacks
but no source says so.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from datong.backends.sim.dtypes import name_of
from datong.backends.sim.graph import Recorder
from datong.backends.sim.memory import Allocation, Meter
from datong.backends.sim.rules import Rules, demand
from datong.backends.sim.tensor import DeviceTensor, wrap
from datong.errors import DatongError, DeviceError

Operator = Any  # torch._ops.OpOverload; PyTorch does not export the type
ANSWER_IS_ON_HOST = frozenset({"aten::_local_scalar_dense", "aten::equal"})
# The number of elements of the result is data: the device has to tell the host before the next operator can start.
SIZE_IS_DATA = frozenset(
    {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
     "aten::bincount", "aten::repeat_interleave"}
)  # fmt: skip
INDEXED = frozenset({"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"})
HOST = torch.device("cpu")
RESIZES = frozenset({"aten::resize_", "aten::set_", "aten::resize_as_", "aten::t_", "aten::transpose_",
                     "aten::squeeze_", "aten::unsqueeze_", "aten::as_strided_", "aten::swapaxes_"})  # fmt: skip


class Operands:
    """The arguments of one call with hidden tensors in the place of device tensors."""

    def __init__(self) -> None:
        self.device: list[DeviceTensor] = []
        self.host: list[torch.Tensor] = []

    def lower(self, argument: Any) -> Any:
        """The same without device tensors; what was met is in `device` and `host`."""
        kind = type(argument)
        if kind is DeviceTensor:
            self.device.append(argument)
            return argument.hidden
        if kind is list or kind is tuple:
            return kind([self.lower(a) for a in argument])
        if isinstance(argument, torch.Tensor):
            self.host.append(argument)
        return argument


class Card:
    """One simulated device.

    Args:
        rules: of its chip.
        device: `npu:0`.
        memory_bytes: of the device; 0: without limit.
        vendor: the vendor's operators, `npu::npu_rms_norm` -> function on host tensors.
    """

    def __init__(
        self,
        rules: Rules,
        device: torch.device,
        memory_bytes: int,
        vendor: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.rules, self.device = rules, device
        self.meter = Meter(rules, memory_bytes)
        self.vendor = dict(vendor or {})
        self.recorder: Recorder | None = None
        self._steps = 0
        self._composite: dict[Operator, bool] = {}
        self._legal: set[torch.dtype] = set()  # asked before

    # ---- what the backend and the namespace call ---------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """From the begin of a step to just before its last download: the host may not wait for the device."""
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1

    def wait(self, operator: str, what: str) -> None:
        """The host waits for the device. Raises RuleBroken within a step or a capture."""
        if self.recorder is not None:
            raise self.rules.capture(operator, what)
        if self._steps:
            raise self.rules.host_sync(operator, what)

    # ---- operators ---------------------------------------------------------------------------------------------------

    def execute(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator of PyTorch's or of the vendor's."""
        if self._is_composite(operator):
            parts = operator.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        # Device tensors are made outside of inference mode whatever the caller is in: a view of an ordinary tensor has
        # to be an ordinary tensor.
        with torch._C._InferenceMode(False), torch.no_grad():
            return self._run(operator, args, kwargs)

    def _run(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name: str = operator._schema.name
        demand(self.rules.missing(name))
        operands = Operands()
        hidden = [operands.lower(a) for a in args]
        named = {key: operands.lower(a) for key, a in kwargs.items()}
        if name == "aten::copy_":
            return self._copy(args, hidden, named)
        self._check(name, operands, named)
        if self._is_for_host(name, operands, kwargs.get("device")):
            return self._compute(operator, hidden, {**named, "device": HOST} if "device" in named else named)
        if "device" in named:
            named["device"] = HOST
            named.pop("pin_memory", None)
        self._plan(name, hidden, named)
        if self.recorder is not None:
            self.recorder.before_write(operator, hidden, named)
        made = self._compute(operator, hidden, named)
        wrapped = self._wrap(name, made, operands.device)
        if self.recorder is not None:
            self.recorder.add(operator, self._kernel(operator), hidden, named, made)
        return wrapped

    def _is_for_host(self, name: str, operands: Operands, target: Any) -> bool:
        """Does the result lie on the host? A download, and a number that the host reads, must wait for the device."""
        if name in ANSWER_IS_ON_HOST:
            self.wait(name, "its answer is a number on the host")
            return True
        if target is None or torch.device(target).type == self.device.type:
            return False
        if name == "aten::_to_copy":
            self.wait(name, f"a tensor of shape {list(operands.device[0].shape)} goes to the host")
        return True

    def _check(self, name: str, operands: Operands, named: dict[str, Any]) -> None:
        """The rules about operands."""
        for t in operands.device:
            self._check_dtype(name, t.dtype, "an input")
            if t.allocation.pool is not None and t.allocation.pool.freed:
                raise self.rules.capture(name, "an input was made by a graph that is gone")
        for other in operands.host:
            if other.dim():  # a number may come from the host: it is an argument of the kernel
                raise self.rules.mixed(name, other.shape)
        if name in RESIZES:
            raise DeviceError(self.rules.device, f"`{name}` should not change a tensor in place, it is not simulated")
        if name in SIZE_IS_DATA and named.get("output_size") is None:
            self.wait(name, "the number of its results depends on data")
        if name in INDEXED and any(t.dtype in (torch.bool, torch.uint8) for t in self._places(name, operands)):
            self.wait(name, "the number of places that a mask selects depends on data")

    def _check_dtype(self, name: str, dtype: torch.dtype, whose: str) -> None:
        if dtype not in self._legal:
            demand(self.rules.dtype(name, name_of(dtype), whose))
            self._legal.add(dtype)

    @staticmethod
    def _places(name: str, operands: Operands) -> list[DeviceTensor]:
        """The index tensors of an indexed operator; none where a mask takes one value, which is `masked_fill`."""
        if name == "aten::index":
            return operands.device[1:]
        return [] if operands.device[-1].numel() == 1 or operands.host else operands.device[1:-1]

    def _plan(self, name: str, hidden: list[Any], named: dict[str, Any]) -> None:
        """Refuse a factory's result before the host makes room for it."""
        if name in ("aten::empty", "aten::empty_strided"):
            dtype = named.get("dtype") or torch.get_default_dtype()
            self._check_dtype(name, dtype, "the output")
            self.meter.check(name, math.prod(hidden[0]) * dtype.itemsize)

    def _kernel(self, operator: Operator) -> Callable[..., Any]:
        """What computes an operator on the host: the vendor's function gets everything by keyword."""
        own = self.vendor.get(operator._schema.name)
        if own is None:
            return operator  # type: ignore[no-any-return]
        arguments = operator._schema.arguments

        def call(*args: Any, **kwargs: Any) -> Any:
            given = {a.name: v for a, v in zip(arguments, args, strict=False)} | kwargs
            return own(**{a.name: given.get(a.name, a.default_value) for a in arguments})

        return call

    def _compute(self, operator: Operator, hidden: list[Any], named: dict[str, Any]) -> Any:
        """The host's answer, in hidden tensors."""
        try:
            return self._kernel(operator)(*hidden, **named)
        except DatongError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if "can't allocate memory" in str(error):
                text = f"`{operator._schema.name}` should find room on the host that simulates the chip, it is full"
                raise DeviceError(self.rules.device, text) from error
            raise

    def _wrap(self, name: str, made: Any, inputs: list[DeviceTensor]) -> Any:
        """Results as device tensors: an input itself where it was written, a view, or new memory."""
        if type(made) is tuple or type(made) is list:
            return type(made)(self._wrap(name, m, inputs) for m in made)
        if not isinstance(made, torch.Tensor):
            return made
        place = made.untyped_storage()._cdata
        allocation: Allocation | None = None
        for t in inputs:
            if t.hidden is made:
                if t.shape != made.shape:
                    text = f"`{name}` should write into a tensor of its result's shape, resizing is not simulated"
                    raise DeviceError(self.rules.device, text)
                return t
            if t.hidden.untyped_storage()._cdata == place:
                allocation = t.allocation
        self._check_dtype(name, made.dtype, "the output")
        return wrap(made, allocation or self.meter.take(name, made.untyped_storage().nbytes()), self.device)

    def _copy(self, args: tuple[Any, ...], hidden: list[Any], named: dict[str, Any]) -> Any:
        """`copy_`, the one operator that may have one side on the host."""
        target, source = args[0], args[1]
        if type(target) is not DeviceTensor:
            self.wait("aten::copy_", f"{list(source.shape)} goes to the host")
        elif type(source) is not DeviceTensor and self.recorder is not None:
            raise self.rules.capture("aten::copy_", "it reads host memory, which is only there once")
        for t, whose in ((source, "an input"), (target, "the output")):
            if type(t) is DeviceTensor:
                self._check_dtype("aten::copy_", t.dtype, whose)
        operator = torch.ops.aten.copy_.default
        if self.recorder is not None:
            self.recorder.before_write(operator, hidden, named)
        operator(*hidden, **named)
        if self.recorder is not None:
            self.recorder.add(operator, operator, hidden, named, hidden[0])
        return target

    def _is_composite(self, operator: Operator) -> bool:
        known = self._composite.get(operator)
        if known is None:
            key = "CompositeImplicitAutograd"
            known = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key)
            self._composite[operator] = known
        return known
