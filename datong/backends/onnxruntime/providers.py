"""Which execution providers there are, and how a session is told to use one.

Two kinds: those built into the installed ONNX Runtime (`get_available_providers`), and plug-ins, shared libraries that
are registered under a name and then show devices (`get_ep_devices`). ONNX Runtime lists a built-in provider also when
its driver or card is missing; only opening a session tells. So every provider but the CPU's is `not run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]

from datong import env
from datong.errors import BackendError, BackendMissing
from datong.spec.backend import DeviceInfo

CPU = "CPUExecutionProvider"
FAMILY = "onnxruntime"


@dataclass(frozen=True)
class Provider:
    """One execution provider on one device."""

    name: str
    number: int = 0  # of its devices
    plugin: Any = None  # OrtEpDevice; None: built in

    @property
    def device(self) -> str:
        """The name that a user types."""
        suffix = f":{self.number}" if self.number else ""
        return FAMILY if self.name == CPU else f"{FAMILY}:{self.name}{suffix}"

    def configure(self, options: Mapping[str, str]) -> tuple[onnxruntime.SessionOptions, dict[str, Any]]:
        """Session options, and the keyword arguments of InferenceSession that choose this provider.

        ONNX Runtime puts nodes that the provider refuses on the CPU's; `session.py` finds out which.
        """
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors come as exceptions; warnings about folded constants help nobody
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.plugin is not None:
            settings.add_provider_for_devices([self.plugin], dict(options))
            return settings, {}
        if self.name == CPU:
            return settings, {"providers": [CPU]}
        chosen = dict(options) | ({"device_id": str(self.number)} if self.number else {})
        return settings, {"providers": [(self.name, chosen), CPU]}


def available() -> list[Provider]:
    """Every provider that ONNX Runtime offers here, the CPU's first. Registers the libraries of DATONG_ORT_LIBRARIES.

    Raises BackendError naming a library that cannot be registered.
    """
    for name, path in env.ort_libraries():
        _register(name, path)
    plugins: list[Provider] = []
    for device in onnxruntime.get_ep_devices():
        if device.ep_name != CPU:
            number = sum(known.name == device.ep_name for known in plugins)
            plugins.append(Provider(device.ep_name, number, device))
    taken = {CPU, *(plugin.name for plugin in plugins)}
    built_in = [Provider(name) for name in onnxruntime.get_available_providers() if name not in taken]
    return [Provider(CPU), *plugins, *built_in]


@cache
def _register(name: str, path: Path) -> None:
    try:
        onnxruntime.register_execution_provider_library(name, str(path))
    except AttributeError:
        version = onnxruntime.__version__
        raise BackendError(
            FAMILY,
            f"plug-in providers need ONNX Runtime 1.23 or later, this is {version}",
            "pip install -U onnxruntime",
        ) from None
    except Exception as error:  # the exceptions of ONNX Runtime have no common base
        raise BackendError(
            FAMILY,
            f"`{path}` should register as provider library `{name}`, got: {one_line(error)}",
            f"{env.ORT_LIBRARIES.name} holds name=path pairs; the library must fit ONNX Runtime "
            f"{onnxruntime.__version__}",
        ) from error


def find(device: str) -> Provider:
    """The provider that a device name asks for. Raises BackendMissing naming those there are."""
    wanted = device.removeprefix(FAMILY).removeprefix(":")
    name, _, number = (wanted or CPU).partition(":")
    found = available()
    for provider in found:
        if provider.name == name and number in (str(provider.number), "" if provider.number == 0 else "-"):
            return provider
        # a built-in provider does not say how many devices it has
        if provider.name == name and provider.plugin is None and name != CPU and number.isdecimal():
            return Provider(name, int(number))
    names = ", ".join(dict.fromkeys(f"`{provider.device}`" for provider in found))
    raise BackendMissing(
        FAMILY,
        f"`{device}` should be a provider of ONNX Runtime {onnxruntime.__version__}, there are {names}",
        f"install the build that has it (onnxruntime-cann, …), or name its library in {env.ORT_LIBRARIES.name}",
    )


def info(provider: Provider) -> DeviceInfo:
    """What `datong devices` shows of it."""
    evidence = "measured" if provider.name == CPU else "not run"
    text = f"ONNX Runtime {onnxruntime.__version__}, {provider.name}"
    attributes: dict[str, str | int | float | bool] = {"provider": provider.name}
    if provider.plugin is not None:
        text += f", plug-in of {provider.plugin.ep_vendor}, {provider.plugin.device.type.name}"
        attributes |= {"plugin": True, "vendor": str(provider.plugin.ep_vendor)}
    return DeviceInfo(provider.device, text, 0, evidence, attributes)


def one_line(error: Exception) -> str:
    """The text of an exception of ONNX Runtime, short enough for a sentence."""
    return " ".join(str(error).split())[:500]
