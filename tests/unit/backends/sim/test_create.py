"""Which chips can be simulated, and what is said before any of them runs."""

import subprocess
import sys

import pytest

from datong import env
from datong.backends import sim
from datong.errors import BackendMissing, DatongError

SEVEN = [
    "sim:ascend-910b",
    "sim:biren-br1xx-br106",
    "sim:biren-br2xx-br200",
    "sim:enflame-s60",
    "sim:iluvatar-bi-v150",
    "sim:metax-c500",
    "sim:moorethreads-s5000",
]


def test_present_lists_the_seven_and_calls_them_simulated() -> None:
    found = sim.present()
    assert set(SEVEN) <= {info.name for info in found}
    assert {info.evidence for info in found} == {"simulated"}
    for info in found:
        assert sim.create(info.name).name == info.name  # each name that is shown can be typed


def test_nothing_starts_and_torch_is_not_imported() -> None:
    code = (
        "import sys; from datong.backends import sim; sim.present(); b = sim.create('sim:metax-c500'); "
        "print(b.devices()[0].memory_bytes, 'torch' in sys.modules, b._worker)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(64 * 2**30), "False", "None"]


@pytest.mark.parametrize("device", ["sim", "sim:", "sim:toaster", "metax"])
def test_a_chip_that_is_not_there(device: str) -> None:
    with pytest.raises(BackendMissing):
        sim.create(device)


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "_has_torch", lambda: False)
    assert sim.present() == []
    with pytest.raises(BackendMissing, match="should have PyTorch to run on") as caught:
        sim.create("sim:metax-c500")
    assert 'pip install "datong[torch]"' in (caught.value.hint or "")


def test_memory_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.SIM_MEMORY.name, "12345")
    assert sim.create("sim:metax-c500").devices()[0].memory_bytes == 12345
    monkeypatch.setenv(env.SIM_MEMORY.name, "much")
    with pytest.raises(DatongError, match="must be a whole number of bytes from 1, it is `much`"):
        sim.create("sim:metax-c500")


def test_operators_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.SIM_WITHOUT.name, " aten::mm, aten::silu,")
    assert env.sim_without() == {"aten::mm", "aten::silu"}
