"""Public means listed, and `import datong` is nearly free."""

import subprocess
import sys

import pytest

import datong

PUBLIC = ["DatongError", "Model", "__version__", "compile", "devices", "errors", "import_checkpoint", "load"]


def test_the_list():
    assert sorted(datong.__all__) == PUBLIC == dir(datong)
    assert all(getattr(datong, name) is not None for name in PUBLIC)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module `datong` has no attribute `nothing`"):
        datong.nothing  # noqa: B018


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('modules', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_it_loads_none_of_its_parts():
    """What it costs in milliseconds: bench/step_overhead.py."""
    loaded = {name for name in modules_after("import datong") if name.startswith("datong")}
    assert loaded == {"datong"}


def test_the_command_line_starts_without_what_its_verbs_need():
    loaded = modules_after("from datong.cli.app import app")
    assert (
        loaded & {"numpy", "onnx", "onnx_ir", "msgspec", "tokenizers", "jinja2", "ml_dtypes", "datong._native"} == set()
    )
    assert {name for name in loaded if name.startswith("datong.")} == {
        name for name in loaded if name.startswith("datong.cli")
    } | {"datong.errors"}
