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


def test_importing_it_loads_nothing_heavy_and_takes_milliseconds():
    code = (
        "import sys, time, typing, importlib\n"
        "start = time.perf_counter()\n"
        "import datong\n"
        "print(1000 * (time.perf_counter() - start), 'numpy' in sys.modules, 'datong.engine' in sys.modules)"
    )
    # The best of three: the machine may be busy.
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert min(float(ms) for ms, *_ in runs) < 20
    assert {(numpy, engine) for _, numpy, engine in runs} == {("False", "False")}
