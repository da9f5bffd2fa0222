"""Every recorded machine: which devices are found, as what, on what grounds; and what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from datong.chips import load
from datong.chips.detect import Found, find

MIB = 2**20

# device as typed, generation, number of the driver, MiB, node, PCI address
EXPECTED: dict[str, list[tuple[str | None, str | None, int | None, int | None, str | None, str | None]]] = {
    "ascend-910b-x8": [
        (f"ascend:{i}", "a2", i, 65536, f"/dev/davinci{i}", f"0000:{bus}:00.0")
        for i, bus in enumerate(["c1", "c2", "81", "82", "01", "02", "41", "42"])
    ],
    "ascend-910b-container": [
        ("ascend:0", "a2", 3, 65536, "/dev/davinci3", "0000:82:00.0"),
        ("ascend:1", "a2", 5, 65536, "/dev/davinci5", "0000:02:00.0"),
    ],
    "ascend-a3": [
        (f"ascend:{i}", "a3", i, 65536, f"/dev/davinci{i}", f"0000:{bus}:00.0")
        for i, bus in enumerate(["9d", "9f", "99", "9b"])
    ],
    "ascend-310p-duo": [
        ("ascend:0", "310p", 0, 44280, "/dev/davinci0", "0000:01:00.0"),
        ("ascend:1", "310p", 1, 43693, "/dev/davinci1", "0000:01:00.0"),
    ],
    "biren-br1xx": [
        ("biren-br1xx:0", "br106", 0, None, "/dev/biren/card_0", None),
        ("biren-br1xx:1", "br106", 1, None, "/dev/biren/card_1", None),
    ],
    "biren-br2xx": [("biren-br2xx:0", None, 0, None, "/dev/biren/card_0", None)],
    "biren-bare": [
        ("biren-br1xx:0", None, 0, None, "/dev/biren/card_0", None),
        ("biren-br1xx:1", None, 1, None, "/dev/biren/card_1", None),
    ],
    "enflame-s60": [
        ("enflame:0", "gcu300", 0, 49120, "/dev/gcu0", "0000:3d:00.0"),
        ("enflame:1", "gcu300", 1, 49120, "/dev/gcu1", "0000:3e:00.0"),
    ],
    "moorethreads-s5000": [
        ("moorethreads:0", "mp31", 0, 81920, "/dev/mtgpu.0", "0000:2a:00.0"),
        ("moorethreads:1", "mp31", 1, 81920, "/dev/mtgpu.1", "0000:3a:00.0"),
    ],
    "iluvatar-bi-v150": [
        ("iluvatar:0", "ivcore11", 2, 32768, "/dev/iluvatar2", "0000:13:00.0"),
        ("iluvatar:1", "ivcore11", 3, 32768, "/dev/iluvatar3", "0000:16:00.0"),
    ],
    "metax-c500": [
        ("metax:0", "c500", 0, 65536, "/dev/dri/renderD128", "0000:0f:00.0"),
        ("metax:1", "c500", 1, 65536, "/dev/dri/renderD129", "0000:34:00.0"),
    ],
    "metax-container": [
        (None, None, 0, None, None, "0000:0f:00.0"),
        ("metax:0", None, 1, None, "/dev/dri/renderD129", "0000:34:00.0"),
    ],
    "nvidia-h100": [
        ("nvidia:1", "hopper", 0, 81559, "/dev/nvidia0", "0000:1b:00.0"),
        (None, "hopper", 1, 81559, "/dev/nvidia1", "0000:43:00.0"),
        ("nvidia:0", "hopper", 2, 81559, "/dev/nvidia2", "0000:9b:00.0"),
        (None, "hopper", 3, 81559, "/dev/nvidia3", "0000:c3:00.0"),
    ],
    "amd-mi300x": [
        ("amd:0", None, 0, None, "/dev/dri/renderD128", "0000:05:00.0"),
        ("amd:1", None, 1, None, "/dev/dri/renderD129", "0000:26:00.0"),
    ],
    "hygon-k100": [("hygon:0", None, 0, None, "/dev/dri/renderD128", "0000:85:00.0")],
    "cambricon-mlu370": [
        ("cambricon:0", "mlu", 0, 23374, "/dev/cambricon_dev0", "0000:39:00.0"),
        ("cambricon:1", "mlu", 1, 23374, "/dev/cambricon_dev1", "0000:3d:00.0"),
    ],
    "kunlunxin-p800": [("kunlunxin:0", None, 0, None, "/dev/xpu0", "0000:52:00.0")],
    "two-vendors": [
        ("ascend:0", "310p", 0, 44280, "/dev/davinci0", "0000:01:00.0"),
        ("ascend:1", "310p", 1, 43693, "/dev/davinci1", "0000:01:00.0"),
        ("metax:0", "c500", 0, 65536, "/dev/dri/renderD128", "0000:0f:00.0"),
    ],
    "none": [],
}


def row(found: Found):
    return (
        found.device,
        found.generation.name if found.generation else None,
        found.physical,
        found.memory_bytes // MIB if found.memory_bytes else None,
        found.node,
        found.address,
    )


def steps(found: Found) -> dict[str, str]:
    """Conclusion of each step."""
    return {reason.step: reason.conclusion for reason in found.reasons}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_machine(name: str, make) -> None:
    machine = make(name)
    found = find(machine)
    assert [row(f) for f in found] == EXPECTED[name]
    assert machine.trouble == []
    assert {f.evidence for f in found} <= {"not run"}
    for f in found:  # the chain is whole and in order, whatever was seen
        assert [r.step for r in f.reasons[:5]] == ["pci", "node", "smi", "library", "torch"]
        assert all(r.looked_at and r.saw and r.conclusion for r in f.reasons)


def test_every_machine_and_every_stack_is_covered(compose) -> None:
    assert set(EXPECTED) == set(compose.NAMES)
    seen = {device.split(":")[0] for rows in EXPECTED.values() for device, *_ in rows if device}
    assert seen == set(load.stacks())


def test_a_container_says_what_it_does_not_have(make) -> None:
    found = find(make("ascend-910b-container"))
    assert {f.doubts for f in found} == {("PCI shows 8 cards, 2 devices within reach of this container",)}
    assert find(make("ascend-910b-x8"))[0].doubts == ()


def test_container_variable_and_nodes_disagree(make) -> None:
    found = find(make("ascend-910b-container", environ={"ASCEND_VISIBLE_DEVICES": "3,5,6"}))
    assert "ASCEND_VISIBLE_DEVICES=3,5,6 asks for 3 devices, and 2 are in reach" in found[0].doubts


def test_process_variable_on_top_of_a_container(make) -> None:
    """Its numbers count the devices of the container, not the nodes."""
    found = find(make("ascend-910b-container", environ={"ASCEND_RT_VISIBLE_DEVICES": "1"}))
    assert [(f.device, f.physical) for f in found] == [(None, 3), ("ascend:0", 5)]
    assert found[0].reasons[-1].step == "visible"


def test_a_vendor_id_is_not_a_chip(make) -> None:
    """Board controllers and network cards carry it, too."""
    machine = make("none")
    assert (machine.root / "sys/bus/pci/devices/0000:03:00.0/vendor").read_text() == "0x19e5\n"
    assert find(machine) == []


def test_torch_builds_and_software_make_no_chip(make) -> None:
    machine = make(
        "none",
        python={"torch": "2.10.0+metax3.8.0.7", "torch_musa": "2.9.1"},
        files={"/opt/maca/lib/libmxsml.so": "", "/usr/local/birensupa/x": "", "/dev/mxcd": ""},
    )
    assert find(machine) == []


def test_display_nodes_count_only_with_the_vendors_card(make) -> None:
    machine = make("none", files={"/dev/dri/card1": "", "/dev/dri/renderD128": ""})
    assert find(machine) == []


def test_nodes_and_tool_without_pci(make) -> None:
    """A container may hide /sys: the weaker steps are enough, and say so."""
    machine = make("enflame-s60")
    for path in sorted((machine.root / "sys").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    found = find(machine)
    # the tool's short address stands in for the card's
    assert [row(f)[:5] for f in found] == [r[:5] for r in EXPECTED["enflame-s60"]]
    assert steps(found[0])["pci"] == "no support from PCI"
    assert any("PCI shows no card of 0x1e36" in text for text in found[0].doubts)


def test_pci_alone(make) -> None:
    """The cards are listed, and nothing pretends that they can be reached."""
    machine = make("ascend-310p-duo", remove=("/dev/davinci0", "/dev/davinci1", "/smi/npu-smi.txt"))
    assert [row(f) for f in find(machine)] == [(None, "310p", None, None, None, "0000:01:00.0")]


def test_tool_alone(make) -> None:
    machine = make("ascend-310p-duo", remove=("/dev/davinci0", "/dev/davinci1"))
    found = find(machine)
    assert [(f.device, f.name, f.node) for f in found] == [(None, "310P3", None)] * 2
    assert "`npu-smi info` lists 2 devices, but no device node is here" in found[0].doubts


def test_without_the_tool_the_pci_id_tells_the_generation(make) -> None:
    found = find(make("ascend-910b-container", remove=("/smi/npu-smi.txt",)))
    assert [f.generation.name for f in found if f.generation] == ["a2", "a2"]
    assert [f.address for f in found] == [None, None], "which of eight cards a node is, is not known then"
    assert {f.name for f in found} == {"Ascend 910B (A2)"}


def test_name_and_pci_id_disagree(make) -> None:
    machine = make("ascend-a3", files={"/sys/bus/pci/devices/0000:9d:00.0/device": "0xd802\n"})
    found = find(machine)
    assert found[0].generation is not None and found[0].generation.name == "a3", "the tool's name counts more"
    assert found[0].doubts == ("the tool's name says Ascend 910C (A3), the PCI id says Ascend 910B (A2)",)
    assert found[1].doubts == ()


@pytest.mark.parametrize(
    ("change", "stack", "others", "step"),
    [
        ({}, "biren-br1xx", ["biren-br2xx"], "library"),
        ({"python": {"torch_supa": "1.0.0.21200+br2xx"}}, "biren-br2xx", [], "torch"),
        ({"python": {"torch-br": "1.10.0"}}, "biren-br1xx", [], "torch"),
    ],
)
def test_stacks_with_the_same_cards(change, stack, others, step, make) -> None:
    found = find(make("biren-bare", **change))
    assert {f.stack.name for f in found} == {stack}
    assert [s.name for s in found[0].alternatives] == others
    assert found[0].reasons[5].step == step


def test_only_grade_a_and_b_decide(make) -> None:
    """The same fact of grade C finds nothing."""
    import msgspec

    stacks = load.stacks()
    enflame = stacks["enflame"]
    weak = {
        name: msgspec.structs.replace(getattr(enflame.identity, name), grade="C")
        for name in ("pci_vendor", "device_nodes", "smi")
    }
    identity = msgspec.structs.replace(enflame.identity, **weak)
    machine = make("enflame-s60")
    assert find(machine, {"enflame": msgspec.structs.replace(enflame, identity=identity)}) == []
    assert len(find(machine, {"enflame": enflame})) == 2


def test_json_has_everything(make) -> None:
    import json

    facts = json.loads(json.dumps(find(make("ascend-910b-container"))[1].to_json()))
    assert facts["device"] == "ascend:1" and facts["physical_index"] == 5 and facts["memory_bytes"] == 65536 * MIB
    assert facts["reasons"][0]["saw"] == "0x19e5:0xd802" and facts["evidence"] == "not run" and facts["doubts"]


def test_no_vendor_in_the_code() -> None:
    """What is known of a vendor is in chips/data; the code that searches knows none."""
    folder = Path(load.__file__).parent / "detect"
    names = {*load.stacks(), *(s.vendor.lower() for s in load.stacks().values())}
    for file in folder.glob("*.py"):
        code = "\n".join(
            line.split("#")[0] for line in file.read_text(encoding="utf-8").splitlines() if '"""' not in line
        )
        for name in names:
            assert f'"{name}"' not in code.lower(), (file.name, name)
