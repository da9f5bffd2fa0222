"""What keeps programs from the chips of each recorded machine, and what to do."""

from __future__ import annotations

import pytest

from datong.chips import load
from datong.chips.detect import Finding, diagnose, find, hurdles, survey, usable

# what is in the way, by stack; nothing: every device within reach is usable
IN_THE_WAY: dict[str, set[tuple[str, str, str]]] = {
    "ascend-910b-x8": set(),
    "ascend-910b-container": set(),
    "ascend-a3": {("ascend", "adapter", "missing")},
    "ascend-310p-duo": {
        ("ascend", "toolkit", "missing"),
        ("ascend", "torch", "missing"),
        ("ascend", "adapter", "missing"),
    },
    "biren-br1xx": set(),
    "biren-br2xx": set(),
    "biren-bare": {("biren-br1xx", what, "missing") for what in ("toolkit", "torch", "adapter")},
    "enflame-s60": {("enflame", "adapter", "broken")},
    "moorethreads-s5000": set(),
    "iluvatar-bi-v150": {("iluvatar", "torch", "broken")},
    "metax-c500": set(),
    "metax-container": {
        ("metax", "container", "broken"),
        ("metax", "toolkit", "missing"),
        ("metax", "torch", "broken"),
    },
    "nvidia-h100": set(),
    "amd-mi300x": {("amd", "torch", "broken")},
    "hygon-k100": set(),
    "cambricon-mlu370": {("cambricon", "toolkit", "missing")},
    "kunlunxin-p800": {("kunlunxin", "torch", "missing"), ("kunlunxin", "adapter", "missing")},
    "two-vendors": {("ascend", "permission", "broken"), ("ascend", "torch", "broken")},
    "none": set(),
}


def look(machine) -> list[Finding]:
    return diagnose(machine, find(machine))


def one(findings: list[Finding], what: str, state: str | None = None) -> Finding:
    [found] = [f for f in findings if f.what == what and state in (None, f.state)]
    return found


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_recorded_machine(name: str, make) -> None:
    result = survey(make(name))
    assert {(f.stack, f.what, f.state) for f in result.findings if f.stops} == IN_THE_WAY[name]
    for f in result.findings:
        assert f.hint or not f.stops, "what stops a chip comes with advice"
        assert (f.grade in ("A", "B", "C")) == bool(f.source) or not f.grade
    stopped = {stack for stack, _, _ in IN_THE_WAY[name]}
    assert result.usable == [f for f in result.found if f.index is not None and f.stack.name not in stopped]


def test_every_machine_is_here(compose) -> None:
    assert set(IN_THE_WAY) == set(compose.NAMES)


# ── driver and container ─────────────────────────────────────────────────────────────────────────────────────────────

NODES = tuple(f"/dev/davinci{i}" for i in range(8))


def test_no_driver(make) -> None:
    found = one(look(make("ascend-910b-x8", remove=NODES)), "driver")
    assert found.state == "missing" and "the kernel driver is not loaded" in found.detail
    assert found.hint.startswith("install Huawei's driver (https://")


def test_a_container_without_devices(make) -> None:
    machine = make("ascend-910b-container", remove=("/dev/davinci3", "/dev/davinci5"))
    found = one(look(machine), "driver")
    assert found.state == "broken" and "this container has none" in found.detail
    assert "--device /dev/davinci0 … --device /dev/davinci_manager" in found.hint and found.grade == "B"


def test_a_container_without_a_manager_node(make) -> None:
    found = one(look(make("ascend-910b-container", remove=("/dev/hisi_hdc",))), "container")
    assert found.detail == "this container has the devices, but not /dev/hisi_hdc"
    assert found.hint == "start it with --device /dev/hisi_hdc" and found.grade == "A"


def test_one_of_two_manager_nodes_is_enough(make) -> None:
    remove, either = ("/dev/davinci_manager",), "/dev/davinci_manager_docker"
    assert not any(f.stops for f in look(make("ascend-910b-container", remove=remove, files={either: ""})))


def test_neither_of_two_manager_nodes(make) -> None:
    findings = look(make("ascend-910b-container", remove=("/dev/davinci_manager",)))
    assert "not /dev/davinci_manager or /dev/davinci_manager_docker" in one(findings, "container").detail


def test_a_manager_node_missing_on_the_host(make) -> None:
    found = one(look(make("ascend-910b-x8", remove=("/dev/devmm_svm",))), "driver", "broken")
    assert found.detail == "/dev/devmm_svm is not there: the driver is loaded in part"


def test_nodes_of_one_device_are_closed(make) -> None:
    machine = make("ascend-910b-x8", access={"/dev/davinci2": "HwHiAiUser"})
    found = find(machine)
    findings = diagnose(machine, found)
    said = one(findings, "permission")
    assert said.node == "/dev/davinci2" and "usermod -aG HwHiAiUser" in said.hint
    assert [f.physical for f in found if hurdles(f, findings)] == [2]
    assert len(usable(found, findings)) == 7


def test_a_closed_manager_node_stops_all(make) -> None:
    machine = make("ascend-910b-x8", access={"/dev/devmm_svm": "root"})
    found = find(machine)
    findings = diagnose(machine, found)
    assert one(findings, "permission").hint == "run as root"
    assert usable(found, findings) == []


def test_driver_without_its_tool(make) -> None:
    found = one(look(make("ascend-910b-container", remove=("/smi/npu-smi.txt",))), "tool")
    assert found.state == "note" and "npu-smi is not on PATH" in found.detail and "container" in found.hint


