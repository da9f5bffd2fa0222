"""A program as text for machines (JSON) and for people. Needs no ONNX: this is what the warm path reads.

The same program gives the same bytes. `VERSION` changes with every change of the layout or of what the compiler makes;
a plan of another version is not read but made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from datong.errors import CompileError
from datong.spec.program import Attr, CacheSpec, Node, Part, Piece, Program, Slot, Value

FORMAT = "datong-plan"
VERSION = 2

# ---- JSON -------------------------------------------------------------------------------------------------------


def to_json(program: Program) -> bytes:
    """The program as deterministic JSON."""
    return msgspec.json.encode(
        {
            "format": FORMAT,
            "version": VERSION,
            "package": program.package,
            "vocab_size": program.vocab_size,
            "context_length": program.context_length,
            "refusals": program.refusals,
            "parts": [_part_out(part) for part in program.parts],
        }
    )


def from_json(data: bytes) -> Program:
    """The program that `to_json` wrote. Raises CompileError for anything else."""
    try:
        plan = msgspec.json.decode(data)
        if (plan["format"], plan["version"]) != (FORMAT, VERSION):
            raise CompileError("plan", f"wanted {FORMAT} version {VERSION}, came {plan['format']} {plan['version']}")
        return Program(
            package=_text(plan["package"]),
            parts=tuple(_part_in(part) for part in plan["parts"]),
            vocab_size=int(plan["vocab_size"]),
            context_length=int(plan["context_length"]),
            refusals=tuple((_text(b), _text(n), _text(why)) for b, n, why in plan["refusals"]),
        )
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CompileError("plan", f"wanted a compiled plan, came something else: {error!r}") from error


def _part_out(part: Part) -> dict[str, Any]:
    return {
        "backend": part.backend,
        "inputs": part.inputs,
        "outputs": part.outputs,
        "caches": [[c.layer, c.kind, c.kv_heads, c.key_dim, c.value_dim, c.window] for c in part.caches],
        "arena_bytes": dict(part.arena_bytes),
        "slots": {name: [s.arena, s.offset, s.size] for name, s in part.slots.items()},
        "values": [_value_out(value) for value in part.values.values()],
        "nodes": [[n.op, n.name, n.inputs, n.outputs, dict(n.attrs)] for n in part.nodes],
    }


def _value_out(value: Value) -> list[Any]:
    pieces = [[p.role, p.file, p.offset, p.length, p.dtype, p.shape] for p in value.pieces]
    row: list[Any] = [value.name, value.kind, value.dtype, value.shape, value.format, pieces, value.data, value.swapped]
    while row[-1] in ("", [], (), False):
        row.pop()
    return row


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"wanted text, came {value!r}")
    return value


def _part_in(part: Mapping[str, Any]) -> Part:
    values = [_value_in(*row) for row in part["values"]]
    return Part(
        backend=_text(part["backend"]),
        values={value.name: value for value in values},
        nodes=tuple(_node_in(*row) for row in part["nodes"]),
        inputs=tuple(map(_text, part["inputs"])),
        outputs=tuple(map(_text, part["outputs"])),
        caches=tuple(
            CacheSpec(int(a), _text(k), int(h), int(d), int(e), int(w)) for a, k, h, d, e, w in part["caches"]
        ),
        slots={name: Slot(_text(arena), int(at), int(size)) for name, (arena, at, size) in part["slots"].items()},
        arena_bytes={name: int(size) for name, size in part["arena_bytes"].items()},
    )


def _node_in(op: str, name: str, inputs: list[str], outputs: list[str], attrs: dict[str, Any]) -> Node:
    typed: dict[str, Attr] = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}
    return Node(_text(op), _text(name), tuple(map(_text, inputs)), tuple(map(_text, outputs)), typed)


def _value_in(
    name: str,
    kind: str,
    dtype: str,
    shape: list[Any],
    fmt: str = "",
    pieces: list[list[Any]] | tuple[()] = (),
    data: list[Any] | tuple[()] = (),
    swapped: bool = False,
) -> Value:
    places = tuple(
        Piece(_text(role), _text(file), int(at), int(size), _text(kind), tuple(map(int, dims)))
        for role, file, at, size, kind, dims in pieces
    )
    return Value(_text(name), _text(kind), _text(dtype), tuple(shape), _text(fmt), places, tuple(data), swapped is True)


# ---- for people -------------------------------------------------------------------------------------------------


def to_text(program: Program) -> str:
    """The program, one line per node, without paths of this machine: what golden plans hold."""
    lines = [f"program: vocab {program.vocab_size}, context {program.context_length}, parts {len(program.parts)}"]
    for i, part in enumerate(program.parts):
        lines += ["", *_part_text(part, i)]
    if program.refusals:
        lines += ["", "refusals:", *(f"  {backend}: {node}: {why}" for backend, node, why in program.refusals)]
    return "\n".join(lines) + "\n"


def _part_text(part: Part, index: int) -> list[str]:
    arenas = ", ".join(f"{name} {size} bytes" for name, size in part.arena_bytes.items())
    lines = [f"part {index} on {part.backend}: {len(part.nodes)} nodes, arena {arenas}"]
    lines.append(f"  in  {', '.join(_shaped(part.values[name]) for name in part.inputs)}")
    lines.append(f"  out {', '.join(_shaped(part.values[name]) for name in part.outputs)}")
    for c in part.caches:
        window = f", window {c.window}" if c.window else ""
        lines.append(f"  cache {c.layer}: {c.kind}, {c.kv_heads} heads, key {c.key_dim}, value {c.value_dim}{window}")
    for i, node in enumerate(part.nodes):
        attrs = "".join(f" {k}={v}" for k, v in node.attrs.items())
        reads = ", ".join(_shaped(part.values[name]) if _is_stored(part, name) else name or "-" for name in node.inputs)
        made = ", ".join(_shaped(part.values[name]) + _place(part, name) for name in node.outputs)
        lines.append(f"  {i:3} {node.op}{attrs}")
        lines.append(f"        {reads} -> {made}")
    return lines


def _is_stored(part: Part, name: str) -> bool:
    return bool(name) and part.values[name].kind in ("weight", "const")


def _shaped(value: Value) -> str:
    return f"{value.name}:{value.format or value.dtype}[{','.join(map(str, value.shape))}]"


def _place(part: Part, name: str) -> str:
    slot = part.slots.get(name)
    return f"@{slot.arena}+{slot.offset}" if slot else ""
