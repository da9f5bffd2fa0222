"""What runs where, and every refusal with its reason: what `datong compile --explain` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from datong.compiler.placement import fallbacks, transfers
from datong.errors import Unsupported
from datong.spec.backend import Backend, Placed, Yes
from datong.spec.program import Program

UNKNOWN = "-"


def explain_data(
    program: Program, backends: Sequence[Backend] = (), placed: Iterable[Placed] | None = None
) -> dict[str, Any]:
    """The facts as plain data, for `--json`.

    Args:
        program:  what was compiled.
        backends: asked for the implementation of each node; may be empty.
        placed:   what an Executable says about itself; goes before the answers of `backends`.

    Returns:
        `placement`: rows of op, backend, implementation, count; `fallbacks`: rows of op, wanted, backend, reason,
        nodes; `unused`: rows of op, reason, count, for operators of the vendor that were not taken; `transfers`: rows
        of value, source, target, bytes, per; `refusals`: rows of backend, reason, count, nodes; `parts`: backend,
        nodes, inputs, outputs, caches, arena_bytes.
    """
    placed = list(placed or ())
    known = {row.node: row.implementation for row in placed}
    by_name = {backend.name: backend for backend in backends}
    placement: dict[tuple[str, str, str], int] = {}
    for part in program.parts:
        for node in part.nodes:
            how = known.get(node.name)
            if how is None and part.backend in by_name:
                answer = by_name[part.backend].supports(node, part.values)
                how = answer.implementation if isinstance(answer, Yes) else None
            key = (node.op, part.backend, how or UNKNOWN)
            placement[key] = placement.get(key, 0) + 1
    return {
        "placement": [
            {"op": op, "backend": backend, "implementation": how, "count": n}
            for (op, backend, how), n in placement.items()
        ],
        "fallbacks": [asdict(row) for row in fallbacks(program)],
        "unused": _unused(placed),
        "transfers": [asdict(row) for row in transfers(program)],
        "refusals": _grouped(program.refusals),
        "parts": [
            {
                "backend": part.backend,
                "nodes": len(part.nodes),
                "inputs": list(part.inputs),
                "outputs": list(part.outputs),
                "caches": len(part.caches),
                "arena_bytes": dict(part.arena_bytes),
            }
            for part in program.parts
        ],
    }


def _unused(placed: Iterable[Placed]) -> list[dict[str, Any]]:
    counts = Counter((row.op, reason) for row in placed for reason in dict.fromkeys(row.unused))
    return [{"op": op, "reason": reason, "count": n} for (op, reason), n in counts.items()]


def _grouped(refusals: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for backend, node, why in refusals:
        groups.setdefault((backend, why), []).append(node)
    return [
        {"backend": backend, "reason": why, "count": len(nodes), "nodes": nodes}
        for (backend, why), nodes in groups.items()
    ]


def explain(program: Program, backends: Sequence[Backend] = (), placed: Iterable[Placed] | None = None) -> str:
    """The same as text."""
    data = explain_data(program, backends, placed)
    lines = ["placement"]
    lines += _table([(r["op"], r["backend"], r["implementation"], f"x{r['count']}") for r in data["placement"]])
    lines += ["", "elsewhere than asked"] if data["fallbacks"] else []
    lines += [
        f"  {r['op']} x{len(r['nodes'])} on {r['backend']}, since {r['wanted']} refuses: {r['reason']}"
        for r in data["fallbacks"]
    ]
    lines += ["", "the vendor's own operators that were not taken"] if data["unused"] else []
    lines += [f"  {r['op']} x{r['count']}: {r['reason']}" for r in data["unused"]]
    lines += ["", *_transfers(data["transfers"])] if data["transfers"] else []
    lines += ["", "refusals" if data["refusals"] else "refusals: none"]
    lines += _refusals(data["refusals"])
    return "\n".join(lines) + "\n"


def explain_unsupported(error: Unsupported) -> str:
    """Why a compilation stopped: every refused node, grouped by reason."""
    lines = [error.message, "", "refusals", *_refusals(_grouped(("", node, why) for node, why in error.reasons))]
    return "\n".join(lines) + "\n"


def _transfers(rows: Sequence[dict[str, Any]]) -> list[str]:
    sums = [
        f"{total} bytes per {per}"
        for per in ("token", "row")
        if (total := sum(r["bytes"] for r in rows if r["per"] == per))
    ]
    cells = [(r["value"], f"{r['source']} -> {r['target']}", f"{r['bytes']} bytes", f"per {r['per']}") for r in rows]
    return [f"transfers through the host, {' and '.join(sums)}", *_table(cells)]


def _refusals(groups: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for group in groups:
        nodes = group["nodes"]
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        backend = f"{group['backend']}: " if group["backend"] else ""
        lines += [f"  {backend}{group['reason']} (x{group['count']})", f"      {', '.join(nodes[:3])}{more}"]
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
