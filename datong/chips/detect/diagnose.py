"""What keeps programs from the chips that were found, and what to do about it: one function per question.

`missing` and `broken` stop a chip, `note` does not. A hint carries the grade of the fact that it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from datong.chips import load
from datong.chips.detect import nodes, smi, software
from datong.chips.detect.adapter import check_adapter, check_torch
from datong.chips.detect.machine import Machine
from datong.chips.detect.result import Finding, Found, State
from datong.chips.detect.words import counted, whose
from datong.chips.schema import Fact, Stack


@dataclass(frozen=True)
class _Case:
    """One stack whose chips are here, and what is known of it."""

    machine: Machine
    stack: Stack
    devices: Sequence[Found]
    software: software.Software
    builder: Stack | None  # whose build of torch is installed, if it is a vendor's


def diagnose(machine: Machine, found: Sequence[Found], stacks: Mapping[str, Stack] | None = None) -> list[Finding]:
    """Findings about each stack that has a chip here, then about software without a chip, then about the machine."""
    known = stacks if stacks is not None else load.stacks()
    out: list[Finding] = []
    builder = next((s for s in known.values() if _builds_torch(machine, s)), None)
    for name in dict.fromkeys(f.stack.name for f in found):
        devices = [f for f in found if f.stack.name == name]
        stack = devices[0].stack
        case = _Case(machine, stack, devices, software.look(machine, stack), builder)
        for question in _QUESTIONS:
            out += question(case)
    named = {f.stack.name for f in found} | {s.name for f in found for s in f.alternatives}
    for stack in known.values():
        if stack.name not in named:
            out += _software_alone(machine, stack)
    out += [Finding("", "files", "note", text) for text in machine.trouble]
    return out


def hurdles(found: Found, findings: Iterable[Finding]) -> list[Finding]:
    """The findings that keep programs from this device."""
    return [f for f in findings if f.stops and f.stack == found.stack.name and f.node in (None, found.node)]


def usable(found: Sequence[Found], findings: Sequence[Finding]) -> list[Found]:
    """The devices that nothing known keeps a program from. None of this has run anything on them."""
    return [f for f in found if f.index is not None and not hurdles(f, findings)]


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _driver(case: _Case) -> Iterator[Finding]:
    """Is the kernel driver loaded, and does the container have the devices?"""
    stack, here = case.stack, [d for d in case.devices if d.node]
    expected = stack.identity.device_nodes
    if here:
        yield Finding(
            stack.name, "driver", "ok", f"{counted(len(here), 'device node')}: {_few([str(d.node) for d in here])}"
        )
        return
    if not expected.usable:
        yield Finding(
            stack.name, "driver", "note", "its device nodes are not known to us: whether it is loaded is open"
        )
        return
    wanted = ", ".join(expected.value or ())
    if case.machine.container:
        hint = f"start the container with the devices: docker run --device {_example(expected)} …{_more_nodes(stack)}"
        yield _finding(
            case, "driver", "broken", f"this container has none of its device nodes ({wanted})", hint, expected
        )
    else:
        text = f"the cards are there, but no device node ({wanted}): the kernel driver is not loaded"
        yield _finding(
            case,
            "driver",
            "missing",
            text,
            f"install {whose(stack.vendor)} driver{_where(stack)}",
            stack.toolkit.install,
        )


def _managers(case: _Case) -> Iterator[Finding]:
    """Are the driver's further nodes there?"""
    if not any(d.node for d in case.devices):
        return  # the driver's finding has said it
    for entry in nodes.managers(case.machine, case.stack)[1]:
        first, fact = entry.split("|")[0], case.stack.identity.manager_nodes
        if case.machine.container:
            text = f"this container has the devices, but not {' or '.join(entry.split('|'))}"
            yield _finding(case, "container", "broken", text, f"start it with --device {first}", fact)
        else:
            text = f"{' or '.join(entry.split('|'))} is not there: the driver is loaded in part"
            yield _finding(case, "driver", "broken", text, f"load or reinstall {whose(case.stack.vendor)} driver", fact)


def _permission(case: _Case) -> Iterator[Finding]:
    """May this user open the nodes? One sentence per group, and per device if it is not all of them."""
    own = [d.node for d in case.devices if d.node]
    by_group: dict[str, list[str]] = {}
    for path in (*own, *nodes.managers(case.machine, case.stack)[0]):
        group = case.machine.denied(path)
        if group is not None:
            by_group.setdefault(group, []).append(path)
    for group, paths in by_group.items():
        hint = f"sudo usermod -aG {group} $USER, then log in again" if group not in ("", "root") else "run as root"
        some = [p for p in paths if p in own]
        if len(some) == len(paths) < len(own):
            for path in paths:
                yield Finding(
                    case.stack.name, "permission", "broken", f"this user may not open {path}", hint, node=path
                )
        else:
            yield Finding(case.stack.name, "permission", "broken", f"this user may not open {_few(paths)}", hint)


