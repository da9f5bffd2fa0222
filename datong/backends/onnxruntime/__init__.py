"""The ONNX Runtime backend: hands a package's graph.onnx, as it is, to any execution provider.

Devices are `onnxruntime` (the CPU provider) and `onnxruntime:<provider>[:<number>]`; plug-in providers come from the
libraries in DATONG_ORT_LIBRARIES. It runs whole models only: nothing of ours is between the graph and ONNX Runtime but
the paged cache, which makes it an independent witness. Decision: docs/adr/0016-onnxruntime-takes-the-graph.md.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from datong.backends.onnxruntime.backend import OnnxRuntimeBackend
from datong.errors import BackendError, BackendMissing, DatongError
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
    return OnnxRuntimeBackend(device, _providers().find(device))


def present() -> list[DeviceInfo]:
    """One device per provider of the installed ONNX Runtime; none when it is not installed.

    One that is installed and cannot be used is shown as what it is, so that it hides no other device.
    """
    if find_spec("onnxruntime") is None:
        return []
    try:
        providers = _providers()
        return [providers.info(provider) for provider in providers.available()]
    except DatongError as error:
        return [DeviceInfo("onnxruntime", f"cannot be used: {error.message}", 0, "not run")]


def _providers() -> ModuleType:
    """Imported here, with a sentence for a build that does not import (made for another NumPy, a library missing)."""
    try:
        return import_module("datong.backends.onnxruntime.providers")
    except Exception as error:  # extension modules raise what they like
        raise BackendError(
            "onnxruntime",
            f"the installed package onnxruntime should import, got {type(error).__name__}: {error}",
            "install a build for this Python and NumPy, or uninstall it",
        ) from error
