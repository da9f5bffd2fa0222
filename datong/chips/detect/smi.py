"""Step 3: the vendor's tool. Its tables are made for people, so a table that cannot be read is said, not guessed at."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datong.chips.detect.machine import NODES, Machine
from datong.chips.detect.tool import Output
from datong.chips.schema import Generation, Stack
from datong.errors import ChipError


@dataclass(frozen=True)
class Row:
    """One device as the tool lists it."""

    number: int  # the one that nodes carry, if the tool prints it, else its own count
    product: str | None
    memory_bytes: int | None
    bus: str | None  # PCI address as printed


@dataclass(frozen=True)
class Report:
    """What became of running the tool."""

    command: str
    output: Output
    rows: tuple[Row, ...]
    doubt: str = ""  # why there are no rows although the tool ran


ABSENT = Report("", Output("absent"), ())


def ask(machine: Machine, stack: Stack, roots: list[str]) -> Report:
    """Run the tool of a stack, if it is installed, and read its table."""
    tool, arguments, pattern = (
        stack.identity.smi, stack.identity.smi_arguments, stack.identity.smi_device_pattern,
    )  # fmt: skip
    if not tool.usable or not tool.value:
        return ABSENT
    directories = [f"{root}/bin" for root in roots]
    if not (arguments.usable and pattern.usable and pattern.value):  # a tool that we do not know is not run
        found = machine.which(tool.value, directories) is not None
        doubt = f"{tool.value} is installed, but we do not know how to read it" if found else ""
        return Report(tool.value, Output("ok" if found else "absent"), (), doubt)
    words = list(arguments.value or ())
    output = machine.run(tool.value, words, directories)
    command = " ".join([tool.value, *words])
    if output.state in ("hung", "failed"):
        return Report(command, output, (), f"`{command}` gave no answer: {output.detail}")
    if output.state == "absent":
        return Report(command, output, ())
    rows, doubt = _rows(stack, pattern.value, output.text)
    if not rows:
        doubt = f"`{command}` answers, but no device can be read from it"
    return Report(command, output, tuple(rows), doubt)


def _rows(stack: Stack, pattern: str, text: str) -> tuple[list[Row], str]:
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ChipError(f"{stack.name}.toml", f"smi_device_pattern should be a regular expression: {error}") from None
    found: dict[int, Row] = {}
    for match in compiled.finditer(text.replace("\r", "")):
        groups = match.groupdict()
        number, memory = groups.get("device") or groups.get("index"), groups.get("memory_mib")
        if number is None or not number.isascii() or not number.isdigit() or len(number) > 6:
            continue
        size = int(memory) * 2**20 if memory and memory.isdigit() and len(memory) < 12 else None
        product = (groups.get("product") or "").strip() or None
        found.setdefault(int(number), Row(int(number), product, size, groups.get("bus")))
    rows = [found[number] for number in sorted(found)]
    if len(rows) > NODES:
        return rows[:NODES], f"the tool lists {len(rows)} devices; only {NODES} are looked at"
    return rows, ""


def generation(product: str | None, stack: Stack) -> Generation | None:
    """The generation whose product (`910b3`, `c500`) is a word in the tool's name (`910B3`, `MetaX C500`).

    The longest product wins. It must end where the word ends: `910` is not in `910B9`.
    """
    text, best, size = (product or "").lower(), None, 0
    for g in stack.generations:
        exact = [n.lower() for n in g.smi_names.value or ()] if g.smi_names.usable else []
        words = [p for p in g.products if re.search(rf"(?<!\d){re.escape(p)}(?![0-9a-z])", text)]
        length = max([len(w) for w in words] + [len(text) if text and text in exact else 0])
        if length > size:
            best, size = g, length
    return best