def _tool(case: _Case) -> Iterator[Finding]:
    """Does the vendor's tool answer? Programs run without it."""
    tool = case.stack.identity.smi
    if not tool.usable or not tool.value:
        return
    report = smi.ask(case.machine, case.stack, software.roots(case.machine, case.stack))
    if report.output.state == "absent" and any(d.node for d in case.devices):
        text = f"the driver is loaded, but its tool {tool.value} is not on PATH: product and memory stay unknown"
        where = "mount it into the container" if case.machine.container else "it comes with the driver package"
        yield _finding(case, "tool", "note", text, where, tool)
    elif report.output.state in ("hung", "failed"):
        yield _finding(
            case, "tool", "note", report.doubt, f"run `{report.command}` yourself: the driver may be unwell", tool
        )


def _toolkit(case: _Case) -> Iterator[Finding]:
    """Is the vendor's toolkit there, and which version?"""
    stack, have = case.stack, case.software
    for text in have.stale_variables:
        yield Finding(
            stack.name, "toolkit", "note", f"{text} names a directory that is not there", "unset it, or set it right"
        )
    if have.root:
        name = f" (from {have.root_from})" if have.root_from else ""
        version = f"version {have.toolkit}" if have.toolkit else "version not told"
        yield Finding(stack.name, "toolkit", "ok", f"{have.root}{name}, {version}")
    elif stack.toolkit.roots.usable and not (stack.toolkit.bundled.usable and stack.toolkit.bundled.value):
        text = f"not found; looked for {', '.join(stack.toolkit.roots.value or ())}"
        hint = f"install {whose(stack.vendor)} toolkit{_where(stack)}"
        variables = stack.toolkit.root_variables
        if variables.usable and variables.value:
            hint += f", or set {variables.value[0]} if it lies elsewhere"
        yield _finding(case, "toolkit", "missing", text, hint, stack.toolkit.install)


def _torch(case: _Case) -> Iterator[Finding]:
    yield from check_torch(case.stack, case.software, case.builder)
    yield from check_adapter(case.stack, case.software)


def _counts(case: _Case) -> Iterator[Finding]:
    """Contradictions between the steps, devices hidden from this process, stacks that could not be told apart."""
    for text in dict.fromkeys(t for d in case.devices for t in d.doubts):
        if " gave no answer" not in text:  # the tool's finding has said it
            yield Finding(case.stack.name, "count", "note", text)
    hidden = [d for d in case.devices if d.index is None and d.node]
    reason = next((r for d in hidden for r in d.reasons if r.step == "visible"), None)
    if reason:
        yield Finding(case.stack.name, "count", "note", f"{len(hidden)} hidden from this process by {reason.saw}")
    others = {s.name for d in case.devices for s in d.alternatives}
    if others:
        text = (
            f"could as well be {', '.join(sorted(others))}: their cards look alike, and nothing here tells them apart"
        )
        yield Finding(case.stack.name, "software", "note", text, "install the adapter of the stack that you have")


_QUESTIONS: tuple[Callable[[_Case], Iterator[Finding]], ...] = (
    _driver, _managers, _permission, _tool, _toolkit, _torch, _counts,
)  # fmt: skip


def _software_alone(machine: Machine, stack: Stack) -> Iterator[Finding]:
    """Adapter or vendor's torch without any chip: most often a container started without its devices."""
    have = software.look(machine, stack)
    what = []
    if have.adapter:
        what.append(f"{stack.adapter.package.value} {have.adapter}")
    if _builds_torch(machine, stack):
        what.append(f"torch {have.torch}, {whose(stack.vendor)} build")
    if not what:
        return
    fact = stack.identity.device_nodes
    hint = (
        f"start the container with --device {_example(fact)} …{_more_nodes(stack)}"
        if fact.usable and machine.container
        else ""
    )
    text = f"{' and '.join(what)} installed, but no {stack.vendor} chip shows itself"
    yield Finding(stack.name, "software", "note", text, hint, fact.grade if hint else "", fact.source if hint else "")


def _builds_torch(machine: Machine, stack: Stack) -> bool:
    """Is the installed torch the vendor's own? A build for CUDA is the stock build: PyPI's, with another suffix."""
    return stack.adapter.kind != "cuda" and software.look(machine, stack).vendor_torch


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _finding(case: _Case, what: str, state: State, text: str, hint: str, fact: Fact[list[str]] | Fact[str]) -> Finding:
    known = fact.grade != "unknown"
    return Finding(case.stack.name, what, state, text, hint, fact.grade if known else "", fact.source if known else "")


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths) if len(paths) <= 3 else f"{paths[0]} … {paths[-1]}"


def _example(fact: Fact[list[str]]) -> str:
    return (fact.value or ["/dev/…"])[0].split("[")[0].split("*")[0] + "0"


def _more_nodes(stack: Stack) -> str:
    fact = stack.identity.manager_nodes
    return "".join(f" --device {e.split('|')[0]}" for e in fact.value or ()) if fact.usable else ""


def _where(stack: Stack) -> str:
    """Where a person gets driver and toolkit; a pip command gets neither."""
    text = stack.toolkit.install.value or ""
    return f" ({text})" if text and not text.startswith("pip ") else ""
