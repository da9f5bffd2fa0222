"""`datong models`: which families there are, and how we know that each runs on a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import print_json, show
from datong.errors import DatongError

if TYPE_CHECKING:
    from rich.console import RenderableType

Explain = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT", help="A family, or a checkpoint's directory or config.json: what is there, what lacks."
    ),
]


def models(explain: Explain = None, as_json: options.Json = False) -> None:
    """List the model families, and how we know that they run.

    The numbers are the largest difference of a logit from the official implementation's, on a small checkpoint: whole,
    in chunks, token by token, in a batch. `simulated`: on a simulated chip, no card was touched.
    """
    if explain is not None:
        _explain(explain, as_json)
        return
    from datong.importer.families.table import evidence, families

    known, found = families(), evidence()
    if as_json:
        print_json({name: {"maker": f.maker, "models": f.models, "leaves_out": f.leaves_out, "evidence": cells(name)}
                    for name, f in known.items()})  # fmt: skip
        return
    show(_table(), "", f"Compared at commit {found.commit}. Why a family does not run: datong models --explain FAMILY")


def cells(family: str) -> dict[str, dict[str, Any]]:
    """Device -> the worst of the family's checkpoints there, or why one does not run."""
    from datong.importer.families.table import evidence

    found = evidence()
    answer: dict[str, dict[str, Any]] = {}
    for name in found.of_family(family):
        for device, one in found.results[name].items():
            cell = answer.setdefault(device, {"evidence": one.evidence, "worst": one.worst, "why": one.why})
            if one.worst is None:
                cell.update(evidence=one.evidence, worst=None, why=one.why)
            elif cell["worst"] is not None:
                cell["worst"] = max(cell["worst"], one.worst)
    return answer


def summary(family: str) -> list[str]:
    """Cells of one line: reference, cpu, torch, onnxruntime, simulated chips."""
    found = cells(family)
    line = [_cell(found.get(device)) for device in ("reference", "cpu", "torch:cpu", "onnxruntime")]
    chips = [cell for device, cell in found.items() if device.startswith("sim:")]
    right = [cell for cell in chips if cell["worst"] is not None]
    line.append(f"{len(right)} of {len(chips)}: {max(c['worst'] for c in right):.0e}" if right else "not run")
    return line


def _cell(cell: dict[str, Any] | None) -> str:
    return f"{cell['worst']:.0e}" if cell and cell["worst"] is not None else "not run"


def _table() -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from datong.importer.families.table import families

    table = Table("family", "models", "reference", "cpu", "torch", "onnx", "simulated", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = column.header != "models"  # a name is typed: never shortened
    for name, family in families().items():
        table.add_row(*(Text(cell) for cell in (name, f"{family.maker}: {family.models}", *summary(name))))
    return table


def _explain(what: str, as_json: bool) -> None:
    path = Path(what).expanduser()
    answer = explain_path(path) if path.exists() else explain_family(what)
    if as_json:
        print_json(answer)
    else:
        show("\n".join(f"{key}: {text}" for key, text in answer.items()))


def explain_family(name: str) -> dict[str, str]:
    """What a family covers, what is left out, and where it does not run. Raises UnknownModel."""
    from datong.importer.families.table import evidence, find

    family = find(name)
    answer = {"family": name, "maker": family.maker, "models": family.models}
    if family.leaves_out:
        answer["left out"] = family.leaves_out
    found = cells(name)
    if not found:
        answer["evidence"] = f"no small checkpoint of it was compared (commit {evidence().commit})"
    for device, cell in found.items():
        worst = cell["worst"]
        answer[device] = f"not run: {cell['why']}" if worst is None else f"{cell['evidence']}, {worst:.1e}"
    return answer


def explain_path(path: Path) -> dict[str, str]:
    """What stands in the way of a checkpoint; reads its config and headers only."""
    import json

    from datong.importer.registry import FAMILIES

    directory = path if path.is_dir() else path.parent
    answer = {"checkpoint": str(path)}
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        family = str(config.get("model_type")) if isinstance(config, dict) else "None"
    except (OSError, ValueError) as error:
        return {**answer, "lacks": f"a config.json that can be read: {error}"}
    answer["family"] = family if family in FAMILIES else f"`{family}` is not known; known: {', '.join(FAMILIES)}"
    if family not in FAMILIES:
        return answer
    from datong.importer.hf import import_directory

    try:
        imported = import_directory(directory)
    except DatongError as error:
        return {**answer, "lacks": f"{error.message}" + (f" ({error.hint})" if error.hint else "")}
    answer["lacks"] = "nothing: it can be imported"
    answer["heads for speculation"] = str(len(imported.heads))
    for key, reasons in (("ignored keys", imported.ignored_keys), ("ignored tensors", imported.weights.ignored)):
        if reasons:
            answer[key] = f"{len(reasons)}, such as {next(iter(reasons))}: {next(iter(reasons.values()))}"
    return answer
