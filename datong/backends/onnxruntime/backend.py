"""The backend: what it takes (whole models, nothing else), and its options.

Options of `compile`: `cache_dtype`, f32 (default), f16 or bf16; `threads`; `provider_options`, a JSON object of texts
for the provider, on top of DATONG_ORT_OPTIONS. `max_tokens`, `max_rows`, `isa` are accepted and have no meaning here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from datong import dtypes, env
from datong.errors import DatongError, DeviceError, Unsupported, VerifyError
from datong.spec.backend import API_VERSION, DeviceInfo, No, Yes
from datong.spec.check import check_node, check_part
from datong.spec.ops import OPS
from datong.spec.program import Node, Part, Value

if TYPE_CHECKING:
    from datong.backends.onnxruntime.providers import Provider
    from datong.backends.onnxruntime.session import OnnxRuntimeExecutable

WHERE = "onnxruntime"
_OPTIONS = ("threads", "isa", "cache_dtype", "max_tokens", "max_rows", "provider_options")


class OnnxRuntimeBackend:
    """One execution provider of ONNX Runtime."""

    api_version = API_VERSION
    whole_models_only = True
    option_names = frozenset(_OPTIONS)

    def __init__(self, name: str, provider: Provider) -> None:
        self.name, self.provider = name, provider

    def devices(self) -> list[DeviceInfo]:
        """The provider."""
        from datong.backends.onnxruntime.providers import info

        return [info(self.provider)]

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Yes to every core operator that obeys its row, so that the compiler makes one part of the whole model."""
        try:
            check_node(node, values)
        except VerifyError as error:
            return No(error.message)
        if OPS[node.op].tier != "core":
            return No(f"`{node.op}` is formed by the compiler, graph.onnx has no such node")
        return Yes(f"graph.onnx in {self.provider.name}")

    def fusions(self) -> frozenset[str]:
        """None: ONNX Runtime fuses on its own."""
        return frozenset()

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> OnnxRuntimeExecutable:
        """Open the graph that the part was compiled from, all of it, with its weights under `package`."""
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise DeviceError(WHERE, f"option `{unknown[0]}` is not known", f"options: {', '.join(_OPTIONS)}")
        answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
        if reasons := [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]:
            raise Unsupported(WHERE, f"{len(reasons)} nodes are refused, first {reasons[0][1]}", reasons=reasons)
        check_part(part)
        if not part.graph:
            raise Unsupported(
                WHERE,
                f"a part should be a whole model with its graph.onnx, this one is {len(part.nodes)} nodes of one",
                "give the whole model to this device, or these nodes to another one",
            )
        from datong.backends.onnxruntime.session import OnnxRuntimeExecutable

        return OnnxRuntimeExecutable(
            self.provider, part, package, _cache_dtype(options), _threads(options), _provider_options(options)
        )


def _cache_dtype(options: Mapping[str, str]) -> dtypes.DType:
    found = dtypes.BY_NAME.get(options.get("cache_dtype", "f32"))
    if found not in (dtypes.F32, dtypes.F16, dtypes.BF16) or found is None:
        raise DeviceError(WHERE, f"cache_dtype should be f32, f16 or bf16, is `{options['cache_dtype']}`")
    return found


def _threads(options: Mapping[str, str]) -> int:
    """0 lets ONNX Runtime choose."""
    text = options.get("threads", "0")
    if not text.isdecimal():
        raise DeviceError(WHERE, f"threads should be a whole number, is `{text}`")
    return int(text)


def _provider_options(options: Mapping[str, str]) -> dict[str, str]:
    try:
        return env.ort_options() | env.text_object(options.get("provider_options", "{}"), "provider_options")
    except DatongError as error:
        raise DeviceError(WHERE, error.message, error.hint) from None
