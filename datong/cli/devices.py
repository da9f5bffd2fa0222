"""`datong devices`: what programs can run on, and which AI chips are in this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import print_json, show, warn

if TYPE_CHECKING:
    from rich.console import RenderableType

    from datong.chips.detect import Found, Survey
    from datong.spec.backend import DeviceInfo

Why = Annotated[bool, typer.Option("--why", help="For each chip, print what was looked at, seen and concluded.")]
Simulated = Annotated[bool, typer.Option("--simulated", help="List the simulated chips that `--device sim:…` offers.")]


def devices(why: Why = False, simulated: Simulated = False, as_json: options.Json = False) -> None:
    """List what runs programs, and the AI chips here.

    The evidence says how we know that programs run on a device.
    """
    from rich.text import Text

    from datong.backends.registry import devices as present

    known = present()
    if simulated:
        _simulated([d for d in known if d.evidence == "simulated"], as_json)
        return
    real, survey = [d for d in known if d.evidence != "simulated"], look()
    if as_json:
        print_json({"devices": [_plain(d) for d in real], **_chips_json(survey)})
        return
    show(_table(real))
    show("")
    if not survey.found:
        show(Text(_none(survey)))
        return
    show(Text("AI chips in this machine (why: --why; what to do: datong doctor)"))
    if why:
        show(*[_chain(found) for found in survey.found])
    else:
        show(chips_table(survey))


def look() -> Survey:
    """The search for chips: on this machine, or on the recorded one that DATONG_MACHINE_ROOT names."""
    from datong import env
    from datong.chips.detect import Machine, here, survey

    root = env.machine_root()
    if root is None:
        return here()
    warn(f"a recorded machine is looked at: {root} ({env.MACHINE_ROOT.name})")
    return survey(Machine(root))


def chips_table(survey: Survey) -> RenderableType:
    """One line per chip: what it is, why we think so, what keeps programs from it."""
    from rich.table import Table
    from rich.text import Text

    table = Table("device", "chip", "memory", "node", "seen by", "in the way", "evidence", box=None, pad_edge=False)
    for found in survey.found:
        cells = (
            found.device or f"{found.stack.name}:–",
            _name(found),
            _size(found.memory_bytes),
            found.node or "–",
            _seen_by(found),
            in_the_way(survey, found),
            found.evidence,
        )
        table.add_row(*(Text(cell) for cell in cells))  # Text: brackets in it are no markup
    return table


def in_the_way(survey: Survey, found: Found) -> str:
    """What keeps programs from a chip, in a few words."""
    hurdles = [f"{f.what}: {f.detail}" for f in survey.hurdles(found)]
    if found.index is None:
        hidden = any(r.step == "visible" for r in found.reasons) and found.node is not None
        hurdles.insert(0, "hidden from this process" if hidden else "not within reach of this process")
    more = f" (and {len(hurdles) - 1} more)" if len(hurdles) > 1 else ""
    return f"{hurdles[0]}{more}" if hurdles else "nothing known"


def _simulated(known: Sequence[DeviceInfo], as_json: bool) -> None:
    if as_json:
        print_json({"devices": [_plain(d) for d in known]})
    elif known:
        show(_table(known))
    else:
        show('Simulated chips need PyTorch: pip install "datong[torch]"')


def _table(known: Sequence[DeviceInfo]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("device", "description", "memory", "evidence", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"  # a name is typed: never shortened
    for d in known:
        table.add_row(Text(d.name), Text(d.description), _size(d.memory_bytes), Text(d.evidence))
    return table


def _plain(info: DeviceInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "description": info.description,
        "memory_bytes": info.memory_bytes,
        "evidence": info.evidence,
        "attributes": dict(info.attributes),
    }


def _chips_json(survey: Survey) -> dict[str, Any]:
    usable = survey.usable
    chips = [
        {**f.to_json(), "usable": f in usable, "in_the_way": [vars(h) for h in survey.hurdles(f)]} for f in survey.found
    ]
    return {"chips": chips, "findings": [vars(f) for f in survey.findings]}


def _none(survey: Survey) -> str:
    from datong.chips.load import stacks

    return f"No AI chip found in this machine; looked for {', '.join(stacks())}."


def _name(found: Found) -> str:
    title = found.generation.title if found.generation else found.stack.title
    name = found.name if title == found.name else f"{found.name} ({title})"
    others = [s.name for s in found.alternatives]
    return f"{name}, or {', '.join(others)}" if others else name


def _size(size: int | None) -> str:
    return f"{size / 2**30:.1f} GiB" if size else "unknown"


_SAYS_NOTHING = ("says nothing", "no support", "which", "the process cannot reach")


def _seen_by(found: Found) -> str:
    """The steps that support the chip, in their order."""
    steps = [r.step for r in found.reasons if r.step != "visible" and not r.conclusion.startswith(_SAYS_NOTHING)]
    return ", ".join(dict.fromkeys(steps))


def _chain(found: Found) -> RenderableType:
    """All reasons of one chip."""
    from rich.text import Text

    physical = "" if found.physical is None else f", {found.physical} by the driver's count"
    lines = [f"\n{found.device or f'{found.stack.name}:–'}  {_name(found)}{physical}; evidence: {found.evidence}"]
    lines += [
        f"  {r.step:8} {r.looked_at}\n           saw: {r.saw}\n           so:  {r.conclusion}" for r in found.reasons
    ]
    lines += [f"  doubt    {text}" for text in found.doubts]
    return Text("\n".join(lines))
