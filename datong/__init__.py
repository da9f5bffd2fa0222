"""Datong: one package, one operator set, one backend interface between language models and AI chips."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datong.backends.registry import devices
    from datong.engine.load import compile_package as compile
    from datong.engine.load import load
    from datong.engine.model import Model
    from datong.errors import DatongError
    from datong.package.create import import_checkpoint

__version__ = "0.1.0"

# Loaded when first used: `import datong` costs a millisecond, and importing a model never pulls in more than it needs.
_HOMES = {
    "DatongError": "datong.errors:DatongError",
    "Model": "datong.engine.model:Model",
    "compile": "datong.engine.load:compile_package",
    "devices": "datong.backends.registry:devices",
    "import_checkpoint": "datong.package.create:import_checkpoint",
    "load": "datong.engine.load:load",
}

__all__ = ["DatongError", "Model", "__version__", "compile", "devices", "errors", "import_checkpoint", "load"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("datong.errors")
    if name not in _HOMES:
        raise AttributeError(f"module `datong` has no attribute `{name}`")
    module, _, attribute = _HOMES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
