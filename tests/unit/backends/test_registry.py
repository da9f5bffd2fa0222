import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from datong.backends import registry
from datong.backends.reference import ReferenceBackend
from datong.errors import AbiMismatch, BackendError, BackendMissing


class Other(ReferenceBackend):
    name = "other"


class Future(Other):
    api_version = (2, 0)


def broken() -> None:
    raise ImportError("libchip.so.3: cannot open shared object file")


def pieces() -> object:
    return SimpleNamespace(name="other")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install entry points: name -> attribute of this module. The CPU backend and families stay out."""

    def make(**targets: str) -> None:
        points = [EntryPoint(n, f"{__name__}:{t}", registry.GROUP) for n, t in targets.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        monkeypatch.delitem(registry._BUILTIN, "cpu")
        monkeypatch.setattr(registry, "_FAMILIES", {})
        monkeypatch.setattr(registry, "stacks", lambda: ())

    registry._load.cache_clear()
    return make


def test_builtin_backend_and_one_object_per_process() -> None:
    assert registry.backend_for("reference").name == "reference"
    assert registry.backend_for("reference") is registry.backend_for("reference")


def test_entry_point(install: Callable[..., None]) -> None:
    install(other="Other")
    assert registry.backend_for("other").name == "other"
    assert registry.names() == ["other", "reference"]
    assert len(registry.devices()) == 2


def test_unknown_device_lists_the_known_ones(install: Callable[..., None]) -> None:
    install()
    with pytest.raises(BackendMissing) as caught:
        registry.backend_for("npu:0")
    assert "`npu:0` should be a device of this machine, there are `reference`" in caught.value.message
    assert "datong.backends" in (caught.value.hint or "")
    with pytest.raises(BackendMissing):
        registry.backend_for("reference:1")


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("broken", BackendError, "should load, got ImportError: libchip.so.3"),
        ("absent", BackendError, "should load, got AttributeError"),
        ("pieces", BackendError, "should have the methods of spec/backend.py, is a SimpleNamespace"),
        ("ReferenceBackend", BackendError, "should call itself `other`, calls itself `reference`"),
        ("Future", AbiMismatch, "should speak interface version 1, speaks 2.0"),
    ],
)
def test_a_broken_backend_is_an_error_with_its_name(
    install: Callable[..., None], target: str, error: type[BackendError], text: str
) -> None:
    install(other=target)
    for ask in (lambda: registry.backend_for("other"), registry.devices):
        with pytest.raises(error) as caught:
            ask()
        assert caught.value.where == "backend other"
        assert text in caught.value.message


def test_a_broken_backend_does_not_stand_in_the_way_of_another(install: Callable[..., None]) -> None:
    install(other="broken")
    assert registry.backend_for("reference").name == "reference"


def test_two_backends_of_one_name(install: Callable[..., None]) -> None:
    install(reference="Other")
    for ask in (registry.names, registry.devices, lambda: registry.backend_for("other")):
        with pytest.raises(BackendError, match="two backends have this name"):
            ask()
    assert type(registry.backend_for("reference")) is ReferenceBackend  # whoever wants its name


def test_a_missing_plug_in_is_an_error_with_its_name(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install()
    monkeypatch.setenv("DATONG_PLUGINS", str(tmp_path / "libdatong_ghost.so"))
    assert registry.backend_for("reference").name == "reference"
    with pytest.raises(BackendError, match=r"libdatong_ghost\.so"):
        registry.devices()


def test_asking_for_a_backend_imports_no_other_and_no_onnx() -> None:
    code = "import sys; from datong.backends.registry import backend_for, names; names(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {
        m for m in modules if m.startswith(("onnx", "torch", "datong.backends.reference", "datong.backends.cpu"))
    }
