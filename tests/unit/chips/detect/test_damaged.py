"""Machines that lie, hang or are broken: the search ends, says what it could not read, and keeps what it could."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from datong.chips.detect import diagnose, find
from datong.chips.detect.machine import ENTRIES, NODES, Machine
from datong.errors import DatongError

TOOL = "smi/npu-smi.txt"


def survey(machine: Machine):
    found = find(machine)
    return found, diagnose(machine, found)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("hangs", "`npu-smi info` gave no answer: it did not answer in time"),
        ("exit 1", "`npu-smi info` gave no answer: exit 1"),
    ],
)
def test_the_tool_fails(status: str, text: str, make) -> None:
    machine = make("ascend-910b-x8", files={"/smi/npu-smi.status": status})
    found, findings = survey(machine)
    assert len(found) == 8 and {f.memory_bytes for f in found} == {None}
    assert {f.generation.name for f in found if f.generation} == {"a2"}, "PCI still tells"
    [said] = [f for f in findings if f.what == "tool"]
    assert said.state == "note" and said.detail == text and "npu-smi info" in said.hint
    assert [f for f in findings if f.what == "count"] == [], "said once"


@pytest.mark.parametrize(
    "printed", ["", "DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\n", "\x00\xff\n| 0 |" * 900, "| 9" * 80000]
)
def test_the_tool_prints_garbage(printed: str, make) -> None:
    machine = make("ascend-910b-x8")
    (machine.root / TOOL).write_bytes(printed.encode("latin-1"))
    found, findings = survey(machine)
    assert len(found) == 8
    assert "`npu-smi info` answers, but no device can be read from it" in [f.detail for f in findings]


def test_the_tool_counts_absurdly(make) -> None:
    machine = make("cambricon-mlu370")
    lines = [f"| {i} / MLU370-X8 v1 | 0000:39:00.0 | 0 |\n| 0% | 0 MiB/ 23374 MiB |" for i in range(3 * NODES)]
    (machine.root / "smi/cnmon.txt").write_text("\n".join(lines))
    found, _ = survey(machine)
    assert [f.node for f in found] == ["/dev/cambricon_dev0", "/dev/cambricon_dev1"]
    assert f"the tool lists {3 * NODES} devices; only {NODES} are looked at" in found[0].doubts
    assert f"`cnmon` lists {NODES} devices, 2 within reach" in found[0].doubts


def test_numbers_without_end(make) -> None:
    machine = make("cambricon-mlu370")
    text = (machine.root / "smi/cnmon.txt").read_text()
    (machine.root / "smi/cnmon.txt").write_text(
        text.replace("23374", "9" * 5000).replace("| 0 ", "| " + "1" * 5000 + " ")
    )
    found, _ = survey(machine)
    assert [f.memory_bytes for f in found] == [None, None]


def test_absurdly_many_nodes(make) -> None:
    machine = make("ascend-910b-x8")
    for i in range(8, NODES + 20):
        (machine.root / f"dev/davinci{i}").write_text("")
    found, findings = survey(machine)
    assert len(found) == NODES
    assert f"/dev/davinci[0-9]* matches more than {NODES} paths; the rest was not looked at" in machine.trouble
    assert any(f.what == "files" and f.state == "note" for f in findings)


def test_absurdly_many_pci_functions(make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make("ascend-910b-x8")
    names = Machine.names
    monkeypatch.setattr(Machine, "names", lambda self, path, limit=ENTRIES: names(self, path, min(limit, 4)))
    found, _ = survey(machine)
    assert len(found) == 8
    assert "/sys/bus/pci/devices has more than 4 entries; the rest was not looked at" in machine.trouble


DEVICE = "sys/bus/pci/devices/0000:c1:00.0"


def test_unreadable_sysfs_files(make) -> None:
    machine = make("ascend-910b-x8")
    (machine.root / DEVICE / "device").unlink()
    (machine.root / DEVICE / "device").mkdir()
    for path, text in (
        ("0000:c2:00.0/vendor", "huawei\n"),
        ("0000:81:00.0/class", ""),
        ("0000:82:00.0/numa_node", "?"),
    ):
        (machine.root / "sys/bus/pci/devices" / path).write_text(text)
    found, findings = survey(machine)
    assert len(found) == 8 and found[0].generation is not None
    assert f"/{DEVICE}/device could not be read: it is not a file" in machine.trouble
    assert (
        "/sys/bus/pci/devices/0000:c2:00.0/vendor should hold a number such as 0x19e5, holds `huawei`"
        in machine.trouble
    )
    assert [f.detail for f in findings if f.what == "files"] == machine.trouble
    assert not any(f.stops for f in findings), "eight devices work all the same"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_files_of_others(make) -> None:
    machine = make("ascend-910b-x8")
    (machine.root / DEVICE / "vendor").chmod(0)
    assert len(find(machine)) == 8
    assert f"/{DEVICE}/vendor could not be read: Permission denied" in machine.trouble


def test_a_pipe_does_not_hang_us(make) -> None:
    machine = make("ascend-910b-x8")
    (machine.root / DEVICE / "vendor").unlink()
    os.mkfifo(machine.root / DEVICE / "vendor")
    assert len(find(machine)) == 8
    assert f"/{DEVICE}/vendor could not be read: it is not a file" in machine.trouble


def test_reading_is_bounded(make) -> None:
    machine = make("ascend-910b-x8", files={"/usr/local/Ascend/cann/version.info": "x" * 10000 + "\nVersion=9.1.0\n"})
    assert len(machine.read("/usr/local/Ascend/cann/version.info") or "") == 4096
    assert find(machine)


def test_links_that_lead_nowhere(make) -> None:
    machine = make("ascend-910b-x8")
    (machine.root / "dev/davinci8").symlink_to("/nowhere")
    assert len(find(machine)) == 8


@pytest.mark.parametrize("text", ["{", "[]", '{"torch": 2}'])
def test_a_damaged_recording_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "python.json").write_text(text)
    with pytest.raises(DatongError, match=r"python\.json should be a JSON object"):
        Machine(tmp_path)


def test_an_empty_directory_is_a_machine_without_chips(tmp_path: Path) -> None:
    found, findings = survey(Machine(tmp_path))
    assert (found, findings) == ([], [])


def test_the_environment_of_a_recorded_machine_is_its_own(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "")
    assert all(f.index is not None for f in find(make("ascend-910b-x8")))
    assert json.dumps(dict(make("two-vendors").environ)) == "{}"