# ── toolkit ──────────────────────────────────────────────────────────────────────────────────────────────────────────

VERSION = "/usr/local/Ascend/cann/version.info"


def test_toolkit_named_by_a_variable(make) -> None:
    machine = make(
        "ascend-910b-x8",
        environ={"ASCEND_TOOLKIT_HOME": "/gone", "ASCEND_HOME_PATH": "/opt/cann/"},
        files={"/opt/cann/share/info/runtime/version.info": "Version=9.0.0\n"},
    )
    findings = look(machine)
    assert one(findings, "toolkit", "ok").detail == "/opt/cann (from ASCEND_HOME_PATH), version 9.0.0"
    assert one(findings, "toolkit", "note").detail == "ASCEND_TOOLKIT_HOME=/gone names a directory that is not there"


def test_toolkit_without_a_version(make) -> None:
    findings = look(make("ascend-910b-x8", files={VERSION: "nothing here\n"}))
    assert one(findings, "toolkit").detail == "/usr/local/Ascend/cann, version not told"
    assert one(findings, "adapter").state == "ok", "an unknown version contradicts nothing"


def test_toolkit_that_comes_with_torch(make) -> None:
    assert [f for f in look(make("nvidia-h100")) if f.what == "toolkit"] == []


# ── torch and adapter ────────────────────────────────────────────────────────────────────────────────────────────────


def test_adapter_is_missing(make) -> None:
    found = one(look(make("ascend-a3")), "adapter")
    assert (found.detail, found.grade) == ("torch-npu is not installed", "A")
    assert found.hint == "pip install torch-npu==2.10.0.post4, which goes with torch 2.10.0 and CANN 9.1.0"


def test_the_toolkit_decides_which_adapter(make) -> None:
    found = one(look(make("ascend-a3", files={VERSION: "Version=8.5.0\n"})), "adapter")
    text = "pip install torch-npu==2.9.0, which goes with torch 2.9.0 and CANN 8.5.0 (here: torch 2.10.0+cpu)"
    assert (found.hint, found.grade) == (text, "B")


def test_adapter_for_another_torch(make) -> None:
    found = one(look(make("ascend-910b-x8", python={"torch": "2.9.0+cpu"})), "adapter")
    assert found.state == "broken" and found.hint == "pip install torch==2.10.0"
    assert found.detail == "torch-npu 2.10.0.post4 is made for torch 2.10.0, and torch 2.9.0+cpu is installed"


def test_versions_of_which_nobody_speaks(make) -> None:
    found = one(look(make("ascend-910b-x8", files={VERSION: "Version=7.0.0\n"})), "adapter")
    assert found.state == "note" and "no published pair has these versions together" in found.detail
    assert found.hint == "published: torch 2.10.0, torch-npu 2.10.0.post4, CANN 9.1.0"


def test_torch_is_missing(make) -> None:
    found = one(look(make("metax-c500", python={"torch": None})), "torch")
    assert found.state == "missing" and "repos.metax-tech.com" in found.hint and "+metax" in found.hint


@pytest.mark.parametrize("torch", ["2.10.0", "2.10.0+cpu", "2.10.0+cu128", "2.10.0+corex.4.5.0"])
def test_torch_that_is_not_the_vendors(torch: str, make) -> None:
    found = one(look(make("metax-c500", python={"torch": torch})), "torch")
    assert found.state == "broken" and found.detail.startswith(f"torch {torch} is not MetaX's build")


def test_another_vendors_torch_under_an_adapter(make) -> None:
    found = one(look(make("ascend-910b-x8", python={"torch": "2.10.0+corex.4.5.0"})), "torch")
    assert (
        found.state == "broken"
        and "is Iluvatar CoreX's build" in found.detail
        and "environment of its own" in found.hint
    )


def test_a_cuda_build_of_stock_torch_is_stock(make) -> None:
    assert one(look(make("ascend-910b-x8", python={"torch": "2.10.0+cu128"})), "torch").state == "ok"


def test_torch_for_the_processor_alone(make) -> None:
    found = one(look(make("nvidia-h100", python={"torch": "2.13.0+cpu"})), "torch")
    assert found.state == "broken" and "a build for the CPU alone" in found.detail


def test_pip_install_is_said_only_of_what_is_on_pypi(make) -> None:
    """A stranger may own the name there."""
    for name in IN_THE_WAY:
        for found in look(make(name)):
            if found.what == "adapter" and found.state == "missing" and "pip install" in found.hint:
                assert load.stacks()[found.stack].adapter.package.source.startswith("PyPI"), found


def test_software_without_a_chip(make) -> None:
    found = one(look(make("none", environ={"container": "docker"})), "software")
    assert (found.stack, found.state) == ("ascend", "note") and "no Huawei chip shows itself" in found.detail
    assert "--device /dev/davinci0" in found.hint


def test_plain_torch_is_nobodys(make) -> None:
    machine = make("none", python={"torch": "2.13.0+cu130", "torch-npu": None})
    assert look(machine) == []


def test_stacks_that_cannot_be_told_apart(make) -> None:
    found = one(look(make("biren-bare")), "software")
    assert found.state == "note" and "could as well be biren-br2xx" in found.detail


def test_hidden_devices_are_said(make) -> None:
    findings = look(make("nvidia-h100"))
    assert one(findings, "count").detail == "2 hidden from this process by CUDA_VISIBLE_DEVICES=2,0"
