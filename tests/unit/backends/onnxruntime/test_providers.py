"""Names of providers, and the refusals that tell a user what there is."""

from pathlib import Path

import onnxruntime
import pytest

from datong.backends.onnxruntime import create, present
from datong.backends.onnxruntime.providers import CPU, Provider, available, find
from datong.errors import BackendError, BackendMissing, DatongError
from datong.spec.backend import Backend

AZURE = "AzureExecutionProvider"  # in every wheel of PyPI; takes only nodes of its own


def test_the_cpu_provider_is_first_and_measured_and_the_others_are_not_run():
    first, *others = present()
    assert (first.name, first.evidence, first.attributes["provider"]) == ("onnxruntime", "measured", CPU)
    assert first.description == f"ONNX Runtime {onnxruntime.__version__}, {CPU}"
    assert {info.evidence for info in others} <= {"not run"}
    assert {p.name for p in available()} >= set(onnxruntime.get_available_providers())


@pytest.mark.parametrize("device", ["onnxruntime", f"onnxruntime:{CPU}", f"onnxruntime:{AZURE}"])
def test_a_backend_has_the_name_that_was_asked_for(device):
    backend = create(device)
    assert isinstance(backend, Backend) and backend.name == device
    assert [info.attributes["provider"] for info in backend.devices()] == [device.partition(":")[2] or CPU]


@pytest.mark.parametrize("device", ["onnxruntime:CANNExecutionProvider", f"onnxruntime:{CPU}:1", "onnxruntime:x:0"])
def test_a_missing_provider_names_those_there_are(device):
    with pytest.raises(BackendMissing) as caught:
        create(device)
    text = str(caught.value)
    assert f"`{device}` should be a provider" in text and "there are `onnxruntime`" in text
    assert "DATONG_ORT_LIBRARIES" in text


def test_without_onnxruntime_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("datong.backends.onnxruntime.find_spec", lambda name: None)
    assert present() == []
    with pytest.raises(BackendMissing, match="not installed\nhint: pip install 'datong\\[onnxruntime\\]'"):
        create("onnxruntime")


def test_a_build_that_does_not_import_is_an_error_with_its_words_and_hides_no_other_device(monkeypatch):
    def fails(name):
        raise ImportError("import numpy failed")

    monkeypatch.setattr("datong.backends.onnxruntime.import_module", fails)
    with pytest.raises(BackendError, match="package onnxruntime should import, got ImportError: import numpy failed"):
        create("onnxruntime")
    (info,) = present()
    assert (info.name, info.evidence) == ("onnxruntime", "not run")
    assert info.description.startswith("cannot be used: ") and info.description.endswith("import numpy failed")


def test_a_number_is_the_device_id_of_a_built_in_provider():
    provider = find(f"onnxruntime:{AZURE}:2")
    assert provider.device == f"onnxruntime:{AZURE}:2"
    _, chosen = provider.configure({"a": "b"})
    assert chosen == {"providers": [(AZURE, {"a": "b", "device_id": "2"}), CPU]}
    assert Provider(CPU).configure({})[1] == {"providers": [CPU]}


def test_a_library_that_is_none_is_an_error_with_its_path(monkeypatch, tmp_path):
    library = tmp_path / "libnone.so"
    library.write_text("no library")
    monkeypatch.setenv("DATONG_ORT_LIBRARIES", f"mine={library}")
    with pytest.raises(BackendError, match=f"`{library}` should register as provider library `mine`, got: ") as caught:
        available()
    assert "name=path" in str(caught.value)


def test_a_real_library_without_the_entry_points_is_refused(monkeypatch):
    """The library of onnxruntime itself is a shared library, and no provider's."""
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*")
    monkeypatch.setenv("DATONG_ORT_LIBRARIES", f"wrong={library}")
    with pytest.raises(BackendError, match="should register as provider library `wrong`"):
        create("onnxruntime:wrong")


@pytest.mark.parametrize("text", ["libx.so", "=libx.so", "x="])
def test_pairs_that_are_none(monkeypatch, text):
    monkeypatch.setenv("DATONG_ORT_LIBRARIES", text)
    with pytest.raises(DatongError, match=f"`DATONG_ORT_LIBRARIES` should hold name=path, one is `{text}`"):
        available()
