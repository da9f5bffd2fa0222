"""The door to the outside, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datong.chips.detect import Machine
from datong.chips.detect.pci import same_address


def test_this_machine_is_looked_at_without_heavy_imports() -> None:
    """Neither torch nor any adapter is imported, and the search ends on any machine."""
    code = (
        "import sys; from datong.chips.detect import here\n"
        "result = here(); print(len(result.found))\n"
        "heavy = {'torch', 'torch_npu', 'torch_musa', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert here() is result"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().isdigit()


def test_distributions_of_this_machine() -> None:
    machine = Machine()
    assert machine.distribution("ml-dtypes") == machine.distribution("ml_dtypes") is not None
    assert machine.distribution("torch-of-nobody") is None


def test_files_of_this_machine() -> None:
    machine = Machine()
    assert machine.read("/proc/version") and machine.trouble == []
    assert machine.names("/nowhere") == [] and machine.read("/nowhere") is None and machine.trouble == []
    assert machine.read("/proc") is None and machine.trouble == ["/proc could not be read: it is not a file"]
    assert machine.read("/proc") is None and len(machine.trouble) == 1
    assert machine.denied("/dev/null") is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_a_node_of_somebody_else() -> None:
    assert Machine().denied("/etc/shadow") in ("shadow", "root")


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        ({}, {}, False),
        ({"/.dockerenv": ""}, {}, True),
        ({"/run/.containerenv": ""}, {}, True),
        ({"/proc/1/cgroup": "0::/kubepods/burstable/pod1\n"}, {}, True),
        ({"/proc/1/cgroup": "0::/init.scope\n"}, {}, False),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ({}, {"container": "podman"}, True),
    ],
)
def test_a_container(files: dict[str, str], environ: dict[str, str], expected: bool, compose, tmp_path: Path) -> None:
    for path, text in files.items():
        compose.write(tmp_path, path, text)
    assert Machine(tmp_path, environ).container is expected


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0000:9D:00.0", "0000:9d:00.0", True),
        ("00000000:9d:00.0", "0000:9d:00.0", True),
        ("9d:00.0", "0001:9d:00.0", True),  # no domain was said
        ("0000:9d:00.0", "0001:9d:00.0", False),
        ("0000:9d:00.0", "0000:9d:00.1", False),
        ("NA", "0000:9d:00.0", False),
    ],
)
def test_same_address(a: str, b: str, same: bool) -> None:
    assert same_address(a, b) is same and same_address(b, a) is same
