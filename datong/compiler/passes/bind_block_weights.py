"""The dequantisation chain of a block format becomes one weight.

Requires: bind_weights (which checked that every piece lies in its file).
Rules:
  1. one level:   s = Cast(scale);  two levels:  s = Reshape(Mul(Cast(super_scale), Cast(scale)), [out, nb, 1]);
  2. w = DequantizeLinear(codes, s, axis=2 (3 for a stack), block_size=B), no zero point;
  3. optional w = Add(w, m) | Sub(w, m), m built like s from `min` (and `super_min`);
  4. Reshape(w, [out, in] or [E, out, in]) is the weight; its format is the row of spec/formats.py with these dtypes,
     B and sign;
  5. every piece must have the shape that the format gives it; a chain of another form is noted and left alone.
Ensures: no DequantizeLinear of a known format is left; nothing was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.bind_weights import piece
from datong.spec import formats
from datong.spec.formats import Format
from datong.spec.program import Piece, Value


@dataclass
class _Chain:
    """What was found on the way up from the Reshape."""

    codes: ir.Value
    block: int
    sign: int  # of the min; 0: no min
    pieces: dict[str, ir.Value]


def run(graph: ir.Graph, root: Path) -> int:
    """Bind in place; returns the number of weights."""
    count = 0
    for dequantize in match.nodes(graph, "DequantizeLinear"):
        found = _bind(dequantize)
        if isinstance(found, str):
            match.note(dequantize, found)
        else:
            reshape, weight = found
            reshape.outputs[0].replace_all_uses_with(match.leaf(weight, weight.shape))
            match.erase(reshape)
            count += 1
    return count


def _bind(dequantize: ir.Node) -> tuple[ir.Node, Value] | str:
    """The closing Reshape and the weight, or the reason why this is not one."""
    if len(dequantize.inputs) < 2 or match.operand(dequantize, 2) is not None:
        return "a block format has a scale and no zero point"
    chain = _Chain(_value(dequantize.inputs[0]), match.int_attr(dequantize, "block_size", 0), 0, {})
    reason = _level(chain, _value(dequantize.inputs[1]), "scale")
    if reason:
        return reason
    last = _only_user(dequantize)
    if match.is_op(last, "Add", "Sub") and last is not None:
        at = [i for i, value in enumerate(last.inputs) if value is not dequantize.outputs[0]]
        if len(at) != 1 or (last.op_type == "Sub" and at != [1]):
            return "the min should be added to or subtracted from the scaled codes"
        chain.sign = 1 if last.op_type == "Add" else -1
        reason = _level(chain, _value(last.inputs[at[0]]), "min")
        if reason:
            return reason
        last = _only_user(last)
    if not match.is_op(last, "Reshape") or last is None:
        return "the chain should end in one Reshape to [out, in]"
    shape = match.ints(last.inputs[1])
    if shape is None or len(shape) not in (2, 3):
        return f"the chain should end in a Reshape to [out, in] or [E, out, in], it goes to {shape}"
    weight = _weight(chain, tuple(shape), match.int_attr(dequantize, "axis", 1))
    return weight if isinstance(weight, str) else (last, weight)


def _value(value: ir.Value | None) -> ir.Value:
    return value if value is not None else ir.Value(name="")


def _only_user(node: ir.Node) -> ir.Node | None:
    out = node.outputs[0]
    return match.users(out)[0] if match.used_once(out) else None


def _level(chain: _Chain, value: ir.Value, role: str) -> str:
    """Read scale or min, one or two levels, into the chain; the reason when it is neither."""
    reshape = match.producer(value, "Reshape")
    if reshape is not None:
        product = match.producer(reshape.inputs[0], "Mul")
        factors = [] if product is None else [_uncast(_value(v)) for v in product.inputs]
        if len(factors) != 2:
            return f"two-level {role} should be Reshape(Mul(Cast(super_{role}), Cast({role})))"
        factors.sort(key=lambda v: match.bound(v) is None)  # bind_weights took the Cast of the f16 one: the super level
        chain.pieces[f"super_{role}"], chain.pieces[role] = factors
        return ""
    chain.pieces[role] = _uncast(value)
    return ""


def _uncast(value: ir.Value) -> ir.Value:
    cast = match.producer(value, "Cast")
    return value if cast is None else _value(cast.inputs[0])


def _weight(chain: _Chain, shape: tuple[int, ...], axis: int) -> Value | str:
    name = chain.codes.name or ""
    if axis not in (len(shape), -1):
        return f"blocks of `{name}` should lie along axis {len(shape)}, they lie along {axis}"
    found: dict[str, Piece] = {}
    for role, value in {"codes": chain.codes, **chain.pieces}.items():
        got = _piece_of(value, role)
        if got is None:
            return f"the {role} of `{name}` should be an initializer in a file"
        found[role] = got
    fmt = _format(chain, found)
    if fmt is None:
        kinds = ", ".join(f"{p.role} {p.dtype}" for p in found.values())
        return f"no row of spec/formats.py has blocks of {chain.block} with {kinds}"
    for role in fmt.pieces:
        wanted = fmt.piece_shape(role, *shape) if shape[-1] % max(fmt.block, fmt.super_block) == 0 else ()
        if found[role].shape != wanted:
            have = list(found[role].shape)
            return f"the {role} of `{name}` {list(shape)} {fmt.name} should be {list(wanted)}, it is {have}"
    return Value(name, "weight", "f32", shape, fmt.name, tuple(found[role] for role in fmt.pieces))


def _piece_of(value: ir.Value, role: str) -> Piece | None:
    """The piece under this role; bind_weights may have put a leaf in the initializer's place (Cast of f16)."""
    weight = match.bound(value)
    if weight is not None and len(weight.pieces) == 1:
        p = weight.pieces[0]
        return Piece(role, p.file, p.offset, p.length, p.dtype, p.shape)
    return piece(value, role)


def _format(chain: _Chain, found: dict[str, Piece]) -> Format | None:
    # Last row first: q5_0 and q8_0 are stored alike, and only q8_0 promises nothing about the range of the codes.
    for fmt in reversed(formats.ALL):
        if (
            not fmt.tile
            and fmt.block == chain.block > 0
            and set(fmt.pieces) == set(found)
            and all(fmt.piece_dtype(role).name == found[role].dtype for role in fmt.pieces)
            and (not fmt.has_min or fmt.min_sign == chain.sign)
        ):
            return fmt
    return None
