"""The ONNX Runtime backend: hands a package's graph.onnx, as it is, to any execution provider.

Devices are `onnxruntime` (the CPU provider) and `onnxruntime:<provider>[:<number>]`; plug-in providers come from the
libraries in DATONG_ORT_LIBRARIES. It runs whole models only: nothing of ours is between the graph and ONNX Runtime but
the paged cache, which makes it an independent witness. Decision: docs/adr/0016-onnxruntime-takes-the-graph.md.
"""

from __future__ import annotations

from importlib.util import find_spec

from datong.backends.onnxruntime.backend import OnnxRuntimeBackend
from datong.errors import BackendMissing
from datong.spec.backend import DeviceInfo

__all__ = ["OnnxRuntimeBackend", "create", "present"]


def create(device: str) -> OnnxRuntimeBackend:
    """The backend of `onnxruntime` or `onnxruntime:<provider>[:<number>]`.

    Raises BackendMissing when ONNX Runtime is not installed or has no such provider, BackendError for a bad setting.
    """
    if find_spec("onnxruntime") is None:
        raise BackendMissing(
            "onnxruntime",
            f"`{device}` needs the package onnxruntime, it is not installed",
            "pip install 'datong[onnxruntime]', or the build of ONNX Runtime that your chip's vendor ships",
        )
    from datong.backends.onnxruntime.providers import find

    return OnnxRuntimeBackend(device, find(device))


def present() -> list[DeviceInfo]:
    """One device per provider of the installed ONNX Runtime; none when it is not installed."""
    if find_spec("onnxruntime") is None:
        return []
    from datong.backends.onnxruntime.providers import available, info

    return [info(provider) for provider in available()]
