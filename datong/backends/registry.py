"""Which backends there are: built in, installed as entry points (group `datong.backends`), or named in DATONG_PLUGINS.

A *family* is a module that makes a backend for each of its devices, told apart by what follows the first `:`: PyTorch
(`torch:cpu`), chips by the name of their descriptor (`ascend:1`), simulated chips (`sim:metax-c500`), ONNX Runtime
(`onnxruntime`). It has two functions: `create(device) -> Backend`, whose name is the device, and `present()`, the
devices that can be known cheaply.

A backend is imported only when it is asked for, so `cpu` never pays for another one's imports. One that cannot be
loaded is an error with its name, never skipped. An entry point is a callable without arguments that returns a Backend:

    [project.entry-points."datong.backends"]
    mychip = "datong_mychip:create"
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from datong import env
from datong.errors import AbiMismatch, BackendError, BackendMissing, DatongError
from datong.spec.backend import API_VERSION, Backend, DeviceInfo

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "datong.backends"
_BUILTIN = {"cpu": "datong.backends.cpu:create", "reference": "datong.backends.reference:create"}
_FAMILIES = {
    "torch": "datong.backends.torch",
    "sim": "datong.backends.sim",
    "onnxruntime": "datong.backends.onnxruntime",
}
_CHIPS = "datong.backends.torch"  # the family of every chip that has a descriptor


def entry_points(group: str) -> Iterable[EntryPoint]:
    """Those of installed packages. Imported late: 15 ms, and a look into every installed package."""
    from importlib.metadata import entry_points as find

    return find(group=group)


def stacks() -> Iterable[str]:
    """Names of the chips that have a descriptor."""
    from datong.chips.load import stacks as find

    return find()


def _sources() -> dict[str, str]:
    """Every backend that can be known without loading it: name -> `module:callable`."""
    found = dict(_BUILTIN)
    for point in entry_points(group=GROUP):
        other = found.get(point.name) or _family_of(point.name)
        if other and other != point.value:
            raise BackendError(
                f"backend {point.name}",
                f"two backends have this name: `{other}` and `{point.value}`",
                "uninstall one of them, or rename its entry point",
            )
        found[point.name] = point.value
    return found


def names() -> list[str]:
    """Names of the known backends; loads only the C plug-ins of DATONG_PLUGINS, whose names are inside them."""
    return sorted({*_sources(), *_FAMILIES, *stacks(), *_plugins()})


def backend_for(device: str) -> Backend:
    """The backend of a device: `cpu`, `torch:cpu`, `ascend:1`, `sim:biren-br1xx` …; one object per process.

    The part before `:` may be the backend's name or that of a family; otherwise every backend is asked for its devices.

    Raises:
        BackendMissing: no backend has such a device.
        BackendError, AbiMismatch: the backend is there and cannot be used.
    """
    name = device.partition(":")[0]
    if device in _BUILTIN:  # no other can take its name; who tries is told by `devices` and `names`
        return _load(device, _BUILTIN[device])
    sources = _sources()
    if name in sources:
        backend = _load(name, sources[name])
        if device == name or any(info.name == device for info in backend.devices()):
            return backend
    if name in _plugins():
        return _plugins()[name]
    if module := _family_of(name):
        return _member(module, device)
    everything = _everything()
    for backend in everything:
        if any(info.name == device for info in backend.devices()):
            return backend
    known = sorted({info.name for info in devices()})
    raise BackendMissing(
        "device",
        f"`{device}` should be a device of this machine, there are {', '.join(f'`{k}`' for k in known) or 'none'}",
        f"backends: {', '.join(names())}; others are Python packages with an entry point in `{GROUP}`, or paths in "
        f"{env.PLUGINS.name}",
    )


def devices() -> list[DeviceInfo]:
    """Every device present now, over all backends. Raises BackendError with the name of one that cannot be loaded."""
    found = [info for backend in _everything() for info in backend.devices()]
    return found + [info for module in _FAMILIES.values() for info in _import(module).present()]


def _everything() -> list[Backend]:
    loaded = [_load(name, target) for name, target in sorted(_sources().items())]
    return loaded + list(_plugins().values())


def _family_of(name: str) -> str:
    """The module of the family that a name belongs to, "" if to none."""
    return _FAMILIES.get(name) or (_CHIPS if name in stacks() else "")


@cache
def _member(module: str, device: str) -> Backend:
    """The backend of one device of a family."""
    return _checked(f"backend {device}", device, _import(module).create(device))


@cache
def _import(module: str) -> ModuleType:
    """A family. Raises BackendError if it does not import: it is part of Datong, and imports nothing heavy."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"`{module}` should import, got: {error}"
        raise BackendError(f"backend {module}", message, "reinstall datong: pip install .") from error


@cache
def _load(name: str, target: str) -> Backend:
    """Import an entry point, call it and check what it returns."""
    where = f"backend {name}"
    try:
        backend = _imported(name, target)()
    except DatongError:
        raise
    except Exception as error:
        message = f"`{target}` should load, got {type(error).__name__}: {error}"
        raise BackendError(where, message, "reinstall or uninstall the package that brings it") from error
    return _checked(where, name, backend)


def _imported(name: str, target: str) -> Callable[[], object]:
    """The callable that `module:callable` names."""
    if _BUILTIN.get(name) == target:
        module, _, attribute = target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
    else:
        from importlib.metadata import EntryPoint

        found = EntryPoint(name, target, GROUP).load()
    return cast(Callable[[], object], found)


def _checked(where: str, name: str, backend: object) -> Backend:
    if not isinstance(backend, Backend):
        raise BackendError(where, f"should have the methods of spec/backend.py, is a {type(backend).__name__}")
    if backend.name != name:
        raise BackendError(where, f"should call itself `{name}`, calls itself `{backend.name}`")
    if backend.api_version[0] != API_VERSION[0]:
        got = ".".join(map(str, backend.api_version))
        raise AbiMismatch(where, f"should speak interface version {API_VERSION[0]}, speaks {got}")
    return backend


def _plugins() -> dict[str, Backend]:
    """Backends of the C plug-ins that DATONG_PLUGINS names."""
    found: dict[str, Backend] = {}
    for path in env.plugins():
        backend = _load_plugin(path)
        if backend.name in found or backend.name in _sources():
            raise BackendError(f"backend {backend.name}", f"another backend has the name that `{path}` gives itself")
        found[backend.name] = backend
    return found


@cache
def _load_plugin(path: Path) -> Backend:
    from datong.backends.plugin import PluginBackend

    backend = PluginBackend(path)
    return _checked(f"plug-in {path.name}", backend.name, backend)
