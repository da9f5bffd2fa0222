"""Which backends there are: built in, installed as entry points (group `datong.backends`), or named in DATONG_PLUGINS.

A backend is imported only when it is asked for, so `cpu` never pays for another one's imports. One that cannot be
loaded is an error with its name, never skipped. An entry point is a callable without arguments that returns a Backend:

    [project.entry-points."datong.backends"]
    mychip = "datong_mychip:create"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from datong import env
from datong.errors import AbiMismatch, BackendError, BackendMissing, DatongError
from datong.spec.backend import API_VERSION, Backend, DeviceInfo

GROUP = "datong.backends"
_BUILTIN = {"cpu": "datong.backends.cpu:create", "reference": "datong.backends.reference:create"}


def _sources() -> dict[str, EntryPoint]:
    """Every backend that can be known without loading it, by name."""
    found = {name: EntryPoint(name, target, GROUP) for name, target in _BUILTIN.items()}
    for point in entry_points(group=GROUP):
        if point.name in found and found[point.name].value != point.value:
            raise BackendError(
                f"backend {point.name}",
                f"two backends have this name: `{found[point.name].value}` and `{point.value}`",
                "uninstall one of them, or rename its entry point",
            )
        found[point.name] = point
    return found


def names() -> list[str]:
    """Names of the known backends; loads only the C plug-ins of DATONG_PLUGINS, whose names are inside them."""
    return sorted({*_sources(), *_plugins()})


def backend_for(device: str) -> Backend:
    """The backend of a device: `cpu`, `reference`, `npu:0` …; one object per process.

    The part before `:` may be the backend's name; otherwise every backend is asked for its devices.

    Raises:
        BackendMissing: no backend has such a device.
        BackendError, AbiMismatch: the backend is there and cannot be used.
    """
    sources, name = _sources(), device.partition(":")[0]
    if name in sources:
        backend = _load(sources[name].name, sources[name].value)
        if device == name or any(info.name == device for info in backend.devices()):
            return backend
    if name in _plugins():
        return _plugins()[name]
    everything = _everything()
    for backend in everything:
        if any(info.name == device for info in backend.devices()):
            return backend
    known = sorted({info.name for backend in everything for info in backend.devices()})
    raise BackendMissing(
        "device",
        f"`{device}` should be a device of this machine, there are {', '.join(f'`{k}`' for k in known) or 'none'}",
        f"backends: {', '.join(names())}; others are Python packages with an entry point in `{GROUP}`, or paths in "
        f"{env.PLUGINS.name}",
    )


def devices() -> list[DeviceInfo]:
    """Every device present now, over all backends. Raises BackendError with the name of one that cannot be loaded."""
    return [info for backend in _everything() for info in backend.devices()]


def _everything() -> list[Backend]:
    loaded = [_load(point.name, point.value) for _, point in sorted(_sources().items())]
    return loaded + list(_plugins().values())


@cache
def _load(name: str, target: str) -> Backend:
    """Import an entry point, call it and check what it returns."""
    where = f"backend {name}"
    try:
        backend = EntryPoint(name, target, GROUP).load()()
    except DatongError:
        raise
    except Exception as error:
        message = f"`{target}` should load, got {type(error).__name__}: {error}"
        raise BackendError(where, message, "reinstall or uninstall the package that brings it") from error
    return _checked(where, name, backend)


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
